"""The comparison of noisy copies gives every K the steps that fit into its time, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import SIZES, SMALL, pretrained_checkpoint

from echo_pl.bench.copies import compare

pytestmark = pytest.mark.slow


def test_every_k_gets_the_steps_that_fit(tiny_data: Path, tmp_path: Path):
    start = pretrained_checkpoint(tiny_data, tmp_path)
    own = [*(o for o in SMALL if not o.startswith(("stage.max", "stage.val", "stage.check", "mlflow", "callbacks"))), *SIZES]
    places = [f"data_root={tiny_data}", f"start={start}", "stage.batch_size=4"]
    out = tmp_path / "out"
    record = compare([1, 3], 0.05, 4, out, [*own, *places])
    one, three = record["rows"]
    assert (one["copies"], three["copies"]) == (1, 3)
    for row in (one, three):
        assert row["steps"] == round(3.0 / row["seconds_per_step"])
        assert row["training_seconds"] > 0
        assert row["val_loss"] > 0
        assert 0 <= row["finding_f1"] <= 1
        assert 0 <= row["one_step_valid_sentences"] <= 1
    assert json.loads((out / "copies.json").read_text()) == record
    assert (out / "copies.md").read_text().count("\n") == 4
    with pytest.raises(ValueError, match="copies must be positive"):
        compare([0], 1.0, 4, out, own)
    with pytest.raises(ValueError, match="minutes are too little"):
        compare([1], 1e-6, 4, out, [*own, *places])
