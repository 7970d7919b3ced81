"""One-step decoding as a chain: the counted ratios by hand, the best path by trying all, and that caches and batches stay exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from models import SPECIAL, TEXT, VOCABULARY, decoding_vlm, make_batch, rows_of
from stage_parts import DECODE, dcd, trainer, write_tokens
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.bigrams import Bigrams
from echo_pl.sampling.commit import BlockState, CommitRule, commit
from echo_pl.sampling.config import TokenChoice
from echo_pl.sampling.student import StudentDecode
from echo_pl.structs import Batch, DecodeResult

L, LIMIT = 4, 20


def counted(vocabulary: int = VOCABULARY, weight: float = 1.0, reports: int = 30, length: int = 12) -> Bigrams:
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randint(0, vocabulary, (reports, length), generator=generator)
    return Bigrams.count(list(drawn), vocabulary, weight)


def test_ratios_by_hand():
    """Two reports; no pair goes from one to the other; the last token of a report is followed by nothing."""
    table = Bigrams.count([torch.tensor([1, 2, 1, 2]), torch.tensor([1, 3]), torch.tensor([2])], 5, weight=1.0, smoothing=0.5)
    s, tokens = Fraction(1, 2), 7
    share = {1: Fraction(3, tokens), 2: Fraction(3, tokens), 3: Fraction(1, tokens)}
    followed = {0: 0, 1: 3, 2: 1, 3: 0, 4: 0}
    seen = {(1, 2): 2, (2, 1): 1, (1, 3): 1}
    for a, b in itertools.product(range(5), repeat=2):
        if (a, b) in seen:
            expected = (seen[a, b] + s * share[b]) / (followed[a] + s) / share[b]  # P(b | a) / P(b)
        else:
            expected = s / (followed[a] + s)  # of b nothing is known but that it did not come
        assert math.isclose(float(table.log_ratio(torch.tensor(a), torch.tensor(b)).exp()), float(expected), rel_tol=1e-6), (a, b)


def test_probabilities_after_a_token_sum_to_one():
    """P(b | a) = r(a, b) P(b) over the tokens that were seen."""
    reports = [torch.tensor([0, 1, 2, 0, 3]), torch.tensor([3, 2, 1])]
    table = Bigrams.count(reports, 4, weight=1.0)
    share = torch.bincount(torch.cat(reports)).double() / 8
    every = torch.arange(4)
    behind = table.log_ratio(every[:, None], every[None]).double().exp() * share
    assert torch.allclose(behind.sum(1), torch.ones(4, dtype=torch.float64), atol=1e-6)


def test_rare_pairs_count_as_not_seen():
    """Two slips among reports: the ratio of what is behind them is that of any pair that never came, all others are as before."""
    reports = [torch.tensor([1, 2, 3])] * 4 + [torch.tensor([1, 1, 2])] * 2
    every = torch.arange(5)
    before, after = (
        Bigrams.count(reports, 5, weight=1.0, min_count=least).log_ratio(every[:, None], every[None]) for least in (1, 3)
    )
    slip = torch.zeros(5, 5, dtype=torch.bool)
    slip[1, 1] = True
    assert torch.equal(before[~slip], after[~slip])
    assert math.isclose(float(after[1, 1].exp()), 1 / (8 + 1), rel_tol=1e-6), "1 is followed eight times, s = 1"
    assert before[1, 1] > after[1, 1]
    with pytest.raises(ValueError, match="no pair of tokens is seen 7 times, the most frequent one 6 times"):
        Bigrams.count(reports, 5, weight=1.0, min_count=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bigrams": 1.0, "min_count": 0}, "must be a whole number and at least 1, got 0"),
        ({"bigrams": 1.0, "min_count": None}, "must be a whole number and at least 1, got None"),
        ({"bigrams": 1.0, "min_count": 2.5}, "must be a whole number and at least 1, got 2.5"),
        ({"bigrams": 1.0, "min_count": True}, "must be a whole number and at least 1, got True"),
        ({"bigrams": 1.0, "repeats": "none"}, r"student\.repeats must be true or false, got 'none'"),
        ({"bigrams": 1.0, "repeats": None}, r"student\.repeats must be true or false, got None"),
        ({"min_count": 3}, r"student\.min_count=3 has no effect without student\.bigrams=<weight>"),
        ({"repeats": False}, r"student\.repeats=false has no effect without student\.bigrams=<weight>"),
        ({"bigrams": float("nan")}, "at least 0 and finite, got nan"),
        ({"gate": 1.5}, r"student\.gate must be in \[0, 1\], got 1.5"),
    ],
)
def test_invalid_values_of_a_student_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        StudentDecode(**values)


def test_bigrams_need_stored_trajectories():
    with pytest.raises(ValueError, match=r"student\.bigrams=0.5 counts pairs .* give stage.module.trajectories=<folder>"):
        dcd(TEXT, None, student=StudentDecode(bigrams=0.5))
    assert StudentDecode().count_bigrams("nowhere", 9, "f00d", tuple) is None, "nothing is read"


def test_a_vocabulary_without_word_starts_has_nothing_to_forbid(tmp_path):
    store = write_tokens(tmp_path / "store", [[20, 21, 20, 21]], TEXT.fingerprint)
    with pytest.raises(ValueError, match=r"student\.repeats=false forbids nothing: no token of this vocabulary begins with"):
        StudentDecode(bigrams=1.0, repeats=False).count_bigrams(store, VOCABULARY, TEXT.fingerprint, tuple)


@pytest.mark.parametrize("vocabulary", [5, 3000])
def test_rows_of_the_model_beyond_its_tokens_are_never_chosen(vocabulary):
    table = counted(vocabulary)
    logits = torch.zeros(2, L, vocabulary + 3)
    logits[..., vocabulary:] = 50.0
    open_ = torch.ones(2, L, dtype=torch.bool)
    canvas = torch.zeros(2, L, dtype=torch.long)
    assert torch.equal(table.best_path(logits, canvas, open_), table.best_path(logits[..., :vocabulary], canvas, open_))


def test_a_token_that_is_never_repeated_does_not_follow_itself():
    """The best of all paths without such a pair, with the token before the block and what is settled; others may repeat."""
    V, once = 7, torch.tensor([False, True, True, True, False, True, True])
    table = replace(counted(V), once_V=once, candidates=V)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, L, V, generator=generator).log_softmax(-1)
    logits[:, :, :2] += 4.0  # two tokens that would like to stand everywhere: one may
    canvas, before = torch.randint(0, V, (40, L), generator=generator), torch.randint(0, V, (40,), generator=generator)
    open_ = torch.rand(40, L, generator=generator) < 0.8
    free = replace(table, once_V=None).best_path(logits, canvas, open_, before_A=before)
    found = table.best_path(logits, canvas, open_, before_A=before)
    ratio = table.log_ratio(torch.arange(V)[:, None], torch.arange(V)[None]).tolist()
    changed = 0
    for i in range(40):

        def score(path: tuple[int, ...], i: int = i) -> float:
            own = sum(float(logits[i, place, token]) for place, token in enumerate(path) if open_[i, place])
            return own + sum(ratio[a][b] for a, b in itertools.pairwise((int(before[i]), *path)))

        choices = [range(V) if open_[i, place] else [int(canvas[i, place])] for place in range(L)]
        allowed = [
            path
            for path in itertools.product(*choices)
            if not any(a == b and once[a] for a, b in itertools.pairwise((int(before[i]), *path)))
        ]
        if allowed:
            assert tuple(found[i].tolist()) == max(allowed, key=score)
            changed += not torch.equal(found[i], free[i])
        else:  # what is settled repeats itself, and stays
            assert torch.equal(found[i][~open_[i]], canvas[i][~open_[i]])
    assert changed > 5, "nothing was forbidden"
    assert any(a == b == 0 for row in found.tolist() for a, b in itertools.pairwise(row)), "0 may repeat"


def test_a_large_vocabulary_is_looked_up_the_same(monkeypatch):
    every = torch.arange(VOCABULARY)
    small = counted().log_ratio(every[:, None], every[None])
    monkeypatch.setattr("echo_pl.sampling.bigrams._SMALL_VOCABULARY", 2)
    assert torch.equal(counted().log_ratio(every[:, None], every[None]), small)


def best_by_trying(table: Bigrams, log_p: Tensor, canvas: Tensor, open_: Tensor, before: int | None) -> list[int]:
    """Sequence of tokens with the largest score, by exhaustive search."""
    ratio = {
        (a, b): table.weight * float(table.log_ratio(torch.tensor(a), torch.tensor(b)))
        for a, b in itertools.product(range(log_p.shape[1]), repeat=2)
    }
    choices = [
        log_p[i].topk(min(table.candidates, log_p.shape[1])).indices.tolist() if open_[i] else [int(canvas[i])]
        for i in range(len(log_p))
    ]

    def score(path: tuple[int, ...]) -> float:
        own = sum(float(log_p[i, token]) for i, token in enumerate(path) if open_[i])
        links = sum(ratio[pair] for pair in itertools.pairwise(path))
        return own + links + (0.0 if before is None else ratio[before, path[0]])

    return list(max(itertools.product(*choices), key=score))


@pytest.mark.parametrize("before", [None, 2])
@pytest.mark.parametrize("candidates", [1, 3, 6])
@pytest.mark.parametrize("settled", [[], [0], [1, 2]])
def test_the_best_path_is_the_best_of_all(before, candidates, settled):
    V, A = 6, 5
    table = counted(V, weight=0.7, reports=4, length=6)
    table = replace(table, candidates=candidates)
    generator = torch.Generator().manual_seed(candidates)
    logits = 2 * torch.randn(A, L, V, generator=generator, dtype=torch.float64)
    logits[..., 4] = -torch.inf  # an id that is never sampled
    canvas = torch.randint(0, V, (A, L), generator=generator)
    open_ = torch.ones(A, L, dtype=torch.bool)
    open_[:, settled] = False
    found = table.best_path(logits, canvas, open_, None if before is None else torch.full((A,), before))
    expected = [best_by_trying(table, logits[a].log_softmax(-1), canvas[a], open_[a], before) for a in range(A)]
    assert found.tolist() == expected
    if not settled:
        assert not (found == 4).any()
    if candidates == 6 and not settled:
        assert found.tolist() != logits.argmax(-1).tolist(), "the example must not be trivial"


def test_a_token_that_was_never_seen_has_no_influence():
    """Pairs behind an unseen token weigh nothing: the path is each position's own choice."""
    table = Bigrams.count([torch.tensor([5, 5, 5])], 6, weight=3.0)
    logits = torch.randn(3, L, 5, generator=torch.Generator().manual_seed(0))
    logits = torch.cat([logits, torch.full((3, L, 1), -9.0)], dim=-1)
    everything_open = torch.ones(3, L, dtype=torch.bool)
    assert torch.equal(table.best_path(logits, torch.zeros(3, L, dtype=torch.long), everything_open, None), logits.argmax(-1))


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return decoding_vlm()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)


def decode(vlm: VLM, batch: Batch, bigrams: Bigrams | None, recorder: TrajectoryRecorder | None = None, **changes) -> DecodeResult:
    config = DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "denoising_steps": 1, **changes})
    return BlockSampler(vlm, SPECIAL, config, bigrams=bigrams).generate(batch, recorder)


@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize(("grid", "mode"), [("response", "causal"), ("absolute", "block_causal"), ("absolute", "full")])
def test_fused_is_vanilla_is_uncached_and_a_batch_is_its_samples(vlm, batch, grid, mode, gate):
    common = {"grid": grid, "context_attention": mode, "gate": gate}
    expected = decode(vlm, batch, counted(), kv_cache="none", **common)
    alone = decode(vlm, batch, None, **common)
    assert any(not torch.equal(a, b) for a, b in zip(alone.tokens, expected.tokens, strict=True)), "the example is trivial"
    for kv_cache in ("vanilla", "fused"):
        result = decode(vlm, batch, counted(), kv_cache=kv_cache, **common)
        assert all(torch.equal(a, b) for a, b in zip(result.tokens, expected.tokens, strict=True))
        if not gate:
            assert torch.equal(result.nfe_B - result.kv_write_nfe_B, result.blocks_B), "not a forward more"
    for row in range(len(batch)):
        assert torch.equal(decode(vlm, rows_of(batch, row), counted(), **common).tokens[0], expected.tokens[row])


def test_the_token_before_a_block_counts(vlm, batch):
    """Every block's path, computed again from the logits of a recorder and the last token of the block before it."""
    table = counted()
    recorder = TrajectoryRecorder(distributions=True)
    decode(vlm, batch, table, recorder)
    for trajectory in recorder.trajectories(batch.keys):
        assert trajectory.target_RV is not None
        before = None
        for tokens, log_p in zip(trajectory.token_R.split(L), trajectory.target_RV.log().split(L), strict=True):
            everything_open = torch.ones(1, L, dtype=torch.bool)
            assert table.best_path(log_p[None], tokens[None], everything_open, before).tolist() == [tokens.tolist()]
            before = tokens[-1:]


def test_a_gate_is_decided_without_bigrams():
    """Each position is sure of its own token, the pair of them is not; both are committed, as they would be alone."""
    table = Bigrams.count([torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 1])], 2, weight=5.0)
    logits = torch.tensor([[[0.60, 0.40], [0.55, 0.45]]]).log()
    way = DecodeConfig(block_size=2, max_response_tokens=2, denoising_steps=1, gate=0.5)
    state = BlockState(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool))
    done = commit(logits, state, CommitRule(way, torch.empty(0, dtype=torch.long), path=table.best_path))
    assert done.state.block_ids_AL.tolist() == [[0, 1]]
    assert done.committed_AL.all()


def test_no_pair_spans_prompt_and_response():
    """The first two tokens end the prompt: what follows them is chosen as if nothing stood there."""
    table, V = counted(10, weight=2.0), 10
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 6, V, generator=generator)
    canvas = torch.randint(0, V, (3, 6), generator=generator)
    open_ = torch.ones(3, 6, dtype=torch.bool)
    open_[:, :2] = False
    found = table.best_path(logits, canvas, open_, first_A=torch.full((3,), 2))
    alone = table.best_path(logits[:, 2:], canvas[:, 2:], open_[:, 2:])
    assert torch.equal(found, torch.cat([canvas[:, :2], alone], dim=1))
    assert not torch.equal(found, table.best_path(logits, canvas, open_)), "the example must not be trivial"


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_stage_3_decodes_with_what_its_trajectories_hold(tmp_path, temperature):
    reports = [[20, 21, 20, 21], [21, 20, 22, 20]]
    store = write_tokens(tmp_path / "store", reports, TEXT.fingerprint)
    choice = TokenChoice(temperature=temperature)
    student = StudentDecode(bigrams=0.5, min_count=2, repeats=False)
    options = {"trajectories": str(store), "student": student, "decode": replace(DECODE, token_choice=choice)}
    if temperature:
        with pytest.raises(ValueError, match=r"student\.bigrams=0.5 needs greedy tokens: .*, got 0.5"):
            dcd(TEXT, None, **options)
        return
    module = dcd(replace(TEXT, word_starts=lambda: [20, 22]), None, **options)
    module.trainer = trainer(tmp_path, 1)
    module.configure_model()
    expected = Bigrams.count([torch.tensor(report) for report in reports], VOCABULARY, 0.5, min_count=2)
    for sampler in (module.sampler, module.make_student_sampler(block_size=4)):
        assert sampler.bigrams is not None
        assert sampler.bigrams.weight == 0.5
        assert torch.equal(sampler.bigrams.pair_N, expected.pair_N)
        assert sampler.bigrams.once_V is not None
        assert sampler.bigrams.once_V.nonzero().flatten().tolist() == [20, 22]
    assert module.make_sampler(module.model).bigrams is None, "the teacher's"


@pytest.mark.parametrize(
    "changes",
    [{"denoising_steps": None}, {"compile": True}, {"token_choice": TokenChoice(temperature=0.5)}],
)
def test_decodes_without_use_for_bigrams_raise(vlm, batch, changes):
    with pytest.raises(ValueError, match="bigrams are for eager, greedy decoding in one step: denoising_steps=1"):
        decode(vlm, batch, counted(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"weight": 0.0}, "leave them out"), ({"weight": -1.0}, "at least 0"), ({"candidates": 0}, "at least one")],
)
def test_invalid_tables_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(counted(), **changes)


@pytest.mark.parametrize(
    ("reports", "message"),
    [([], "no pairs"), ([torch.tensor([1])], "no pairs"), ([torch.tensor([1, 9])], "tokens from 1 to 9, and the vocabulary has 9")],
)
def test_reports_that_cannot_be_counted_raise(reports, message):
    with pytest.raises(ValueError, match=message):
        Bigrams.count(reports, 9, 1.0)
