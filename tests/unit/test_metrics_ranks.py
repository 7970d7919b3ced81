"""Several processes: all ranks get the scores of all reports, however the reports are shared."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from metric_reports import on_rank, reports, scored

pytestmark = pytest.mark.slow

SHARES = {"uneven": [[0, 3, 4, 5, 6], [1, 2]], "one has none": [[0, 1, 2, 3, 4, 5, 6], []]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two processes for every way of sharing; started once, with the libraries imported once for both."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["torchmetrics"])
    mp.start_processes(on_rank, (str(folder), SHARES), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("name", SHARES)
def test_two_processes_have_the_figures_of_one(folder, name):
    order = [index for share in SHARES[name] for index in share]
    predictions, references = reports(1, 7), reports(2, 7)
    alone, _ = scored([predictions[i] for i in order], [references[i] for i in order])
    assert 0 < alone["cider_d"] < 10
    for rank in range(2):
        together = found(folder, name, rank)["figures"]
        assert {name: together[name] for name in alone} == pytest.approx(alone, abs=1e-12)
        assert together["stopped"] == pytest.approx(3 / 7)


@pytest.mark.parametrize("name", SHARES)
def test_signatures_say_how_many_reports_the_figures_are_of(folder, name):
    """All ranks' reports once figures were computed of them; a rank's own before that, and again when it has seen more."""
    alone = scored(reports(1, 7), reports(2, 7))[1]
    for rank in range(2):
        together, own = found(folder, name, rank), len(SHARES[name][rank])
        assert together["signatures"] == [*alone, "stopped|references:1 each, 7 in all"]
        assert together["before"] == f"stopped|references:1 each, {own} in all"
        assert together["after"] == f"stopped|references:1 each, {own + 1} in all"


def found(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())
