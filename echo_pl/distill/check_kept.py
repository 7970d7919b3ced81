"""How many tokens of each distribution have to be stored: the loss that every K gives, beside that of whole distributions.

The loss is that of the configuration's own objective, on the teacher's trajectories of the first training studies, for a student
that is the teacher (where training begins) or a checkpoint (where it has come to). Nothing is trained or stored. Used by
collect_trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.diffusion.top_targets import top_targets
from echo_pl.distributed.launch import detect
from echo_pl.pages.tables import Table
from echo_pl.runs.assemble import make_stage
from echo_pl.runs.lineage import check_same_data, make_lineage
from echo_pl.runs.run import prepare
from echo_pl.runs.start import read_start
from echo_pl.stages.dcd import DCDModule
from echo_pl.structs import Trajectory

KS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCE = 0.01
"""Of the loss."""


@dataclass(frozen=True, kw_only=True)
class KeptLoss:
    """The loss with so many kept tokens."""

    kept: int | None
    """None: whole distributions."""
    loss: float
    full: float
    bytes_per_position: int

    @property
    def difference(self) -> float:
        """From the loss of whole distributions, as a share of it."""
        return abs(self.loss - self.full) / self.full

    def reach(self, tolerance: float) -> float:
        """The loss down to which this K is within the tolerance, if what it leaves out stays what it is here.

        What is left out, P(rest) times the divergence within the rest, hardly changes while a student learns; the loss falls.
        """
        return abs(self.loss - self.full) / tolerance


@torch.no_grad()
def check_kept(config: DictConfig, studies: int, ks: Sequence[int] = KS, student: Path | None = None) -> list[KeptLoss]:
    """Measure.

    Args:
        config: composed with ``stage=dcd``.
        studies: training studies to measure on.
        ks: the K, rising; those of the vocabulary's size and above are left out.
        student: a stage-3 checkpoint of the same block size; None: the teacher's weights.

    Returns:
        A row for every K, and at the end the whole distributions'.

    Raises:
        ValueError: an objective without target distributions; no study with a usable trajectory.
    """
    config = config.copy()
    config.stage.limit_train = studies
    config.stage.batch_size = min(studies, config.stage.batch_size)
    data = prepare(config)
    start = read_start(config)
    check_same_data(data, start)
    stage = make_stage(config, data, make_lineage(config, data, start, "check"))
    assert isinstance(stage, DCDModule)
    if not stage.objective.needs_targets:
        raise ValueError(
            f"objective {stage.objective.name} trains on tokens alone: there is no K to choose; use --no-distributions"
        )
    stage.configure_model()
    if student is not None:
        load_weights(stage.model, student, ("dcd",), config.block_size, config.grid, config.context_attention)
    launch = detect()
    if config.trainer.accelerator == "gpu":
        stage.to(torch.device("cuda", launch.rank % launch.processes_per_node))
    stage.teacher.to(stage.device)
    ks = [k for k in ks if k < data.vocab_size]
    sums = dict.fromkeys([*ks, 0], 0.0)
    usable = 0
    for batch in data.train_batches_once(config.stage.batch_size):
        batch = batch.to(stage.device)
        whole = stage.collect(batch)
        used = sum(trajectory is not None for trajectory in whole)
        usable += used
        for k in sums:
            loss, _ = stage.loss(batch, [_cut(t, k) for t in whole], epoch=0, progress=0.0)
            sums[k] += used * float(loss)
    if not usable:
        raise ValueError(f"none of the first {studies} training studies has a trajectory that ends: is the teacher trained?")
    losses = {k: total / usable for k, total in sums.items()}
    full = losses.pop(0)
    rows = [KeptLoss(kept=k, loss=loss, full=full, bytes_per_position=8 * k + 4) for k, loss in losses.items()]
    return [*rows, KeptLoss(kept=None, loss=full, full=full, bytes_per_position=2 * data.vocab_size)]


def _cut(trajectory: Trajectory | None, k: int) -> Trajectory | None:
    """With targets as a store would keep them; ``k`` 0: whole and unrounded."""
    if trajectory is None or not k:
        return trajectory
    assert trajectory.target_RV is not None
    return replace(trajectory, target_RV=None, top=top_targets(trajectory.target_RV, k))


def smallest_kept(rows: Sequence[KeptLoss], tolerance: float) -> KeptLoss | None:
    """The row of the smallest K whose loss is within the tolerance; None: there is none."""
    return next((row for row in rows if row.kept is not None and row.difference <= tolerance), None)


def smallest(rows: Sequence[KeptLoss], tolerance: float) -> str:
    """Which K to take, in a sentence."""
    row = smallest_kept(rows, tolerance)
    if row is not None:
        return (
            f"the smallest K within {tolerance:.0%} of the whole loss of {row.full:.3f}: --keep {row.kept}. Down to a loss of "
            f"{row.reach(tolerance):.3f} it stays so; take the K that reaches down to the loss that training will come to"
        )
    return (
        f"no K up to {max(row.kept or 0 for row in rows)} comes within {tolerance:.0%} of the whole loss: store whole distributions"
    )


def table(rows: Sequence[KeptLoss]) -> Table:
    """One line for each number of kept tokens."""
    headings = ["kept tokens", "loss", "difference", f"within {TOLERANCE:.0%} down to a loss of", "bytes per position"]
    body = [
        [
            "all" if row.kept is None else str(row.kept),
            f"{row.loss:.5f}",
            f"{row.difference:.3%}",
            f"{row.reach(TOLERANCE):.3f}",
            str(row.bytes_per_position),
        ]
        for row in rows
    ]
    return Table(headings, body, left=())
