"""Several processes: whoever has seen which reports, all ranks get the figures of all reports."""

from __future__ import annotations

import json

import pytest
import torch.multiprocessing as mp
from metric_reports import on_rank, reports, scores


@pytest.mark.parametrize("shares", [[[0, 3, 4, 5, 6], [1, 2]], [[0, 1, 2, 3, 4, 5, 6], []]], ids=["uneven", "one has none"])
def test_two_processes_have_the_figures_of_one(tmp_path, shares):
    mp.spawn(on_rank, (str(tmp_path), shares), nprocs=2)
    order = [index for share in shares for index in share]
    predictions, references = reports(1, 7), reports(2, 7)
    alone = scores([predictions[i] for i in order], [references[i] for i in order])
    assert 0 < alone["cider_d"] < 10
    for rank in range(2):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: together[name] for name in alone} == pytest.approx(alone, abs=1e-12)
        assert together["stopped"] == pytest.approx(3 / 7)
