"""Several studies in one row compute what each computes in a row of its own, under every view of the rule.

float64 with norms in float64; 1e-10 is rounding alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flash_stand_in import flash_on_cpu  # noqa: F401
from method import Token, context_tokens, response_tokens, sees
from models import SPECIAL, exact_norms, make_batch, small_vlm
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import PADDING
from echo_pl.diffusion.packing import fill_rows, pack
from echo_pl.diffusion.sequence import (
    BlockLayout,
    TrainingSequence,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.structs import Batch

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

MODES = [("response", "causal"), ("response", "full"), ("response", "block_causal"), ("absolute", "block_causal")]
CONTEXTS, RESPONSES = [9, 17, 11, 13, 9], [10, 3, 22, 7, 12]
CAPACITIES = [1, 90, 100_000]
"""Tokens of a row: one study in each, two or three, all in one."""


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return exact_norms(small_vlm(torch.float64))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Five studies with other images, and other numbers of them: study 1 has three, study 3 has none."""
    made = make_batch(CONTEXTS, RESPONSES, dtype=torch.float64)
    context = made.context_ids_BP.clone()
    context[1, 6:10] = context[1, 11:15] = SPECIAL.image
    context[3, 1:5] = 7
    generator = torch.Generator().manual_seed(5)
    return replace(
        made,
        context_ids_BP=context,
        pixel_values=torch.randn(6 * 16, made.pixel_values.shape[1], generator=generator, dtype=torch.float64),
        image_grid_thw=torch.tensor([[1, 4, 4]]).repeat(6, 1),
    )


def rad(batch: Batch, grid: str, context_attention: str, copies: int) -> tuple[TrainingSequence, Tensor]:
    """A RAD sequence, and where logits are wanted."""
    layout = BlockLayout(block_size=4, grid=grid, context_attention=context_attention)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    clean = blocked.clean_ids_BR[:, None].expand(-1, copies, -1)
    masked = torch.rand(clean.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    sequence = rad_sequence(blocked, torch.where(masked, SPECIAL.mask, clean))
    return sequence, sequence.noisy_positions(masked & blocked.supervised_BR[:, None])


def autoregressive(batch: Batch) -> tuple[TrainingSequence, Tensor]:
    sequence = autoregressive_sequence(
        batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR, batch.response_lengths_B
    )
    P, T = sequence.context_width, sequence.input_ids_BT.shape[1]
    place = torch.arange(T)[None] - P
    return sequence, (place >= 0) & (place < batch.response_lengths_B[:, None])


def table(sequence: TrainingSequence, grouped: list[list[int]], block_size: int, context_attention: str) -> list[Tensor]:
    """The attention table for packed rows, written with loops: tokens of different studies do not attend to each other."""
    copies = sequence.noise_copies
    contexts, responses = sequence.context_lengths_B.tolist(), sequence.response_lengths_B.tolist()
    rows = []
    for studies in grouped:
        tokens: list[tuple[int, Token]] = []
        for b in studies:
            tokens += [(b, token) for token in context_tokens(contexts[b], contexts[b], block_size)]
        for b in studies:
            kinds = [("xt", k) for k in range(copies)] + [("x0", 0)]
            tokens += [(b, token) for kind, k in kinds for token in response_tokens(kind, responses[b], block_size, k)]
        seen = [[p == q and sees(one, other, context_attention) for q, other in tokens] for p, one in tokens]
        rows.append(torch.tensor(seen))
    return rows


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_the_dense_view_is_the_table_without_a_word_between_studies(batch, grid, mode, capacity):
    sequence, _ = rad(batch, grid, mode, copies=2)
    packing = pack(sequence, capacity)
    copies = [p + 3 * r for p, r in zip(sequence.context_lengths_B.tolist(), sequence.response_lengths_B.tolist(), strict=True)]
    grouped = fill_rows(copies, capacity)
    real_CW = packing.source_CW >= 0
    for row, expected in enumerate(table(sequence, grouped, 4, mode)):
        dense = packing.rule.dense_BQK[row]
        assert torch.equal(dense[real_CW[row]][:, real_CW[row]], expected)
        alone = dense[~real_CW[row]]  # padding sees itself, and nobody sees it
        assert torch.equal(alone[:, ~real_CW[row]], torch.eye(len(alone), dtype=torch.bool))
        assert not bool(alone[:, real_CW[row]].any())
        assert not bool(dense[real_CW[row]][:, ~real_CW[row]].any())


def compared(vlm: VLM, sequence: TrainingSequence, chosen: Tensor, batch: Batch, capacity: int, backend: str) -> tuple[Tensor, ...]:
    vlm.train_attention = "sdpa"
    alone = SequenceLogits()(vlm, sequence, batch.images, chosen)
    vlm.train_attention = backend
    return alone, SequenceLogits(capacity)(vlm, sequence, batch.images, chosen)


@pytest.mark.slow
@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flex", "flash_attn"])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_packed_logits_are_unpacked_logits(vlm, batch, grid, mode, capacity, backend):
    sequence, chosen = rad(batch, grid, mode, copies=2)
    with torch.no_grad():
        alone, packed = compared(vlm, sequence, chosen, batch, capacity, backend)
    assert len(alone) == int(chosen.sum()) > 20
    assert torch.allclose(packed, alone, rtol=0, atol=1e-10 * float(alone.abs().max()))


@pytest.mark.slow
@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flex", "flash_attn"])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_packed_autoregressive_logits_are_unpacked_logits(vlm, batch, capacity, backend):
    sequence, chosen = autoregressive(batch)
    with torch.no_grad():
        alone, packed = compared(vlm, sequence, chosen, batch, capacity, backend)
    assert torch.allclose(packed, alone, rtol=0, atol=1e-10 * float(alone.abs().max()))


def test_packed_autoregressive_rows_have_a_causal_sequence_per_study(batch):
    view = pack(autoregressive(batch)[0], 100_000).rule.varlen(1)
    assert view.causal_width == 0
    assert [(part.causal, len(part.query_ends) - 1) for part in view.parts] == [(True, 5), (False, 5), (True, 5)]


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flash_attn"])
@pytest.mark.parametrize(("grid", "mode"), MODES)
def test_packed_gradients_are_unpacked_gradients(vlm, batch, grid, mode, backend):
    sequence, chosen = rad(batch, grid, mode, copies=2)
    found = []
    for logits in compared(vlm, sequence, chosen, batch, 90, backend):
        vlm.zero_grad()
        (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).mean().backward()
        found.append({name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None})
    vlm.zero_grad()
    alone, packed = found
    assert alone.keys() == packed.keys()
    assert any("visual" in name for name in alone)
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for name in alone:
        assert float((alone[name] - packed[name]).abs().max()) <= 1e-10 * largest, name


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flash_attn"])
def test_a_study_without_a_response_may_share_a_row(vlm, batch, backend):
    sequence, chosen = rad(batch, "response", "causal", copies=1)
    lengths = sequence.response_lengths_B.clone()
    lengths[2] = 0
    chosen[2] = False
    sequence = replace(sequence, response_lengths_B=lengths)
    with torch.no_grad():
        alone, packed = compared(vlm, sequence, chosen, batch, 100_000, backend)
    assert torch.allclose(packed, alone, rtol=0, atol=1e-10 * float(alone.abs().max()))
    view = pack(sequence, 100_000).rule.varlen(1)
    assert [len(part.query_ends) - 1 for part in view.parts[:2]] == [5, 4]


def test_studies_without_images_are_packed(vlm):
    batch = make_batch([9, 12], [10, 7], dtype=torch.float64)
    context = batch.context_ids_BP.masked_fill(batch.context_ids_BP == SPECIAL.image, 7)
    batch = replace(batch, context_ids_BP=context, pixel_values=batch.pixel_values[:0], image_grid_thw=batch.image_grid_thw[:0])
    sequence, chosen = rad(batch, "response", "causal", copies=1)
    with torch.no_grad():
        alone, packed = compared(vlm, sequence, chosen, batch, 100_000, "sdpa")
    assert torch.allclose(packed, alone, rtol=0, atol=1e-10 * float(alone.abs().max()))


def test_shares_of_padding_are_counted(batch):
    sequence, chosen = rad(batch, "response", "causal", copies=2)
    logits = SequenceLogits(90)
    logits(exact_norms(small_vlm(torch.float64)), sequence, batch.images, chosen)
    own = sum(p + 3 * (-(-r // 4) * 4) for p, r in zip(CONTEXTS, RESPONSES, strict=True))
    assert logits.padding["train/padding_unpacked"] == pytest.approx(1 - own / (5 * (17 + 3 * 24)))
    rows = pack(sequence, 90).source_CW
    assert int((rows >= 0).sum()) == own
    assert logits.padding["train/padding"] == pytest.approx(1 - own / rows.numel())
    assert logits.padding["train/padding"] < logits.padding["train/padding_unpacked"]


def test_padding_has_coordinates_of_its_own(batch):
    packing = pack(rad(batch, "response", "causal", copies=1)[0], 90)
    padding = packing.source_CW < 0
    assert bool(padding.any())
    assert bool((packing.rule.key.copy_BT[padding] == PADDING).all())
    assert bool((packing.rule.key.document_BT[padding] == -1).all())


@pytest.mark.parametrize("capacity", [1, 7, 20, 55, 1000])
def test_rows_hold_every_study_once_and_no_more_than_they_may(capacity):
    lengths = torch.randint(1, 30, (40,), generator=torch.Generator().manual_seed(capacity)).tolist()
    rows = fill_rows(lengths, capacity)
    assert sorted(study for row in rows for study in row) == list(range(40))
    for row in rows:
        assert sum(lengths[study] for study in row) <= capacity or len(row) == 1
    # No two rows would have fitted into one: first fit never opens a row while another has room.
    totals = sorted(sum(lengths[study] for study in row) for row in rows)
    assert len(rows) == 1 or totals[0] + totals[1] > capacity


def test_a_chosen_token_of_no_study_is_rejected(batch):
    sequence, chosen = rad(batch, "response", "causal", copies=1)
    packing = pack(sequence, 90)
    chosen[1, -1] = True  # fills the row behind a shorter response
    with pytest.raises(ValueError, match="1 chosen tokens belong to no study"):
        packing.unpacked(torch.zeros(int(chosen.sum()) - 1, 2), chosen)


@pytest.mark.parametrize("tokens", [0, -5])
def test_rows_without_room_are_rejected(batch, tokens):
    with pytest.raises(ValueError, match=f"pack_tokens must be positive, or null for one study per row; got {tokens}"):
        SequenceLogits(tokens)
    with pytest.raises(ValueError, match=f"room for at least one token, got {tokens}"):
        pack(rad(batch, "response", "causal", copies=1)[0], tokens)
