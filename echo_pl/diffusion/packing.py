"""Sequence packing: several studies in one row, which do not attend to each other, so that less of a batch is padding.

A packed row is ``[contexts | copies of responses]``, study after study in both halves, without padding. Tokens and coordinates are
gathered from the sequences of one study a row; the rule then also requires that query and key belong to one study.

Shapes: B studies, T tokens of a row of one study, C packed rows, W tokens of a packed row, P context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echo_pl.diffusion.block_mask import PADDING, AttentionRule, TokenCoords
from echo_pl.diffusion.sequence import TrainingSequence


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Map from the tokens of sequences to packed rows."""

    source_CW: Tensor
    """int64: index among the B * T tokens of the sequences; -1: padding."""
    studies: tuple[int, ...]
    """Rows of the sequences in the order of the packed rows."""
    rule: AttentionRule
    padding_before: float
    """Share of padding among the sequences' tokens."""

    @property
    def padding_after(self) -> float:
        """Share of padding in the packed rows."""
        return float((self.source_CW < 0).float().mean())

    def rows(self, x_BT: Tensor, fill: int) -> Tensor:
        """Values (..., B, T) of tokens in packed rows, (..., C, W), with ``fill`` at padding."""
        return x_BT.flatten(-2)[..., self.source_CW.clamp(min=0)].masked_fill(self.source_CW < 0, fill)

    def unpacked(self, values_M: Tensor, chosen_BT: Tensor) -> Tensor:
        """Reorder values (M, ...) at chosen tokens from the order of the packed rows to that of the sequences.

        Raises:
            ValueError: a chosen token is in no packed row.
        """
        indices_M = self.source_CW[self.rows(chosen_BT, 0)]
        if len(indices_M) != int(chosen_BT.sum()):
            raise ValueError(f"{int(chosen_BT.sum()) - len(indices_M)} chosen tokens belong to no study and are not in packed rows")
        return values_M[indices_M.argsort()]


def fill_rows(lengths: list[int], capacity: int) -> list[list[int]]:
    """Studies of each row: the longest first, each into the first row with enough room (first fit decreasing).

    A study longer than a row gets its own row.

    >>> fill_rows([5, 9, 4, 1], capacity=10)
    [[0, 2], [1, 3]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for study in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[study]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(study)
        room[row] -= lengths[study]
    return sorted(sorted(row) for row in rows)


def pack(sequence: TrainingSequence, capacity: int) -> Packing:
    """Pack sequences of one study a row.

    Args:
        sequence: sequence of any stage.
        capacity: most tokens of a row; a longer study gets a longer row.

    Returns:
        Packing whose rule separates the studies.

    Raises:
        ValueError: the capacity is not positive.
    """
    if capacity < 1:
        raise ValueError(f"a packed row must have room for at least one token, got {capacity}")
    device = sequence.input_ids_BT.device
    B, T = sequence.input_ids_BT.shape
    P, R, copies = sequence.context_width, sequence.response_width, sequence.noise_copies + 1
    contexts, responses = sequence.context_lengths_B.tolist(), sequence.response_lengths_B.tolist()
    grouped = fill_rows([p + copies * r for p, r in zip(contexts, responses, strict=True)], capacity)
    heads, tails = [], []
    for studies in grouped:
        heads.append(torch.cat([b * T + torch.arange(contexts[b]) for b in studies]))
        tails.append(torch.cat([b * T + P + k * R + torch.arange(responses[b]) for b in studies for k in range(copies)]))
    context_width = max(len(head) for head in heads)
    source_CW = torch.cat([_padded(heads, context_width), _padded(tails, max(len(tail) for tail in tails))], dim=1).to(device)
    packing = Packing(
        source_CW=source_CW,
        studies=tuple(b for studies in grouped for b in studies),
        rule=sequence.rule,
        padding_before=1.0 - int((source_CW >= 0).sum()) / (B * T),
    )
    rule, key = sequence.rule, sequence.rule.key
    index_1W = torch.arange(source_CW.shape[1], device=device)[None]
    coords = TokenCoords(
        copy_BT=packing.rows(key.copy_BT.expand(B, -1), PADDING),
        block_BT=packing.rows(key.block_BT.expand(B, -1), 0),
        # A padding token attends to itself alone, by its index in the row.
        index_BT=torch.where(source_CW < 0, index_1W, packing.rows(key.index_BT.expand(B, -1), 0)),
        document_BT=torch.where(source_CW < 0, -1, source_CW // T),
    )
    packed = AttentionRule(query=coords, key=coords, context_attention=rule.context_attention, context_width=context_width)
    return replace(packing, rule=packed)


def _padded(parts: list[Tensor], width: int) -> Tensor:
    rows = torch.full((len(parts), width), -1)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows
