"""Block grids: what becomes context, tail, response and fill; and the message for a block size that does not fit."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE_TOKENS, SPECIAL, make_batch

from echo_pl.diffusion.sequence import (
    BlockedResponse,
    BlockLayout,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.structs import Batch

E = SPECIAL.eos


def block(batch: Batch, **options) -> BlockedResponse:
    layout = BlockLayout(**{"block_size": 4, **options})
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    return block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)


def test_response_grid_fills_the_last_block_with_eos():
    batch = make_batch([9, 7], [6, 3])
    blocked = block(batch)
    words = batch.response_ids_BR
    assert blocked.clean_ids_BR.tolist() == [
        [*words[0, :6].tolist(), E, E],
        [*words[1, :3].tolist(), E, E, E, E, E],
    ]
    assert blocked.supervised_BR.long().tolist() == [[1] * 8, [1] * 4 + [0] * 4]
    assert bool(blocked.maskable_BR.all())
    assert torch.equal(blocked.prompt.context_ids_BP, batch.context_ids_BP)
    assert blocked.prompt.tail_lengths_B.tolist() == [0, 0]


def test_eos_fill_need_not_be_supervised():
    blocked = block(make_batch([9, 7], [6, 3]), supervise_eos_fill=False)
    assert blocked.supervised_BR.long().tolist() == [[1] * 6 + [0] * 2, [1] * 3 + [0] * 5]


@pytest.mark.parametrize("lengths", [[9, 12, 11], [10, 13, 9], [8, 8, 8]])
def test_absolute_grid_is_the_whole_text_cut_from_position_zero(lengths):
    """Cut context + response + eos fill into blocks of 4 from position 0: block by block the same tokens."""
    batch = make_batch(lengths, [6, 8, 3])
    blocked = block(batch, grid="absolute")
    for row, (p, r) in enumerate(zip(lengths, [6, 8, 3], strict=True)):
        text = batch.context_ids_BP[row, :p].tolist() + batch.response_ids_BR[row, :r].tolist()
        text += [E] * (-len(text) % 4)
        kept = p // 4 * 4
        assert blocked.prompt.context_lengths_B[row] == kept
        assert blocked.prompt.context_ids_BP[row, :kept].tolist() == text[:kept]
        rest = text[kept:]
        assert blocked.clean_ids_BR[row, : len(rest)].tolist() == rest
        tail = p - kept
        R = blocked.clean_ids_BR.shape[1]
        assert blocked.maskable_BR[row].tolist() == [place >= tail for place in range(R)]
        assert blocked.supervised_BR[row].tolist() == [tail <= place < len(rest) for place in range(R)]
        assert R % 4 == 0


def test_absolute_grid_rejects_an_image_in_the_first_response_block():
    batch = make_batch([IMAGE_TOKENS + 2], [6])  # one word, four image tokens, one word: the block from 4 holds an image token
    with pytest.raises(ValueError, match=r"block_size 4 does not fit the absolute grid.*grid=response"):
        block(batch, grid="absolute")
    block(batch, grid="absolute", block_size=2)  # blocks of two leave the image alone


def test_copies_share_response_offsets():
    batch = make_batch([9], [6])
    blocked = block(batch)
    sequence = rad_sequence(blocked, blocked.clean_ids_BR[:, None].expand(-1, 3, -1))
    assert sequence.noise_copies == 3
    assert sequence.input_ids_BT.shape == (1, 9 + 4 * 8)
    assert sequence.response_offset_T.tolist() == list(range(8)) * 4


def test_noisy_positions_point_at_the_noisy_copies():
    batch = make_batch([9, 7], [6, 3])
    blocked = block(batch)
    marks = torch.arange(2 * 3 * 8).view(2, 3, 8) + 1000
    sequence = rad_sequence(blocked, marks)
    chosen = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(sequence.input_ids_BT[sequence.noisy_positions(chosen)], marks[chosen])


def test_the_autoregressive_sequence_has_one_copy():
    batch = make_batch([9, 7], [6, 3])
    sequence = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR)
    assert torch.equal(sequence.input_ids_BT, torch.cat([batch.context_ids_BP, batch.response_ids_BR], 1))
    assert sequence.response_offset_T.tolist() == list(range(6))


@pytest.mark.parametrize(("name", "value"), [("block_size", 0), ("grid", "relative"), ("context_attention", "diagonal")])
def test_unknown_layouts_are_rejected(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        BlockLayout(**{"block_size": 4, name: value})
