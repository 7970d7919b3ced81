"""`make bench-data` in miniature: every way is timed, and ratios are of what they say."""

from __future__ import annotations

import json

import pytest
from commands import command

from echo_pl.bench.data import ratios, timed

pytestmark = pytest.mark.slow

main = command("bench", "data")


def test_a_row_for_every_way(tmp_path, capsys):
    options = ["--studies", "16", "--side", "64", "--rounds", "2", "--workers", "0", "1", "--out", str(tmp_path)]
    assert main(options) == 0
    record = json.loads((tmp_path / "data.json").read_text())
    assert set(record["rows"]) == {
        *(f"{way}_{kind}" for way in ("read", "read_and_decode", "decode_alone", "pillow_alone") for kind in ("png", "jpeg")),
        "batches_workers_0",
        "batches_workers_1",
        "batches_http_cached",
        "batches_http_uncached",
    }
    printed = capsys.readouterr().out
    for name, row in record["rows"].items():
        assert len(row["seconds"]) == (2 if name.startswith("batches") else 10)
        assert row["samples_per_second"] > 0
        assert f"{name} " in printed


def test_ratios_are_of_one_round():
    rows = {
        name: {"seconds": [1.0, 10.0, 4.0], "processor_seconds": [1.0, 10.0, 4.0]}
        for name in (
            *(f"{way}_{kind}" for way in ("read_and_decode", "decode_alone", "pillow_alone") for kind in ("png", "jpeg")),
            "batches_workers_0",
            "batches_http_cached",
            "batches_http_uncached",
        )
    }
    rows["read_and_decode_jpeg"] = {"seconds": [2.0, 11.0, 6.0], "processor_seconds": [1.5, 10.0, 4.0]}
    found = ratios(rows)
    assert found["read_and_decode_over_pillow_jpeg"] == 1.5
    assert found["read_and_decode_over_pillow_jpeg_processor"] == 1.0
    assert found["read_and_decode_over_pillow_png"] == 1.0


def test_the_first_round_does_not_count():
    calls = []
    rows = timed({"a": lambda: calls.append("a") or 3, "b": lambda: calls.append("b") or 1}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(row["seconds"]) for row in rows.values()] == [2, 2]


@pytest.mark.parametrize(
    ("options", "message"), [(["--workers", "1"], "--workers must have a 0"), (["--rounds", "0"], "Invalid value for '--rounds'")]
)
def test_bad_arguments(options, message, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err
