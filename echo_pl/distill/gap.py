"""The mean-field gap by block size: what one step per block loses against the teacher's chain.

See docs/explain/method.md, "Mean-field gap".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import load_weights, read_checkpoint
from echo_pl.config.compose import compose_config
from echo_pl.config.keys import with_values
from echo_pl.io.atomic import write_json, write_text_atomic
from echo_pl.io.run_folders import FINAL, newest
from echo_pl.pages.tables import Table
from echo_pl.runs.assemble import make_stage
from echo_pl.runs.lineage import backbone_name, check_same_data, data_name, make_lineage
from echo_pl.runs.run import prepare
from echo_pl.runs.start import read_start
from echo_pl.stages.dcd import DCDModule

_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class GapRow:
    """Gaps at one block size, in nats."""

    block_size: int
    teacher: str
    student: str | None
    studies: int
    usable: int
    """Studies whose trajectory ends; only these count in the other fields."""
    blocks: int
    teacher_forwards: float
    """Denoising steps of the teacher per block."""
    teacher_gap: float
    """Mean over blocks of the chain's log p less the teacher's own one-step log p."""
    student_gap: float | None
    """The same with the student's one-step log p."""

    def per_token(self, gap: float) -> float:
        """A gap per block, divided by its tokens."""
        return gap / self.block_size


def measure(config: DictConfig, studies: int, student: Path | None = None) -> GapRow:
    """Measure one block size.

    Args:
        config: composed with ``stage=dcd``.
        studies: held-out studies of the test split.
        student: a stage-3 checkpoint; None: the newest student of this block size, if there is one.

    Raises:
        FileNotFoundError: no stage-2 run, or the teacher of the newest student is gone.
        ValueError: a checkpoint of other data; no study with a usable trajectory.
    """
    data = prepare(config)
    student = student or newest_student(config)
    if student is not None and config.start == "auto":
        record = read_checkpoint(student)[0]
        options = ("start", "start_stage", "start_block_size")
        config = with_values(config, {name: getattr(record, name) for name in options})
    start = read_start(config)
    check_same_data(data, start)
    stage = make_stage(config, data, make_lineage(config, data, start, "gap"))
    teacher = str(None if start is None else start.path)
    assert isinstance(stage, DCDModule)
    stage.configure_model()
    if student is not None:
        load_weights(stage.model, student, ("dcd",), config.block_size, config.grid, config.context_attention)
    teacher_gaps: list[Tensor] = []
    student_gaps: list[Tensor] = []
    steps: list[Tensor] = []
    usable = 0
    for batch in data.held_out_batches("test", _AT_ONCE, studies):
        found = stage.decode_teacher(batch)
        usable += sum(trajectory is not None for trajectory in found)
        teacher_gaps.append(stage.mean_field_gaps(stage.teacher, batch, found))
        if student is not None:
            student_gaps.append(stage.mean_field_gaps(stage.model, batch, found))
        steps += [last_steps(t.commit_step_R, config.block_size) for t in found if t is not None]
    if not usable:
        raise ValueError(f"none of {studies} held-out studies has a trajectory that ends: is {teacher} trained?")
    of_teacher = torch.cat(teacher_gaps)
    return GapRow(
        block_size=config.block_size,
        teacher=teacher,
        student=None if student is None else str(student),
        studies=studies,
        usable=usable,
        blocks=len(of_teacher),
        teacher_forwards=float(torch.cat(steps).float().mean()),
        teacher_gap=float(of_teacher.double().mean()),
        student_gap=float(torch.cat(student_gaps).double().mean()) if student_gaps else None,
    )


def newest_student(config: DictConfig) -> Path | None:
    """Final checkpoint of the newest finished stage-3 run of this block size."""
    found = newest(Path(config.outputs), ("dcd",), backbone_name(config), data_name(config), config.block_size)
    return None if found is None else found[0] / "checkpoints" / FINAL


def last_steps(commit_step_R: Tensor, block_size: int) -> Tensor:
    """The teacher's steps in every block. A context tail shortens the first one, so blocks are counted from the end."""
    return torch.stack([block.max() for block in commit_step_R.flip(0).split(block_size)])


def table(rows: Sequence[GapRow]) -> Table:
    """One line for each block size."""
    headings = ["block size", "blocks", "teacher's forwards per block", "gap of the teacher", "per token",
                "gap of the student", "per token", "teacher", "student"]  # fmt: skip
    body = []
    for row in rows:
        student = ["-", "-"] if row.student_gap is None else [f"{row.student_gap:.3f}", f"{row.per_token(row.student_gap):.3f}"]
        teacher = [f"{row.teacher_forwards:.2f}", f"{row.teacher_gap:.3f}", f"{row.per_token(row.teacher_gap):.3f}"]
        body.append([str(row.block_size), str(row.blocks), *teacher, *student, _run_of(row.teacher), _run_of(row.student)])
    return Table(headings, body, left=(7, 8))


def _run_of(checkpoint: str | None) -> str:
    return "-" if checkpoint is None else Path(checkpoint).parent.parent.name


def students_by_block_size(students: Sequence[Path]) -> dict[int, Path]:
    """Stage-3 checkpoints by their block sizes.

    Raises:
        ValueError: one is of another stage, or two are of one block size.
    """
    found: dict[int, Path] = {}
    for path in students:
        record = read_checkpoint(path)[0]
        if record.stage != "dcd" or record.block_size is None:
            raise ValueError(f"{path} is of stage {record.stage}, and no student (dcd)")
        if record.block_size in found:
            raise ValueError(f"{found[record.block_size]} and {path} both have blocks of {record.block_size}: give them in turn")
        found[record.block_size] = path
    return found


def measure_all(
    block_sizes: Sequence[int], students: Sequence[Path], studies: int, out: Path, overrides: Sequence[str]
) -> list[GapRow]:
    """Measure every block size, write ``mean_field_gap.json`` and ``mean_field_gap.md``, print the table.

    Args:
        block_sizes: empty: those of ``students``, or 4, 8 and 16.
        students: stage-3 checkpoints, instead of the newest ones.
        studies: held-out studies of the test split.
        out: folder to write.
        overrides: configuration, as for ``echo-pl train``.

    Raises:
        FileNotFoundError: see :func:`measure`.
        ValueError: see :func:`measure`; ``students`` of a block size that is not measured.
    """
    named = students_by_block_size(students)
    sizes = block_sizes or sorted(named) or [4, 8, 16]
    if unused := sorted(set(named) - set(sizes)):
        raise ValueError(f"--block-sizes leaves out the students of {', '.join(map(str, unused))}")
    rows = [measure(compose_config(["stage=dcd", f"block_size={L}", *overrides]), studies, named.get(L)) for L in sizes]
    write_json(out / "mean_field_gap.json", [asdict(row) for row in rows])
    write_text_atomic(out / "mean_field_gap.md", table(rows).markdown() + "\n")
    print("\n" + table(rows).text())
    return rows
