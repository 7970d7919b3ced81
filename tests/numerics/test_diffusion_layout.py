"""Parts that response asymmetry omits change nothing: RAD logits are those of the full-duplication layout of earlier work.

That layout is ``[c | xt | c' | x0]``: the whole sequence noisy (its context unharmed) and the whole sequence clean. Its mask is
written here from BD3-LM's three parts (own block, clean blocks before, clean block-causal) and run by the library's own attention.
float64 with norms in float64; 1e-10 is rounding alone.
"""

from __future__ import annotations

import pytest
import torch
from models import SPECIAL, exact_norms, make_batch, rows_of, small_vlm, stock_network
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.sequence import (
    BlockedResponse,
    BlockLayout,
    TrainingSequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.structs import Batch

L, P, R = 4, 12, 12


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return exact_norms(small_vlm(torch.float64))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([P, P], [R, R], dtype=torch.float64)


def blocked_of(batch: Batch, layout: BlockLayout) -> BlockedResponse:
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    return block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)


def noisy_copies(blocked: BlockedResponse, copies: int) -> Tensor:
    clean = blocked.clean_ids_BR[:, None].expand(-1, copies, -1)
    masked = torch.rand(clean.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    return torch.where(masked & blocked.maskable_BR[:, None], SPECIAL.mask, clean)


@torch.no_grad()
def rad_logits(vlm: VLM, sequence: TrainingSequence, batch: Batch) -> Tensor:
    """Logits of everything behind the context."""
    positions = vlm.sequence_positions(sequence, batch.image_grid_thw)
    out = vlm(sequence.input_ids_BT, positions, sequence.rule, images=batch.images)
    return out[:, sequence.context_width :]


def full_duplication_mask(context_attention: str) -> Tensor:
    """bool (T, T) over ``[c | xt | c' | x0]``."""
    half = P + R
    mask = torch.zeros(2 * half, 2 * half, dtype=torch.bool)
    for q in range(2 * half):
        for k in range(2 * half):
            q_clean, k_clean = q >= half, k >= half
            q_place, k_place = q % half, k % half
            if q_place < P:  # a context token, in either half, sees the context of its own half
                within = {"causal": k_place <= q_place, "block_causal": k_place // L <= q_place // L, "full": True}
                mask[q, k] = q_clean == k_clean and k_place < P and within[context_attention]
                continue
            q_block, k_block = (q_place - P) // L, (k_place - P) // L
            if k_clean and k_place < P:  # every response token sees the whole clean context
                mask[q, k] = True
            elif k_place < P:
                mask[q, k] = False
            elif not q_clean and not k_clean:  # own block
                mask[q, k] = q_block == k_block
            elif not q_clean and k_clean:  # clean blocks before
                mask[q, k] = k_block < q_block
            elif q_clean and k_clean:  # block-causal
                mask[q, k] = k_block <= q_block
    return mask


@pytest.mark.parametrize("context_attention", ["causal", "block_causal", "full"])
def test_rad_is_the_full_duplication_layout(vlm, batch, context_attention):
    layout = BlockLayout(block_size=L, context_attention=context_attention)
    blocked = blocked_of(batch, layout)
    noisy = noisy_copies(blocked, 1)
    ours = rad_logits(vlm, rad_sequence(blocked, noisy), batch)

    context, clean = batch.context_ids_BP, blocked.clean_ids_BR
    _, behind = vlm.context_positions(context, batch.context_lengths_B, batch.image_grid_thw)
    in_context, _ = vlm.context_positions(context, batch.context_lengths_B, batch.image_grid_thw)
    in_response = (behind[:, None] + torch.arange(R)).expand(3, -1, -1)
    with torch.no_grad():
        theirs = stock_network(vlm)(
            input_ids=torch.cat([context, noisy[:, 0], context, clean], dim=1),
            position_ids=torch.cat([in_context, in_response, in_context, in_response], dim=2),
            attention_mask={"full_attention": full_duplication_mask(context_attention).expand(2, 1, -1, -1)},
            pixel_values=torch.cat([image for image in batch.pixel_values.split(16) for _ in range(2)]),
            image_grid_thw=batch.image_grid_thw.repeat_interleave(2, 0),
            use_cache=False,
        ).logits
    xt, x0 = theirs[:, P : P + R], theirs[:, 2 * P + R :]
    assert float((ours[:, :R] - xt).abs().max()) < 1e-10
    assert float((ours[:, R:] - x0).abs().max()) < 1e-10


@pytest.mark.parametrize(("grid", "context_attention"), [("response", "causal"), ("absolute", "block_causal")])
def test_noise_copies_are_separate_sequences(vlm, grid, context_attention):
    batch = make_batch([9, 12, 11], [10, 12, 7], dtype=torch.float64)
    blocked = blocked_of(batch, BlockLayout(block_size=L, grid=grid, context_attention=context_attention))
    noisy = noisy_copies(blocked, 3)
    width = noisy.shape[-1]
    together = rad_logits(vlm, rad_sequence(blocked, noisy), batch)
    for copy in range(3):
        alone = rad_logits(vlm, rad_sequence(blocked, noisy[:, copy : copy + 1]), batch)
        assert float((together[:, copy * width : (copy + 1) * width] - alone[:, :width]).abs().max()) < 1e-10
        assert float((together[:, 3 * width :] - alone[:, width:]).abs().max()) < 1e-10


@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_padding_changes_nothing(vlm, grid):
    """A sample among longer neighbours has the logits that it has alone, at every place that it has alone."""
    batch = make_batch([9, 14, 11], [10, 14, 7], dtype=torch.float64)
    layout = BlockLayout(block_size=L, grid=grid)
    blocked = blocked_of(batch, layout)
    noisy = noisy_copies(blocked, 1)
    together = rad_logits(vlm, rad_sequence(blocked, noisy), batch)
    width = noisy.shape[-1]
    for row in range(3):
        single = rows_of(batch, row)
        own = blocked_of(single, layout)
        own_width = own.clean_ids_BR.shape[1]
        alone = rad_logits(vlm, rad_sequence(own, noisy[row : row + 1, :, :own_width]), single)
        assert float((together[row, :own_width] - alone[0, :own_width]).abs().max()) < 1e-10
        assert float((together[row, width : width + own_width] - alone[0, own_width:]).abs().max()) < 1e-10


def test_copies_of_a_token_share_their_position(vlm, batch):
    """With nothing masked, noisy and clean copy of the first block are the same tokens at the same positions: same logits."""
    blocked = blocked_of(batch, BlockLayout(block_size=L))
    logits = rad_logits(vlm, rad_sequence(blocked, blocked.clean_ids_BR[:, None]), batch)
    assert float((logits[:, :L] - logits[:, R : R + L]).abs().max()) < 1e-10
