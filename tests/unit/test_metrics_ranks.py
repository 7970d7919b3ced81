"""Several processes: whoever has seen which reports, all ranks get the figures of all reports."""

from __future__ import annotations

import json
import multiprocessing

import pytest
import torch.multiprocessing as mp
from metric_reports import on_rank, reports, scores

SHARES = {"uneven": [[0, 3, 4, 5, 6], [1, 2]], "one has none": [[0, 1, 2, 3, 4, 5, 6], []]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes find in every way of sharing; started once, with the libraries imported once for both."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["torchmetrics"])
    mp.start_processes(on_rank, (str(folder), SHARES), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("name", SHARES)
def test_two_processes_have_the_figures_of_one(folder, name):
    order = [index for share in SHARES[name] for index in share]
    predictions, references = reports(1, 7), reports(2, 7)
    alone = scores([predictions[i] for i in order], [references[i] for i in order])
    assert 0 < alone["cider_d"] < 10
    for rank in range(2):
        together = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert {name: together[name] for name in alone} == pytest.approx(alone, abs=1e-12)
        assert together["stopped"] == pytest.approx(3 / 7)
