"""What every stage that writes reports validates with: decoding a small fixed set and scoring the texts.

Used by the stages by composition. Knows samplers and metrics; nothing of losses.
"""

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
"""What is logged of the suite's scores, by the group it is logged in; ``tps`` is of one rank."""


@dataclass(frozen=True, kw_only=True)
class TextTools:
    """What a stage has to know of its data: ids, and the way from ids to a judged text. Ready-made by the data room."""

    special: SpecialTokens
    vocab_size: int
    labels: tuple[str, ...]
    to_report: Callable[[Tensor], ReportText]
    """Token ids before eos -> report."""
    judge: ReportJudge | None
    fingerprint: str
    """Of the data; kept in checkpoints."""
    vision_fingerprint: str | None = None
    """Of the vision tower whose stored output the batches carry; None: they carry pixels."""
    word_starts: Callable[[], Sequence[int]] = tuple
    """The ids that begin a word; none, unless the data room says."""


def check_not_compiled(decode: DecodeConfig) -> None:
    """Raise ValueError for compiled steps: what a stage decodes is in training, and has other weights at every step."""
    if decode.compile:
        raise ValueError(
            "stage.module.decode.compile=true is for frozen models (echo_pl.sampling, make bench); a stage trains its own"
        )


class GenerationCheck:
    """Decodes the first validation batches of an epoch and scores them.

    Args:
        batches: How many.
        in_blocks: Whether what is decoded has blocks, and so a number of forwards for each.

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
        """Begin an epoch. The sums are kept on ``device``, the module's, since ranks add them up there."""
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
