from __future__ import annotations

import re

import pytest

from echo_pl.evaluation.rows import Setting, make_row, speed_over_ar


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "magic"}, "'magic'"),
        ({"method": "base", "kv_cache": "none"}, "'none'"),
        ({"method": "distilled"}, "objective belongs to method 'distilled', got None"),
        ({"method": "ar", "objective": "ce"}, "got 'ce' for 'ar'"),
        ({"method": "base", "block_size": 0}, "block 0"),
    ],
)
def test_wrong_settings_are_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Setting(**wrong)


def test_labels_and_slugs() -> None:
    setting = Setting(method="distilled", objective="dcd", block_size=8, kv_cache="fused", batch_size=16)
    assert setting.label == "distilled (dcd), one step, L=8, fused, batch 16"
    assert setting.slug == "distilled-dcd-L8-fused-b16"
    assert Setting(method="ar").slug == "ar-b1"


def test_token_by_token_there_are_no_forwards_per_block() -> None:
    scores = {"studies": 3.0, "forwards_per_block": 0.98, "nfe": 51.0}
    assert make_row(Setting(method="ar"), scores)["forwards_per_block"] is None
    other = make_row(Setting(method="distilled", objective="dcd", block_size=8, kv_cache="fused"), scores)
    assert (other["forwards_per_block"], other["nfe"]) == (0.98, 51.0)


def test_speed_is_over_ar_of_the_same_batch_size() -> None:
    rows = [
        {"method": "ar", "batch_size": 1, "tps": 10.0},
        {"method": "base", "batch_size": 1, "tps": 20.0},
        {"method": "base", "batch_size": 16, "tps": 99.0},
    ]
    assert speed_over_ar(rows) == [1.0, 2.0, None]
