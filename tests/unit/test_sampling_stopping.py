"""End of a decode, cut tokens and counts, for scripted predictions."""

from __future__ import annotations

import pytest
from scripted import SPECIAL, ScriptedVLM, contexts

from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, LoopStop, TrajectoryRecorder
from echo_pl.structs import DecodeResult

E = SPECIAL.eos
WORDS = list(range(10, 110))
L = 4


def decode(scripts: list[list[int]], limit: int = 16, context: list[int] | None = None, **options) -> DecodeResult:
    config = DecodeConfig(**{"block_size": L, "max_response_tokens": limit, "denoising_steps": 1, **options})
    return BlockSampler(ScriptedVLM(scripts), SPECIAL, config).generate(contexts(context or [5] * len(scripts)))


@pytest.mark.parametrize(("kv_cache", "writes"), [("fused", 0), ("vanilla", 1), ("none", 0)])
def test_stops_in_the_block_of_the_first_eos_and_cuts_there(kv_cache, writes):
    result = decode([[*WORDS[:5], E, 90, 91, *WORDS[:8]]], kv_cache=kv_cache)
    assert result.tokens[0].tolist() == WORDS[:5]
    assert result.stopped_B.tolist() == [True]
    assert result.looped_B.tolist() == [False]
    assert result.written_B.tolist() == [8], "published tables count the tokens after eos"
    assert result.nfe_B.tolist() == [2 + writes]
    assert result.kv_write_nfe_B.tolist() == [writes]
    assert result.lengths_B.tolist() == [5]
    assert result.block_size == L


ABSOLUTE = {"grid": "absolute", "limit": 8}
LOOP_OF_18 = LoopStop(min_tokens=18, min_repeats=4)
CASES = {  # scripts, lengths of the contexts, options; tokens, stopped, nfe, written
    "eos at once": ([[E, *WORDS[:3]]], [5], {}, [[]], [True], [1], [4]),
    "the limit is no stop": ([WORDS], [5], {"limit": 12}, [WORDS[:12]], [False], [3], [12]),
    "eos in the last place": ([[*WORDS[:11], E]], [5], {"limit": 12}, [WORDS[:11]], [True], [3], [12]),
    "each sample of a batch": (
        [[*WORDS[:6], E, E], [E] * 4, WORDS, [*WORDS[:8], E]], [5, 7, 3, 6], {},
        [WORDS[:6], [], WORDS[:16], WORDS[:8]], [True, True, False, True], [2, 1, 4, 3], [8, 4, 16, 12],
    ),
    "eos in a loop": ([[10] * 17 + [E]], [5], {"limit": 40, "loop_stop": LOOP_OF_18}, [[10] * 17], [True], [5], [20]),
    # Absolute grid: places are counted from the grid's block. Tails of 2, 0 and 3; only samples with a tail need a third block.
    "the limit with any tail": (
        [[0, 0, *WORDS], WORDS, [0, 0, 0, *WORDS]], [6, 8, 7], ABSOLUTE,
        [WORDS[:8]] * 3, [False] * 3, [3, 2, 3], [10, 8, 9],
    ),
    "eos beyond the limit": ([[0, 0, *WORDS[:9], E]], [6], ABSOLUTE, [WORDS[:8]], [False], [3], [10]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_where_a_report_ends(case):
    scripts, context, options, tokens, stopped, nfe, written = CASES[case]
    result = decode(scripts, context=context, **options)
    assert [report.tolist() for report in result.tokens] == tokens
    assert result.stopped_B.tolist() == stopped
    assert not result.looped_B.any()
    assert result.nfe_B.tolist() == nfe
    assert result.forwards == max(nfe)
    assert result.written_B.tolist() == written


def test_a_repetition_loop_is_stopped_and_reported():
    loop = [10, 11, *[12, 13] * 20]
    result = decode([loop, WORDS], limit=40)
    # Sixteen tokens of period two end with the fifth block; loops are looked for after 16, 32 ... tokens.
    assert result.looped_B.tolist() == [True, False]
    assert result.stopped_B.tolist() == [False, False]
    assert result.tokens[0].tolist() == loop[:32]
    assert result.nfe_B[0] == 8
    unstopped = decode([loop], limit=40, loop_stop=LoopStop(enabled=False))
    assert unstopped.looped_B.tolist() == [False]
    assert unstopped.nfe_B.tolist() == [10]


@pytest.mark.parametrize("limit", [20, 28])
def test_a_loop_at_the_limit_is_reported(limit):
    result = decode([[10, 11, *[12, 13] * 20]], limit=limit)
    assert result.looped_B.tolist() == [True]
    assert len(result.tokens[0]) == limit


def test_a_loop_at_the_limit_is_reported_in_any_batch():
    """On the absolute grid a neighbour with a context tail makes one block more for the batch."""
    loop = [10, 11, *[12, 13] * 20]
    config = DecodeConfig(block_size=L, max_response_tokens=20, denoising_steps=1, grid="absolute")
    result = BlockSampler(ScriptedVLM([loop, [0, 0, *WORDS]]), SPECIAL, config).generate(contexts([8, 6]))
    assert result.looped_B.tolist() == [True, False]


def test_an_eos_among_the_context_tail_does_not_end_a_report():
    """Absolute grid: the first block begins with context tokens, which may be anything (a chat template ends turns with eos)."""
    batch = contexts([6])
    batch.context_ids_BP[0, 4:] = E
    config = DecodeConfig(block_size=L, max_response_tokens=8, denoising_steps=1, grid="absolute")
    vlm = ScriptedVLM([[0, 0, *WORDS[:3], E]])  # places are counted from the grid's block, two of them tail
    result = BlockSampler(vlm, SPECIAL, config).generate(batch)
    assert result.tokens[0].tolist() == WORDS[:3]
    assert result.stopped_B.tolist() == [True]
    assert result.written_B.tolist() == [6]


def autoregressive(scripts: list[list[int]], limit: int, **options) -> DecodeResult:
    vlm = ScriptedVLM(scripts, shift=1)
    return AutoregressiveSampler(vlm, SPECIAL, limit, **options).generate(contexts([5, 3, 4][: len(scripts)]))


def test_autoregressive_decoding_stops_at_eos():
    result = autoregressive([[*WORDS[:4], E, 90], [E], WORDS], limit=10)
    assert [tokens.tolist() for tokens in result.tokens] == [WORDS[:4], [], WORDS[:10]]
    assert result.stopped_B.tolist() == [True, True, False]
    assert result.nfe_B.tolist() == [4, 0, 9]
    assert result.written_B.tolist() == [5, 1, 10]
    assert result.forwards == 9


def test_autoregressive_decoding_stops_in_a_loop():
    loop = [10, 11, *[12] * 60]
    result = autoregressive([loop, WORDS], limit=50)
    assert result.looped_B.tolist() == [True, False]
    assert result.stopped_B.tolist() == [False, False]
    assert result.tokens[0].tolist() == loop[: len(result.tokens[0])]
    # Sixteen equal tokens end at place 18; the decoder looks every sixteen.
    assert len(result.tokens[0]) == 32


def test_static_commits_fall_in_confidence():
    """Confidences rise from right to left, so two steps commit the right half first."""
    vlm = ScriptedVLM([[*WORDS[:3], E]], margin=[3.0, 4.0, 5.0, 6.0])
    config = DecodeConfig(block_size=L, max_response_tokens=4, denoising_steps=2, remasking="low_confidence_static")
    recorder = TrajectoryRecorder()
    result = BlockSampler(vlm, SPECIAL, config).generate(contexts([5]), recorder)
    assert recorder.trajectories(["study-0"])[0].commit_step_R.tolist() == [2, 2, 1, 1]
    assert result.tokens[0].tolist() == WORDS[:3]
    assert result.nfe_B.tolist() == [2]


def test_dynamic_commits_every_confident_position():
    margin = [9.0, 1.0, 9.0, 2.0]
    vlm = ScriptedVLM([[*WORDS[:3], E]], margin=margin)
    config = DecodeConfig(block_size=L, max_response_tokens=4, confidence_threshold=0.9)
    recorder = TrajectoryRecorder()
    BlockSampler(vlm, SPECIAL, config).generate(contexts([5]), recorder)
    assert recorder.trajectories(["study-0"])[0].commit_step_R.tolist() == [1, 3, 1, 2]
