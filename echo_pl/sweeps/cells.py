"""What a sweep compares: a cell for every student, and one for every teacher and AR model that it comes from. Knows no launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from echo_pl.sweeps.plan import FIRST_STUDENT, Part, parts

AXES = ("block_size", "ablation", "seed")
"""What cells are told apart by; other swept keys are their variant."""
AR, TEACHER = "ar", "teacher"
"""What stands in the place of an objective, for models that were not distilled."""
OF_TEACHERS = {
    "rad_scale": "+sweep.stages.rad.limit_train=600,1200,2400",
    "grow": "sweep.grow=[4,8]",
}
"""Ablations of stage 2, which a sweep's students have nothing of, and how a sweep asks for the same."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of the axes, and the chain of parts that it needs."""

    overrides: tuple[str, ...]
    chain: tuple[Part, ...]
    objective: str
    variant: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A part whose scores are compared, as tables name it."""

    part: str
    objective: str
    variant: str
    block_size: int
    seed: int
    base: str
    """Name of the AR model that it comes from, or its own."""

    @property
    def label(self) -> str:
        """What people read."""
        block = "" if self.objective == AR else f" L{self.block_size}"
        return f"{self.objective}{block} seed {self.seed}" + (f" ({self.variant})" if self.variant else "")

    @property
    def params(self) -> dict[str, str]:
        """As MLflow keeps them."""
        return {
            "objective": self.objective,
            "variant": self.variant or "-",
            "block_size": str(self.block_size),
            "seed": str(self.seed),
        }


def make_job(overrides: Sequence[str], swept: Sequence[str], config: DictConfig) -> Job:
    """From a composed configuration, Hydra's own node included.

    Raises:
        ValueError: it cannot be part of a sweep.
    """
    objective = config.hydra.runtime.choices.get("ablation") or "dcd"
    refuse_ablation(objective)
    plain = [one.lstrip("+") for one in overrides]
    others = [one for one in plain if (key := one.partition("=")[0]) in swept and key not in AXES]
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Job(overrides=tuple(overrides), chain=tuple(parts(own)), objective=str(objective), variant=" ".join(others))


def refuse_ablation(name: str) -> None:
    """Refuse an ablation of the stage before, whose settings the students of a sweep would take for theirs, or not at all.

    Raises:
        ValueError: naming what to give in its place.
    """
    if name in OF_TEACHERS:
        raise ValueError(
            f"ablation={name} is for single runs of stage rad, and a sweep's jobs are of stage dcd: leave it out, and give "
            f"{OF_TEACHERS[name]}, which is for the teachers"
        )


def make_cells(jobs: Sequence[Job]) -> list[Cell]:
    """One for each part that writes reports, in the order of the jobs; shared parts once.

    Of several teachers of the same block size and seed (other reports, other data) each is named after the jobs that use it.
    """
    users: dict[str, tuple[Part, list[Job]]] = {}
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
        elif part.stage == "dcd":  # a student that a teacher leans to, and that no job asks for by itself
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


def _place(part: Part) -> tuple[int, int]:
    return 1 if part.stage == "pretrain" else int(part.config.block_size), int(part.config.seed)
