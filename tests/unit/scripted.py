"""A stand-in for the model whose predictions are written down beforehand, place by place: for tests of the decoding loop."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.diffusion.block_mask import AttentionRule
from echo_pl.structs import Batch, Images, SpecialTokens

SPECIAL = SpecialTokens(pad=0, eos=1, mask=2, image=3, never_sampled=(0, 2, 3))
VOCABULARY = 128


class ScriptedVLM:
    """Predicts ``script[row][place]`` with probability ``sure[place]`` or so, whatever it sees; counts its forwards.

    A row is recognised by the first token of its context.
    """

    layers = 0
    max_positions = 8192
    dtype = torch.float32

    def __init__(self, scripts: list[list[int]], margin: list[float] | None = None, shift: int = 0) -> None:
        """``margin``: logit of the scripted token, by place; ``shift``: 1 for next-token prediction."""
        self.scripts, self.margin, self.shift = scripts, margin, shift
        self.forwards = 0
        self._rows = torch.zeros(0, dtype=torch.long)

    def context_positions(self, ids_BP: Tensor, lengths_B: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        # Each row has positions of its own, so that its positions identify a row.
        start_B = 1000 * (ids_BP[:, 0] - 10)
        self._lengths = dict(zip((ids_BP[:, 0] - 10).tolist(), lengths_B.tolist(), strict=True))
        positions = start_B[:, None] + torch.arange(ids_BP.shape[1])
        return positions.expand(3, -1, -1), start_B + lengths_B

    def __call__(
        self,
        ids_AQ: Tensor,
        positions_3AQ: Tensor,
        rule: AttentionRule | None,
        *,
        images: Images | None = None,
        cache: BlockKVCache | None = None,
        select: Tensor | int | None = None,
    ) -> Tensor:
        self.forwards += 1
        rows_AQ = positions_3AQ[0] // 1000
        lengths_AQ = rows_AQ.clone().apply_(lambda row: self._lengths[row])
        place_AQ = positions_3AQ[0] % 1000 - lengths_AQ + self.shift
        logits = torch.zeros(*ids_AQ.shape, VOCABULARY)
        for a in range(ids_AQ.shape[0]):
            for q in range(ids_AQ.shape[1]):
                place, script = int(place_AQ[a, q]), self.scripts[int(rows_AQ[a, q])]
                if 0 <= place < len(script):
                    logits[a, q, script[place]] = 20.0 if self.margin is None else self.margin[place]
        if isinstance(select, Tensor):
            return logits[select]
        return logits if select is None else logits[:, logits.shape[1] - select :]

    def decode_step(
        self, ids_AQ: Tensor, first_A: Tensor, groups: tuple[QueryGroup, ...], cache: BlockKVCache, select: int
    ) -> Tensor:
        positions_AQ = first_A[:, None] + torch.arange(ids_AQ.shape[1])
        return self(ids_AQ, positions_AQ.expand(3, -1, -1), None, cache=cache, select=select)


def contexts(lengths: list[int]) -> Batch:
    """Contexts with a stand-in for an image; row r begins with token 10 + r."""
    P = max(lengths)
    ids = torch.full((len(lengths), P), SPECIAL.pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = 10 + row
    return Batch(
        keys=tuple(f"study-{row}" for row in range(len(lengths))),
        context_ids_BP=ids,
        context_lengths_B=torch.tensor(lengths),
        response_ids_BR=torch.zeros(len(lengths), 1, dtype=torch.long),
        response_lengths_B=torch.ones(len(lengths), dtype=torch.long),
        pixel_values=torch.zeros(len(lengths), 1),
        image_grid_thw=torch.ones(len(lengths), 3, dtype=torch.long),
    )
