"""Reports of a decode, block by block, and the result record of both samplers.

Shapes: B batch, A active samples, L block size, R response positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.sampling.forwards import NfeCounter
from echo_pl.structs import DecodeResult


class DecodedReports:
    """Decoded blocks of a whole batch."""

    def __init__(self, tail_B: Tensor, block_size: int) -> None:
        """Start with the numbers of context tokens in each sample's first block (on the CPU)."""
        self.tail_B, self._L = tail_B, block_size
        self._blocks: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def add(self, rows_A: Tensor, token_AL: Tensor, looped_A: Tensor | None) -> None:
        """Append the next block of these samples (on the CPU); None: no loop check was due."""
        self._blocks.append((rows_A, token_AL, looped_A))

    def result(self, eos: int, limit: int, counter: NfeCounter, prefill_seconds: float, decode_seconds: float) -> DecodeResult:
        """Result with the tokens after the context tail and before the first eos, at most ``limit``."""
        B, L = len(self.tail_B), self._L
        tokens_BR = torch.zeros(B, len(self._blocks) * L, dtype=torch.long)
        written_B, looped_B = -self.tail_B, torch.zeros(B, dtype=torch.bool)
        for number, (rows_A, token_AL, looped_A) in enumerate(self._blocks):
            tokens_BR[rows_A, number * L : (number + 1) * L] = token_AL
            written_B[rows_A] += L
            if looped_A is not None:
                looped_B[rows_A] |= looped_A
        reports = []
        stopped_B = torch.zeros(B, dtype=torch.bool)
        for row, (tail, written) in enumerate(zip(self.tail_B.tolist(), written_B.tolist(), strict=True)):
            tokens = tokens_BR[row, tail : tail + min(written, limit)]
            at_eos = (tokens == eos).nonzero()
            stopped_B[row] = len(at_eos) > 0
            reports.append(tokens[: int(at_eos[0, 0])] if len(at_eos) else tokens)
        return DecodeResult(
            tokens=tuple(reports),
            stopped_B=stopped_B,
            looped_B=looped_B,
            written_B=written_B,
            nfe_B=counter.nfe_B,
            kv_write_nfe_B=counter.kv_write_nfe_B,
            forwards=counter.forwards,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            block_size=L,
        )
