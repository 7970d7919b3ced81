"""Visibility by perturbation: a change that the table forbids leaves logits bit-identical, an allowed one does not.

The table is the one of ``tests/method.py``; the logits are those of a two-layer model, so the expectation is reachability in two
steps. Every token of a ragged batch is changed once, and the image as a whole (its tokens are one tower's output).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from method import Token, allowed_QK, rad_tokens, reachable_QK
from models import SPECIAL, make_batch, small_vlm
from torch import Tensor

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import (
    BlockLayout,
    TrainingSequence,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.structs import Batch

L = 4
CONTEXTS, RESPONSES = [9, 12, 11], [10, 12, 7]


@dataclass(frozen=True)
class Case:
    sequence: TrainingSequence
    tokens: list[list[Token]]
    """Per sample, every token of the sequence."""
    context_attention: str


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return small_vlm()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(CONTEXTS, RESPONSES)


def rad_case(batch: Batch, grid: str, context_attention: str, copies: int) -> Case:
    layout = BlockLayout(block_size=L, grid=grid, context_attention=context_attention)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    B, R = blocked.clean_ids_BR.shape
    masked = torch.rand(B, copies, R, generator=torch.Generator().manual_seed(5)) < 0.5
    noisy = torch.where(masked & blocked.maskable_BR[:, None], SPECIAL.mask, blocked.clean_ids_BR[:, None])
    # On the absolute grid the last P mod L context tokens share a block with the response.
    kept = [p if grid == "response" else p // L * L for p in CONTEXTS]
    tokens = [rad_tokens(p, max(kept), R, L, copies) for p in kept]
    return Case(rad_sequence(blocked, noisy), tokens, context_attention)


def autoregressive_case(batch: Batch) -> Case:
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    # Causal attention: a response is clean text in blocks of one token.
    tokens = [rad_tokens(p, max(CONTEXTS), max(RESPONSES), 1, 0) for p in CONTEXTS]
    return Case(sequence, tokens, "causal")


@torch.no_grad()
def logits(vlm: VLM, sequence: TrainingSequence, batch: Batch, ids: Tensor, pixels: Tensor) -> Tensor:
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    return vlm(ids, positions, sequence.rule, images=replace(batch, pixel_values=pixels).images)


def check(vlm: VLM, batch: Batch, case: Case, backend: AttentionBackend) -> None:
    vlm.train_attention = backend
    ids, pixels = case.sequence.input_ids_BT, batch.pixel_values
    before = logits(vlm, case.sequence, batch, ids, pixels)
    reach = torch.stack([reachable_QK(allowed_QK(row, row, case.context_attention), vlm.layers) for row in case.tokens])
    real = torch.tensor([[token.kind != "padding" for token in row] for row in case.tokens])
    for place in range(ids.shape[1]):
        if bool((ids[:, place] == SPECIAL.image).any()):
            continue
        other = ids.clone()
        other[:, place] = (ids[:, place] + 1) % 90
        changed = (logits(vlm, case.sequence, batch, other, pixels) != before).any(-1)
        wrong = (changed != reach[:, :, place]) & real
        assert not bool(wrong.any()), complain(case, wrong, changed, place)
    is_image = ids == SPECIAL.image
    changed = (logits(vlm, case.sequence, batch, ids, pixels + 0.1) != before).any(-1)
    wrong = (changed != (reach & is_image[:, None]).any(-1)) & real
    assert not bool(wrong.any()), complain(case, wrong, changed, None)


def complain(case: Case, wrong: Tensor, changed: Tensor, place: int | None) -> str:
    row, query = (int(i) for i in wrong.nonzero()[0])
    key = "the image" if place is None else case.tokens[row][place]
    says = "leaks into" if bool(changed[row, query]) else "does not reach"
    return f"sample {row}: {key} {says} {case.tokens[row][query]} ({int(wrong.sum())} such queries)"


@pytest.mark.parametrize("backend", ["sdpa", "split"])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("context_attention", ["causal", "block_causal", "full"])
@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_rad_logits_change_exactly_where_the_table_allows(vlm, batch, grid, context_attention, copies, backend):
    check(vlm, batch, rad_case(batch, grid, context_attention, copies), backend)


# FlexAttention without compilation is slow: three copies once, one copy in every mode.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("grid", "context_attention", "copies"),
    [
        ("response", "causal", 3),
        ("response", "block_causal", 1),
        ("response", "full", 1),
        ("absolute", "causal", 1),
        ("absolute", "block_causal", 1),
    ],
)
def test_rad_logits_by_flex_change_exactly_where_the_table_allows(vlm, batch, grid, context_attention, copies):
    check(vlm, batch, rad_case(batch, grid, context_attention, copies), "flex")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flex"])
def test_autoregressive_logits_change_exactly_where_causality_allows(vlm, batch, backend):
    check(vlm, batch, autoregressive_case(batch), backend)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["sdpa", "split", "flex"])
def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(vlm, batch, backend):
    vlm.train_attention = backend
    case = rad_case(batch, "response", "causal", 2)
    ids, pixels = case.sequence.input_ids_BT, batch.pixel_values
    before = logits(vlm, case.sequence, batch, ids, pixels)
    other = ids.clone()
    words = ids[0] < 90
    other[0, words] = (ids[0, words] + 7) % 90
    changed = pixels.clone()
    changed[:16] += 1.0
    after = logits(vlm, case.sequence, replace(batch, pixel_values=changed), other, changed)
    assert torch.equal(before[1:], after[1:])
    assert not torch.equal(before[0], after[0])
