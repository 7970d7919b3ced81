"""Cost of decoding: forwards and seconds per report, tokens per forward and per second.

The definitions are those of docs/explain/method.md, "Scores". Times come with the decode results.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric

from echo_pl.structs import DecodeResult


class Efficiency(Metric):
    """Speed and stopping over decode results.

    ``compute`` gives, as floats:

    * ``studies``: reports decoded.
    * ``nfe``: forwards after prefill per report, KV writes included.
    * ``tpf``: tokens before eos / forwards, both summed over reports (a ratio of sums, not a mean of ratios).
    * ``tpf_published``: as in published tables: written positions, also after eos, over the forwards that are not a
      mere KV write.
    * ``forwards_per_block``: forwards that are not a mere KV write, over started blocks: 1 at one step per block, up to 2 with
      a gate (``DecodeConfig.gate``).
    * ``tps``: tokens before eos / seconds after prefill, of the decoded batch.
    * ``prefill_seconds``, ``seconds_per_report``: prefill, and prefill + decoding, per report (a batch's time is shared
      evenly by its reports).
    * ``stopped``, ``looped``: shares of reports that ended with eos, and of reports cut off as a repetition loop.

    Seconds of several ranks are added up, so ``tps`` is per rank.

    >>> import torch
    >>> result = DecodeResult(
    ...     tokens=(torch.arange(12),), stopped_B=torch.tensor([True]), looped_B=torch.tensor([False]),
    ...     nfe_B=torch.tensor([3]), kv_write_nfe_B=torch.tensor([1]), written_B=torch.tensor([16]), forwards=3,
    ...     prefill_seconds=0.5, decode_seconds=2.0, block_size=8,
    ... )  # two blocks of eight, one step each, vanilla cache: 2N - 1 = 3 forwards
    >>> metric = Efficiency()
    >>> metric.update([result])
    >>> scores = metric.compute()
    >>> [scores[name] for name in ("nfe", "tpf", "tpf_published", "tps", "prefill_seconds", "seconds_per_report")]
    [3.0, 4.0, 8.0, 6.0, 0.5, 2.5]
    >>> scores["forwards_per_block"]
    1.0
    """

    full_state_update = False
    signature = "efficiency|nfe:after prefill, KV writes included|tokens:before eos|v1"
    reports: Tensor
    tokens: Tensor
    written: Tensor
    blocks: Tensor
    nfe: Tensor
    kv_write_nfe: Tensor
    stopped: Tensor
    looped: Tensor
    prefill_seconds: Tensor
    decode_seconds: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        for name in ("reports", "tokens", "written", "blocks", "nfe", "kv_write_nfe", "stopped", "looped"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        for name in ("prefill_seconds", "decode_seconds"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, results: Iterable[DecodeResult]) -> None:
        """Add decoded batches."""
        for result in results:
            self.reports += len(result.tokens)
            self.tokens += int(result.lengths_B.sum())
            self.written += int(result.written_B.sum())
            self.blocks += int(result.blocks_B.sum())
            self.nfe += int(result.nfe_B.sum())
            self.kv_write_nfe += int(result.kv_write_nfe_B.sum())
            self.stopped += int(result.stopped_B.sum())
            self.looped += int(result.looped_B.sum())
            self.prefill_seconds += result.prefill_seconds
            self.decode_seconds += result.decode_seconds

    def compute(self) -> dict[str, float]:
        """The scores named above; a ratio without a denominator is 0."""
        seconds = self.prefill_seconds + self.decode_seconds
        return {
            "studies": float(self.reports),
            "stopped": _ratio(self.stopped, self.reports),
            "looped": _ratio(self.looped, self.reports),
            "nfe": _ratio(self.nfe, self.reports),
            "tpf": _ratio(self.tokens, self.nfe),
            "tpf_published": _ratio(self.written, self.nfe - self.kv_write_nfe),
            "forwards_per_block": _ratio(self.nfe - self.kv_write_nfe, self.blocks),
            "tps": _ratio(self.tokens, self.decode_seconds),
            "prefill_seconds": _ratio(self.prefill_seconds, self.reports),
            "seconds_per_report": _ratio(seconds, self.reports),
        }


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part) / float(whole) if whole > 0 else 0.0
