from __future__ import annotations

import pytest
import torch

from echo_pl.metrics.efficiency import Efficiency
from echo_pl.structs import DecodeResult


def result(lengths: list[int], nfe: list[int], kv_writes: list[int], written: list[int], seconds: float) -> DecodeResult:
    none = torch.zeros(len(lengths), dtype=torch.bool)
    return DecodeResult(
        tokens=tuple(torch.zeros(length, dtype=torch.long) for length in lengths),
        stopped_B=~none,
        looped_B=none,
        nfe_B=torch.tensor(nfe),
        kv_write_nfe_B=torch.tensor(kv_writes),
        written_B=torch.tensor(written),
        forwards=max(nfe),
        prefill_seconds=1.0,
        decode_seconds=seconds,
        block_size=8,
    )


def test_ratios_are_of_sums_and_kv_writes_count() -> None:
    metric = Efficiency()
    metric.update([result([20, 5], [5, 1], [2, 0], [24, 8], 2.0), result([15], [3], [1], [16], 3.0)])
    assert metric.compute() == pytest.approx(
        {
            "studies": 3,
            "stopped": 1,
            "looped": 0,
            "nfe": 9 / 3,
            "tpf": 40 / 9,
            "tpf_published": 48 / 6,
            "forwards_per_block": 6 / 6,
            "tps": 40 / 5,
            "prefill_seconds": 2 / 3,
            "seconds_per_report": 7 / 3,
        }
    )


def test_nothing_decoded_is_zero_and_no_error() -> None:
    metric = Efficiency()
    metric.update([result([0], [0], [0], [0], 0.0)])
    scores = metric.compute()
    assert scores["tps"] == scores["tpf"] == 0.0
    assert scores["studies"] == 1
