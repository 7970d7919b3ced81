"""The autoregressive decoder against the library's own greedy ``generate`` on the same weights, and against itself in batches."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from flash_stand_in import flash_on_cpu  # noqa: F401
from models import SPECIAL, decoding_vlm, make_batch, rows_of, stock_network

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import autoregressive_sequence
from echo_pl.sampling import AutoregressiveSampler, TokenChoice, TrajectoryRecorder
from echo_pl.structs import Batch

LIMIT = 24


@pytest.fixture(scope="module", params=["stock", "one_piece"])
def vlm(request) -> VLM:
    """In training a model decodes through the stock class, frozen through the text decoder."""
    vlm = decoding_vlm().requires_grad_(request.param == "stock")
    with torch.no_grad():
        vlm.network.lm_head.weight[SPECIAL.eos] *= 1.6
    return vlm


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14, 10, 13], [10, 7, 5, 6, 4, 3], seed=8, dtype=torch.float64)


def test_reports_are_those_of_the_library_s_generate(vlm, batch):
    result = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    network = stock_network(vlm)
    for row in range(len(batch)):
        sample = rows_of(batch, row)
        generated = network.generate(
            input_ids=sample.context_ids_BP,
            attention_mask=torch.ones_like(sample.context_ids_BP),
            mm_token_type_ids=(sample.context_ids_BP == SPECIAL.image).int(),
            pixel_values=sample.pixel_values,
            image_grid_thw=sample.image_grid_thw,
            max_new_tokens=LIMIT,
            do_sample=False,
            suppress_tokens=list(SPECIAL.never_sampled),
            eos_token_id=SPECIAL.eos,
            pad_token_id=SPECIAL.pad,
        )[0, sample.context_ids_BP.shape[1] :]
        ended = SPECIAL.eos in generated.tolist()
        expected = generated[: generated.tolist().index(SPECIAL.eos)] if ended else generated
        assert torch.equal(result.tokens[row], expected)
        assert bool(result.stopped_B[row]) == ended
    assert 0 < int(result.stopped_B.sum()) < len(batch), "the example must have both kinds of reports"


@pytest.mark.slow
@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", get_args(AttentionBackend))
def test_every_attention_backend_decodes_the_same(monkeypatch, vlm, batch, attention):
    expected = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    monkeypatch.setattr(vlm, "decode_attention", attention)
    got = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    assert [tokens.tolist() for tokens in got.tokens] == [tokens.tolist() for tokens in expected.tokens]
    assert torch.equal(got.nfe_B, expected.nfe_B)


def test_sequence_logits_are_those_of_the_library_without_any_mask_or_position(vlm):
    """Our explicit causal rule and M-RoPE positions are what the stock class makes by itself."""
    batch = make_batch([10, 10], [8, 8], dtype=torch.float64)
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    ids = sequence.input_ids_BT
    with torch.no_grad():
        ours = vlm(
            ids,
            vlm.sequence_positions(sequence, batch.image_grid_thw),
            sequence.rule,
            images=batch.images,
        )
        theirs = stock_network(vlm)(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == SPECIAL.image).int(),
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.image_grid_thw,
        ).logits
    assert float((ours - theirs).abs().max()) < 1e-10 * float(theirs.abs().max())


def test_a_batch_is_its_samples_one_at_a_time(vlm, batch):
    recorder = TrajectoryRecorder(distributions=True)
    together = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch, recorder)
    trajectories = recorder.trajectories(batch.keys)
    for row in range(len(batch)):
        alone_recorder = TrajectoryRecorder(distributions=True)
        alone = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(rows_of(batch, row), alone_recorder)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        for name in ("stopped_B", "looped_B", "nfe_B", "written_B"):
            assert int(getattr(together, name)[row]) == int(getattr(alone, name)[0]), name
        one, other = trajectories[row], alone_recorder.trajectories([batch.keys[row]])[0]
        assert float((one.target_RV - other.target_RV).abs().max()) < 1e-10


def test_tokens_per_forward_are_exactly_one_for_reports_that_end(vlm, batch):
    result = AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch)
    for length, nfe, stopped, written in zip(
        result.lengths_B.tolist(), result.nfe_B.tolist(), result.stopped_B.tolist(), result.written_B.tolist(), strict=True
    ):
        # The first token comes out of prefill; eos takes the forward that it saves.
        assert nfe == (length if stopped else length - 1)
        assert written == length + stopped
    assert result.kv_write_nfe_B.tolist() == [0] * len(batch)
    assert result.block_size == 1
    assert result.forwards == int(result.nfe_B.max())


def test_sampled_tokens_differ_from_greedy_ones_and_are_reproducible(vlm, batch):
    def drawn(seed: int) -> list[list[int]]:
        choice = TokenChoice(temperature=1.5, seed=seed)
        return [t.tolist() for t in AutoregressiveSampler(vlm, SPECIAL, LIMIT, token_choice=choice).generate(batch).tokens]

    greedy = [t.tolist() for t in AutoregressiveSampler(vlm, SPECIAL, LIMIT).generate(batch).tokens]
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0) != greedy


def test_a_limit_below_one_raises(vlm):
    with pytest.raises(ValueError, match="max_response_tokens must be at least 1, got 0"):
        AutoregressiveSampler(vlm, SPECIAL, 0)
