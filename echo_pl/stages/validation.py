"""Validation of a stage that writes reports: decode a small fixed set and score the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_pl.metrics.suite import ReportSuite
from echo_pl.reports.report import ReportJudge
from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.structs import Batch, ReportText, SpecialTokens

LOGGED = {
    "val": ("finding_f1", "valid_sentences", "rouge_l", "duplicate_word_rate", "stopped", "looped"),
    "speed": ("tpf", "nfe", "forwards_per_block", "tps"),
}
"""Logged scores of the suite, by group; ``tps`` is measured on one rank."""


@dataclass(frozen=True, kw_only=True)
class TextTools:
    """Parts of the data that a stage needs: ids, and the conversion from ids to a judged text."""

    special: SpecialTokens
    vocab_size: int
    labels: tuple[str, ...]
    to_report: Callable[[Tensor], ReportText]
    """Token ids before eos -> report."""
    judge: ReportJudge | None
    fingerprint: str
    """Fingerprint of the data; kept in checkpoints."""
    vision_fingerprint: str | None = None
    """Fingerprint of the vision tower whose stored output is in the batches; None: the batches hold pixels."""
    word_starts: Callable[[], Sequence[int]] = tuple
    """Returns the ids that begin a word."""


def check_not_compiled(decode: DecodeConfig) -> None:
    """Raise ValueError for compiled steps, as the weights of a stage's model change at every step."""
    if decode.compile:
        raise ValueError(
            "stage.module.decode.compile=true is for frozen models (echo_pl.sampling, make bench); a stage trains its own"
        )


class GenerationCheck:
    """Decodes the first validation batches of an epoch and scores them.

    Args:
        text: ids and texts.
        batches: number of batches.
        in_blocks: the model decodes in blocks, so there is a number of forwards per block.

    Raises:
        ValueError: ``batches`` is negative.
    """

    def __init__(self, text: TextTools, batches: int, *, in_blocks: bool = True) -> None:
        if batches < 0:
            raise ValueError(f"generation_batches must not be negative, got {batches}")
        self.text, self.batches = text, batches
        self._without = () if in_blocks else ("forwards_per_block",)
        self._suite: ReportSuite | None = None

    def start(self, device: torch.device) -> None:
        """Start an epoch. The sums are kept on the module's ``device``, where ranks add them."""
        self._suite = ReportSuite(self.text.judge).to(device)

    def update(self, sampler: BlockSampler | AutoregressiveSampler, batch: Batch, batch_index: int) -> None:
        """Decode one batch, if it is among the first."""
        if self._suite is None or batch_index >= self.batches:
            return
        result = sampler.generate(batch)
        self._suite.update([result], [self.text.to_report(tokens) for tokens in result.tokens], batch.references)

    def compute(self) -> dict[str, float]:
        """``val/...`` and ``speed/...`` scores of the epoch; empty when nothing was decoded."""
        if self._suite is None or self.batches == 0:
            return {}
        scores = self._suite.compute()
        return {
            f"{group}/{name}": scores[name]
            for group, names in LOGGED.items()
            for name in names
            if name in scores and name not in self._without
        }
