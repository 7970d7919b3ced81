"""``echo-pl -m sweep=...``: make every part of a sweep's jobs once, and record the sweep in MLflow.

The parts of all jobs (docs/how-to/sweeps.md) are launched stage by stage: bases, teachers, stored trajectories, students. Finished
parts are skipped, so the same command resumes an interrupted sweep. A failed part stops only the parts that start from it. Hydra's
launcher decides where jobs run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from echo_pl.config.errors import explain, reported
from echo_pl.runs.checkpointing import StoppedError
from echo_pl.runs.run import silence_noisy_loggers
from echo_pl.sweeps.cells import Cell, Job, make_cells, make_job
from echo_pl.sweeps.plan import STAGES, SweepPart
from echo_pl.sweeps.record import SweepRecord

log = logging.getLogger(__name__)
Compose = Callable[[Sequence[str]], DictConfig]
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]
"""Starts jobs from the first of the overrides it is given, as many as it likes, and returns when they have ended."""


@dataclass(kw_only=True)
class Progress:
    """State of the parts."""

    parts: dict[str, SweepPart]
    jobs: dict[str, Job]
    """A job by part, whose overrides compose the part."""
    failed: dict[str, str] = field(default_factory=dict)
    """Error by part."""
    launched: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> Progress:
        """State before the first launch."""
        of: dict[str, Job] = {}
        found: dict[str, SweepPart] = {}
        for job in jobs:
            for part in job.chain:
                of.setdefault(part.name, job)
                found.setdefault(part.name, part)
        return cls(parts=found, jobs=of)

    def todo(self) -> list[SweepPart]:
        """Parts of the earliest stage that can be made now; parts that start from a failed one are marked as failed."""
        waiting = [part for part in self.parts.values() if part.name not in self.failed and not part.done]
        for part in waiting:  # chains are in the order of work, so a failure reaches the end of its chain
            missing = [name for name in part.before if name in self.failed]
            if missing:
                self.failed[part.name] = f"not begun: it starts from {missing[0]}, which failed"
        able = [part for part in waiting if part.name not in self.failed and all(self.parts[name].done for name in part.before)]
        first = min((STAGES.index(part.stage) for part in able), default=None)
        return [part for part in able if STAGES.index(part.stage) == first]

    def overrides(self, part: SweepPart) -> list[str]:
        """Overrides of the job that makes a part."""
        return [*self.jobs[part.name].overrides, f"sweep.part={part.name}"]


def sweep(overrides: Sequence[Sequence[str]], swept: Sequence[str], compose: Compose, launch: Launch) -> None:
    """Carry out a sweep.

    Args:
        overrides: overrides of every job.
        swept: keys with several values.
        compose: from overrides to the configuration, the ``hydra`` node included.
        launch: starts jobs.

    Raises:
        SystemExit: something failed (status 1), or a signal ended it (128 + its number); the error is on stderr.
    """
    silence_noisy_loggers()
    with reported():
        jobs = [make_job(one, swept, compose(one)) for one in overrides]
        config = jobs[0].chain[-1].config
        progress, cells = Progress.of(jobs), make_cells(jobs)
        record = SweepRecord(config)
        record.begin(cells)
    done = sum(part.done for part in progress.parts.values())
    print(f"sweep {config.sweep.name}: {len(jobs)} jobs need {len(progress.parts)} parts, {done} of them are done", flush=True)
    while parts := progress.todo():
        _launch(progress, parts, launch)
        record.log(cells, _scores(progress, cells), progress.failed)
    record.log(cells, _scores(progress, cells), progress.failed)
    record.end(bool(progress.failed))
    print(f"compare them: {record.compare_command}", flush=True)
    if progress.failed:
        print(_failures(progress), file=sys.stderr, flush=True)
        raise SystemExit(1)


def _launch(progress: Progress, parts: Sequence[SweepPart], launch: Launch) -> None:
    """Launch parts together, and record failures."""
    try:
        results = launch([progress.overrides(part) for part in parts], progress.launched)
    except RuntimeError as error:  # a launcher's own: a job was lost with its node
        print(f"echo-pl: the launcher lost a job ({error}); others may still be running", file=sys.stderr, flush=True)
        for part in parts:
            if not part.done:
                progress.failed[part.name] = "lost by the launcher, or still running: see its own log; then start the sweep again"
        return
    progress.launched += len(results)
    for part, result in zip(parts, results, strict=False):
        if result.status is not JobStatus.COMPLETED:
            wrong = result._return_value  # the property would raise it
            if isinstance(wrong, StoppedError):
                print(f"echo-pl: {wrong}; start the sweep again to go on", file=sys.stderr, flush=True)
                raise SystemExit(128 + wrong.number)
            progress.failed[part.name] = explain(wrong) or type(wrong).__name__
            log.error("%s failed", part.name, exc_info=wrong)
        elif not part.done:
            progress.failed[part.name] = "its job ended without an error and without a result"


def _scores(progress: Progress, cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    found = {cell.part: progress.parts[cell.part] for cell in cells}
    return {name: scores for name, part in found.items() if part.trained and (scores := part.scores) is not None}


def _failures(progress: Progress) -> str:
    """Message with every failed part and the job that needs it."""
    lines = [f"echo-pl: {len(progress.failed)} of {len(progress.parts)} parts of the sweep are missing:"]
    for name, message in progress.failed.items():
        lines += [f"  {name}: {message}", f"    ({' '.join(progress.jobs[name].overrides)})"]
    return "\n".join([*lines, "start the same command again: it makes the missing parts only"])
