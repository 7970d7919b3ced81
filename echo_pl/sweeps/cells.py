"""Cells of a sweep: one for every student, and one for every teacher and AR model that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from echo_pl.sweeps.plan import FIRST_STUDENT, SweepPart, parts

AXES = ("block_size", "ablation", "seed")
"""Swept keys that identify a cell; other swept keys are its variant."""
AR, TEACHER = "ar", "teacher"
"""Names instead of an objective, for models without distillation."""
TEACHER_ABLATIONS = {
    "rad_scale": "+sweep.stages.rad.limit_train=600,1200,2400",
    "grow": "sweep.grow=[4,8]",
}
"""Ablations of stage 2, which do not apply to the students of a sweep, and the setting of a sweep that replaces each."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of the axes, and the chain of parts that it needs."""

    overrides: tuple[str, ...]
    chain: tuple[SweepPart, ...]
    objective: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A scored part, with its names in tables."""

    part: str
    objective: str
    variant: str
    block_size: int
    seed: int
    base: str
    """Name of the AR model that it starts from, or its own name."""

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        block = "" if self.objective == AR else f" L{self.block_size}"
        return f"{self.objective}{block} seed {self.seed}" + (f" ({self.variant})" if self.variant else "")

    @property
    def params(self) -> dict[str, str]:
        """Parameters in MLflow."""
        return {
            "objective": self.objective,
            "variant": self.variant or "-",
            "block_size": str(self.block_size),
            "seed": str(self.seed),
        }


def make_job(overrides: Sequence[str], swept: Sequence[str], config: DictConfig) -> Job:
    """Job of a composed configuration, the ``hydra`` node included; raises ValueError if it cannot be part of a sweep."""
    objective = config.hydra.runtime.choices.get("ablation") or "dcd"
    check_ablation(objective)
    plain = [one.lstrip("+") for one in overrides]
    others = [one for one in plain if (key := one.partition("=")[0]) in swept and key not in AXES]
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Job(overrides=tuple(overrides), chain=tuple(parts(own)), objective=str(objective), variant=" ".join(others))


def check_ablation(name: str) -> None:
    """Raise ValueError for an ablation of stage 2, whose settings students would take for their own or ignore."""
    if name in TEACHER_ABLATIONS:
        raise ValueError(
            f"ablation={name} is for single runs of stage rad, and a sweep's jobs are of stage dcd: replace it by "
            f"{TEACHER_ABLATIONS[name]}, which is for the teachers"
        )


def make_cells(jobs: Sequence[Job]) -> list[Cell]:
    """Cells of all parts that write reports, in the order of the jobs; a shared part has one cell.

    Several teachers of one block size and seed (other reports, other data) are named after the jobs that use them.
    """
    users: dict[str, tuple[SweepPart, list[Job]]] = {}
    for job in jobs:
        for part in job.chain:
            if part.writes_reports:
                users.setdefault(part.name, (part, []))[1].append(job)
    places = [(part.stage, *_place(part)) for part, _ in users.values()]
    cells = []
    for name, (part, of) in users.items():
        size, seed = _place(part)
        own = next((job for job in of if job.chain[-1].name == name), None)
        if own is not None:
            objective, variant = own.objective, own.variant
        elif part.stage == "dcd":  # a student that a teacher is tilted to and that is no job by itself
            objective, variant = (
                part.config.stage.module.objective.get("name", FIRST_STUDENT),
                f"for {of[0].objective} {of[0].variant}".strip(),
            )
        else:
            shared = places.count((part.stage, size, seed)) == 1
            objective = AR if part.stage == "pretrain" else TEACHER
            variant = "" if shared else "for " + ", ".join(sorted({f"{job.objective} {job.variant}".strip() for job in of}))
        base = next(before.name for before in of[0].chain if before.stage == "pretrain")
        cells.append(Cell(part=name, objective=objective, variant=variant, block_size=size, seed=seed, base=base))
    return cells


def _place(part: SweepPart) -> tuple[int, int]:
    return 1 if part.stage == "pretrain" else int(part.config.block_size), int(part.config.seed)
