"""The distillation objectives against docs/explain/method.md, written again with loops over single positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.objectives import (
    CertaintyForcing,
    DirectConditional,
    Discriminative,
    NestedConsistency,
    Objective,
    PseudoLabels,
    Rows,
    SequenceLevel,
    TrajectoryOrder,
)

L, V, EOS = 8, 11, 1
KEYS = tuple(f"study-{row}" for row in range(12))
WITH_MASKS: tuple[Objective, ...] = (
    CertaintyForcing(),
    CertaintyForcing(mask_draw="bernoulli"),
    NestedConsistency(),
    NestedConsistency(mask_draw="bernoulli"),
    TrajectoryOrder(),
    TrajectoryOrder(ties="left"),
    TrajectoryOrder(ties="step"),
    Discriminative(share_min=0.2, share_max=0.9),
)


def make_labels(blocks: Sequence[int], tail: Sequence[int] | None = None, seed: int = 0) -> PseudoLabels:
    """Random trajectories of ``blocks[b]`` whole blocks, the first ``tail[b]`` positions of which are context."""
    B, R = len(blocks), max(blocks) * L
    generator = torch.Generator().manual_seed(seed)
    supervised = torch.zeros(B, R, dtype=torch.bool)
    step = torch.zeros(B, R, dtype=torch.long)
    for row, n in enumerate(blocks):
        supervised[row, (0 if tail is None else tail[row]) : n * L] = True
        # Drawn sample by sample, so that a sample has the same trajectory in any batch.
        own = torch.Generator().manual_seed(1000 + row)
        step[row, : n * L] = torch.randint(1, 5, (n * L,), generator=own)
    return PseudoLabels(
        token_BR=torch.randint(0, V, (B, R), generator=generator),
        commit_step_BR=step * supervised,
        supervised_BR=supervised,
        block_size=L,
    )


def generators(keys: Sequence[str] = KEYS, epoch: int = 0) -> list[torch.Generator]:
    return [sample_generator(0, key, epoch) for key in keys]


def make_rows(M: int = 40, copies: int = 2, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def whole(high: int) -> Tensor:
        return torch.randint(0, high, (M,), generator=generator)

    logits = 2 * torch.randn(M, V, generator=generator, dtype=torch.float32)
    token = whole(V)
    token[::3] = logits.argmax(-1)[::3]  # some are right already
    return Rows(
        logits_MV=logits.requires_grad_(),
        token_M=token,
        commit_step_M=whole(4) + 1,
        sample_M=whole(3).sort().values,
        copy_M=whole(copies),
        block_M=whole(2),
        eos=EOS,
        reference_logits_MV=2 * torch.randn(M, V, generator=generator),
        reference_masked_M=torch.rand(M, generator=generator) < 0.5,
    )


def softmax(logits: Tensor, temperature: float = 1.0) -> list[float]:
    weights = [math.exp(z / temperature) for z in logits.tolist()]
    return [w / sum(weights) for w in weights]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def cross_entropies(rows: Rows, chosen: Sequence[int]) -> list[float]:
    return [-math.log(softmax(rows.logits_MV[i])[rows.token_M[i]]) for i in chosen]


def right_entropies(rows: Rows, chosen: Sequence[int], temperature: float) -> list[float]:
    """Entropies of softmax(z / temperature) where the argmax is the pseudo-label."""
    found = []
    for i in chosen:
        if int(rows.logits_MV[i].argmax()) == int(rows.token_M[i]):
            found.append(-sum(p * math.log(p) for p in softmax(rows.logits_MV[i], temperature)))
    return found


def of_copy(rows: Rows, k: int) -> list[int]:
    return [i for i in range(len(rows.copy_M)) if int(rows.copy_M[i]) == k]


# Losses


def test_dparallel_is_cross_entropy_and_certainty_of_both_copies():
    rows = make_rows()
    expected = 0.0
    for k in (0, 1):
        expected += mean(cross_entropies(rows, of_copy(rows, k)))
        expected += 2.0 * mean(right_entropies(rows, of_copy(rows, k), 0.5))
    loss, parts = CertaintyForcing().loss(rows, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert set(parts) == {"ce", "entropy", "right"}
    loss.backward()
    assert rows.logits_MV.grad.abs().sum() > 0


def test_dparallel_without_right_answers_or_without_a_second_copy():
    rows = make_rows(copies=1)
    wrong = replace(rows, token_M=(rows.logits_MV.argmax(-1) + 1) % V)
    loss, parts = CertaintyForcing().loss(wrong, 0.0)
    assert loss.item() == pytest.approx(mean(cross_entropies(wrong, range(40))), rel=1e-5)
    assert parts["entropy"] == 0
    assert parts["right"] == 0
    loss.backward()
    assert torch.isfinite(rows.logits_MV.grad).all()


def test_d3llm_has_certainty_on_the_first_copy_only_and_is_divided_by_four():
    rows = make_rows()
    ce = [mean(cross_entropies(rows, of_copy(rows, k))) for k in (0, 1)]
    expected = (ce[0] + ce[1] + 2 * mean(right_entropies(rows, of_copy(rows, 0), 0.5))) / 4
    loss, _ = TrajectoryOrder().loss(rows, 0.3)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kl_positions", ["both", "student"])
def test_dscd_is_tempered_kl_and_cross_entropy(kl_positions: str):
    rows = make_rows(copies=1)
    T, weight = 2.0, 0.7
    kls = []
    for i in range(len(rows.token_M)):
        if kl_positions == "student" or bool(rows.reference_masked_M[i]):
            q, p = softmax(rows.reference_logits_MV[i], T), softmax(rows.logits_MV[i], T)
            kls.append(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)))
    expected = weight * T**2 * mean(kls) + (1 - weight) * mean(cross_entropies(rows, range(len(rows.token_M))))
    loss, parts = NestedConsistency(kl_positions=kl_positions).loss(rows, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert parts["kl"].item() == pytest.approx(T**2 * mean(kls), rel=1e-5)


def test_dscd_survives_ids_that_the_teacher_never_emits():
    rows = make_rows(copies=1)
    rows = replace(rows, reference_logits_MV=rows.reference_logits_MV.index_fill(1, torch.tensor([4]), -torch.inf))
    loss, _ = NestedConsistency().loss(rows, 0.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(rows.logits_MV.grad).all()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("mean_over", ["sample", "block"])
@pytest.mark.parametrize("weighted", ["none", "linear"])
def test_ddo_compares_real_and_fake_tokens_with_the_reference(mean_over: str, weighted: str):
    rows = make_rows(copies=1)
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(rows.token_M)):
        block = int(rows.block_M[i]) if mean_over == "block" else 0
        groups.setdefault((int(rows.sample_M[i]), block), []).append(i)
    terms = []
    for chosen in groups.values():
        real, fake = [], []
        for i in chosen:
            phi, ref = softmax(rows.logits_MV[i]), softmax(rows.reference_logits_MV[i])
            token, guess = int(rows.token_M[i]), ref.index(max(ref))
            real.append(math.log(phi[token]) - math.log(ref[token]))
            fake.append(math.log(phi[guess]) - math.log(ref[guess]))
        terms.append(-math.log(sigmoid(0.1 * mean(real))) - 0.5 * math.log(1 - sigmoid(0.1 * mean(fake))))
    weight = [float(s) if weighted == "linear" else 1.0 for s in rows.commit_step_M]
    ce = cross_entropies(rows, range(len(rows.token_M)))
    path = sum(w * c for w, c in zip(weight, ce, strict=True)) / sum(weight)
    loss, parts = Discriminative(mean_over=mean_over, path_step_weight=weighted).loss(rows, 0.0)
    assert loss.item() == pytest.approx(mean(terms) + 0.2 * path, rel=1e-5)
    assert parts["path_ce"].item() == pytest.approx(path, rel=1e-5)


def test_ddo_at_the_reference_has_its_closed_form():
    """Both ratios are zero: log 2 for the real tokens, half of it for the fake ones, and the path CE."""
    rows = make_rows(copies=1)
    never = torch.tensor([4, 9])
    reference = rows.logits_MV.detach().index_fill(1, never, -torch.inf)
    token = torch.where(rows.token_M == 4, 0, torch.where(rows.token_M == 9, 0, rows.token_M))
    rows = replace(rows, reference_logits_MV=reference, token_M=token)
    loss, parts = Discriminative().loss(rows, 0.0)
    assert parts["real"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert parts["fake"].item() == pytest.approx(math.log(2), abs=1e-6)
    path = mean(cross_entropies(rows, range(len(token))))
    assert loss.item() == pytest.approx(1.5 * math.log(2) + 0.2 * path, rel=1e-5)
    loss.backward()
    assert torch.isfinite(rows.logits_MV.grad).all()


def test_ddo_prefers_real_tokens_and_leaves_fake_ones():
    """One step against the gradient raises the teacher's tokens above the reference's guesses."""
    rows = make_rows(copies=1)
    fake = rows.reference_logits_MV.argmax(-1)
    rows = replace(rows, token_M=(fake + 1) % V)
    loss, _ = Discriminative(path_weight=0.0).loss(rows, 0.0)
    loss.backward()
    gradient = rows.logits_MV.grad
    assert (gradient.gather(1, rows.token_M[:, None]) < 0).all()
    assert (gradient.gather(1, fake[:, None]) > 0).all()


def test_sdtt_is_plain_kl_to_the_stitched_targets():
    from echo_pl.diffusion.losses import DistillationConfig

    rows = make_rows(copies=1)
    target = torch.randn(40, V).softmax(-1)
    kls = []
    for i in range(40):
        p = softmax(rows.logits_MV[i])
        kls.append(sum(q * math.log(q / b) for q, b in zip(target[i].tolist(), p, strict=True)))
    objective = DirectConditional(config=DistillationConfig(step_weight="none", eos_weight=0.0), name="sdtt")
    loss, _ = objective.loss(replace(rows, target_MV=target), 0.0)
    assert loss.item() == pytest.approx(mean(kls), rel=1e-4)


# Masks


@pytest.mark.parametrize("objective", WITH_MASKS, ids=repr)
def test_masks_do_not_depend_on_the_batch_or_its_padding(objective: Objective):
    """A short sample gets the same masks alone and beside a longer one; another epoch or key gets others."""
    blocks = [3, 5, 9]
    together = make_labels(blocks, tail=[2, 0, 0])
    for ask in (objective.student_masks, objective.teacher_masks):
        masks = ask(together, 0.5, generators(KEYS[:3]))
        if masks is None:
            continue
        for row, n in enumerate(blocks):
            alone = PseudoLabels(
                token_BR=together.token_BR[row : row + 1, : n * L],
                commit_step_BR=together.commit_step_BR[row : row + 1, : n * L],
                supervised_BR=together.supervised_BR[row : row + 1, : n * L],
                block_size=L,
            )
            assert torch.equal(ask(alone, 0.5, generators(KEYS[row : row + 1])), masks[row : row + 1, :, : n * L])
        assert not masks[0, :, 3 * L :].any()
        assert torch.equal(ask(together, 0.5, generators(KEYS[:3])), masks)
    many = make_labels([6] * 12)
    first = objective.student_masks(many, 0.0, generators())
    assert not torch.equal(first, objective.student_masks(many, 0.0, generators(epoch=1)))


@pytest.mark.parametrize("objective", WITH_MASKS, ids=repr)
def test_masks_keep_to_what_is_supervised_and_reach_every_block(objective: Objective):
    labels = make_labels([4, 2, 7, 0], tail=[3, 7, 0, 0])
    for masks in (
        objective.student_masks(labels, 0.0, generators(KEYS[:4])),
        objective.teacher_masks(labels, 0.0, generators(KEYS[:4])),
    ):
        if masks is None:
            continue
        assert masks.dtype == torch.bool
        assert not (masks & ~labels.supervised_BR[:, None]).any()
        some = masks[:, 0].unflatten(1, (-1, L)).any(-1)
        assert torch.equal(some, labels.supervised_BR.unflatten(1, (-1, L)).any(-1))


@pytest.mark.parametrize("objective", [o for o in WITH_MASKS if isinstance(o, CertaintyForcing | TrajectoryOrder)], ids=repr)
def test_two_copies_are_complementary(objective: Objective):
    labels = make_labels([5, 3, 4], tail=[0, 5, 0])
    masks = objective.student_masks(labels, 0.4, generators(KEYS[:3]))
    assert masks.shape == (3, 2, 5 * L)
    assert torch.equal(masks[:, 0] ^ masks[:, 1], labels.supervised_BR)
    assert not (masks[:, 0] & masks[:, 1]).any()


def shares(masks_BR: Tensor) -> Tensor:
    return masks_BR.unflatten(1, (-1, L)).float().mean(-1).flatten()


def test_dparallel_masks_half_of_every_block_with_no_preferred_place():
    labels = make_labels([40] * 12)
    masks = CertaintyForcing().student_masks(labels, 0.0, generators())
    assert (shares(masks[:, 0]) == 0.5).all()
    by_place = masks[:, 0].unflatten(1, (-1, L)).float().mean((0, 1))
    assert (by_place - 0.5).abs().max() < 0.1
    loose = shares(CertaintyForcing(mask_draw="bernoulli").student_masks(labels, 0.0, generators())[:, 0])
    assert loose.mean().item() == pytest.approx(0.5, abs=0.03)
    assert loose.unique().numel() > 3


@pytest.mark.parametrize("mask_draw", ["exact", "bernoulli"])
def test_dscd_masks_are_nested_and_in_range(mask_draw: str):
    labels = make_labels([40] * 12)
    objective = NestedConsistency(mask_draw=mask_draw)
    student = objective.student_masks(labels, 0.0, generators())
    teacher = objective.teacher_masks(labels, 0.0, generators())
    assert student.shape == teacher.shape == (12, 1, 40 * L)
    assert not (teacher & ~student).any()
    # r_S ~ U(.4, .9); r_T = clip(r_S U(.3, .7), .1, .6): no clipping at these ends, so its mean is .65 * .5.
    s, t = shares(student[:, 0]), shares(teacher[:, 0])
    assert s.mean().item() == pytest.approx(0.65, abs=0.02)
    assert t.mean().item() == pytest.approx(0.325, abs=0.03)
    if mask_draw == "exact":
        assert (s * L).unique().tolist() == [3, 4, 5, 6, 7]  # round(.4 L) to round(.9 L)
        assert (t * L).unique().tolist() == [1, 2, 3, 4, 5]  # round(.12 L) to round(.6 L)


@pytest.mark.parametrize("ties", ["random", "left", "step"])
def test_d3llm_masks_what_the_teacher_had_not_committed_yet(ties: str):
    labels = make_labels([40] * 12)
    steps = labels.commit_step_BR.unflatten(1, (-1, L)).flatten(0, 1)
    masks = TrajectoryOrder(ties=ties).student_masks(labels, 0.0, generators())[:, 0]
    for mask, step in zip(masks.unflatten(1, (-1, L)).flatten(0, 1), steps, strict=True):
        masked, open_ = step[mask].tolist(), step[~mask].tolist()
        if ties == "step":
            assert not open_ or min(masked) > max(open_)
        else:
            assert min(masked) >= max(open_)
            assert 1 <= len(masked) <= round(0.8 * L)
        if ties == "left":
            tied = [place for place in range(L) if int(step[place]) == min(masked)]
            assert [place for place in tied if mask[place]] == tied[len(tied) - sum(s == min(masked) for s in masked) :]


def test_d3llm_masks_more_as_training_proceeds():
    labels = make_labels([40] * 12)
    means = []
    for progress in (0.0, 0.5, 1.0):
        masked = shares(TrajectoryOrder().student_masks(labels, progress, generators())[:, 0])
        # r ~ U(.8 progress, .8), rounded to whole positions, at least one.
        assert (masked * L).unique().tolist() == list(range(max(1, round(0.8 * progress * L)), round(0.8 * L) + 1))
        means.append(masked.mean().item())
    assert means[0] == pytest.approx(0.4, abs=0.03)
    assert means[1] == pytest.approx(0.6, abs=0.03)
    assert means[2] == round(0.8 * L) / L


def test_one_step_objectives_mask_everything_and_ask_no_teacher():
    labels = make_labels([3, 2])
    for objective in (DirectConditional(), SequenceLevel()):
        assert objective.student_masks(labels, 0.0, generators(KEYS[:2])).all()
        assert objective.teacher_masks(labels, 0.0, generators(KEYS[:2])) is None
    ddo = Discriminative()
    masks = ddo.student_masks(labels, 0.0, generators(KEYS[:2]))
    assert torch.equal(masks[:, 0], labels.supervised_BR)
    assert torch.equal(ddo.teacher_masks(labels, 0.0, generators(KEYS[:2])), masks)


def test_blocks_of_one_token():
    labels = replace(make_labels([1, 1]), block_size=1)
    for objective in WITH_MASKS:
        masks = objective.student_masks(labels, 0.5, generators(KEYS[:2]))
        assert torch.equal(masks[:, 0], labels.supervised_BR)


# Options


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (CertaintyForcing, {"beta": -1.0}, "beta must not be negative, got -1.0"),
        (CertaintyForcing, {"mask_share": 1.0}, r"mask_share must be in \(0, 1\), got 1.0"),
        (CertaintyForcing, {"entropy_temperature": 0.0}, "entropy_temperature must be positive, got 0.0"),
        (CertaintyForcing, {"mask_draw": "half"}, "mask_draw must be one of .*, got 'half'"),
        (TrajectoryOrder, {"share_max": 1.1}, "got 0.0 and 1.1"),
        (TrajectoryOrder, {"ties": "right"}, "ties must be one of .*, got 'right'"),
        (TrajectoryOrder, {"entropy_weight": -2.0}, "entropy_weight must not be negative, got -2.0"),
        (NestedConsistency, {"student_min": 0.95}, "got 0.95 and 0.9"),
        (NestedConsistency, {"teacher_min": 0.5}, "teacher_min must not exceed student_min.* got 0.5 and 0.4"),
        (NestedConsistency, {"kl_weight": 1.5}, r"kl_weight must be in \[0, 1\], got 1.5"),
        (NestedConsistency, {"kl_positions": "teacher"}, "kl_positions must be one of .*, got 'teacher'"),
        (NestedConsistency, {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        (Discriminative, {"beta": 0.0}, "beta must be positive, got 0.0"),
        (Discriminative, {"alpha": -0.5}, "got -0.5 and 0.2"),
        (Discriminative, {"mean_over": "batch"}, "mean_over must be one of .*, got 'batch'"),
        (Discriminative, {"path_step_weight": "late"}, "path_step_weight must be one of .*, got 'late'"),
        (Discriminative, {"share_min": 0.0}, "got 0.0 and 1.0"),
    ],
)
def test_bad_options_are_rejected_with_their_value(objective: type, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        objective(**changes)
