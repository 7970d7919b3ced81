"""Run folders: their names, their record ``run.json``, and the search for the newest one that fits."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Literal

from echo_pl.io.atomic import write_json

log = logging.getLogger(__name__)

Status = Literal["running", "finished", "stopped", "failed"]
FINAL = "final.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The one before the last, in case that is torn."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """``run.json`` of a run folder."""

    stage: str
    backbone: str
    block_size: int | None
    data: str
    status: Status
    time: str
    """ISO time of the last change of status."""
    start: str | None
    chain: str
    mlflow_run_id: str | None


def now_text() -> str:
    """Return the time to the millisecond, as text that sorts."""
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def write_info(folder: Path, info: RunInfo) -> None:
    """Write ``run.json``, atomically."""
    write_json(folder / "run.json", asdict(info))


def read_info(folder: Path) -> RunInfo | None:
    """Read the record of a run folder; None if there is none, or (with a warning) if it cannot be read."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return RunInfo(**{field.name: content[field.name] for field in fields(RunInfo)})
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is not readable and is ignored: %s", path, error)
        return None


def newest(
    outputs: Path, stages: tuple[str, ...], backbone: str, data: str, block_size: int | None = None
) -> tuple[Path, RunInfo] | None:
    """Find the newest finished run of one of these stages that fits.

    Args:
        outputs: folder of ``runs``.
        stages: stages in the order of preference; the first with a fitting run wins.
        backbone: name of the backbone.
        data: name of the data group.
        block_size: block size of the run; None: any.
    """
    found = [(folder, info) for folder in sorted((outputs / "runs").glob("*")) if (info := read_info(folder))]
    for stage in stages:
        fitting = [
            (folder, info)
            for folder, info in found
            if (info.stage, info.backbone, info.data, info.status) == (stage, backbone, data, "finished")
            and (block_size is None or info.block_size == block_size)
            and (folder / "checkpoints" / FINAL).exists()
        ]
        if fitting:
            return max(fitting, key=lambda pair: pair[1].time)
    return None


def newest_unfinished(outputs: Path, stage: str, backbone: str, data: str, name: str | None = None) -> Path | None:
    """Find the checkpoint of the newest fitting run that did not finish and can be resumed.

    Args:
        outputs: folder of ``runs``.
        stage: stage of the run.
        backbone: name of the backbone.
        data: name of the data group.
        name: name of the run; None: any.
    """
    found = [
        (info.time, path)
        for folder in sorted((outputs / "runs").glob("*"))
        if (name is None or folder.name == name)
        and (info := read_info(folder))
        and (info.stage, info.backbone, info.data) == (stage, backbone, data)
        and info.status != "finished"
        and (path := resumable_checkpoint(folder)) is not None
    ]
    return max(found)[1] if found else None


def resumable_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a run folder, or the one before it if a run died between the two; None without any."""
    paths = (folder / "checkpoints" / name for name in (LAST, PREVIOUS))
    return next((path for path in paths if path.exists()), None)


def check_free_disk(folder: Path, least_gb: float) -> None:
    """Check that the disk of a folder, which is created, has space for a run.

    Raises:
        OSError: less than ``least_gb`` (10^9 bytes) is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e9
    if free < least_gb:
        raise OSError(
            f"only {free:.2f} GB free on the disk of {folder}, min_free_gb is {least_gb:g}: make room, "
            "choose another outputs=<folder>, or lower min_free_gb"
        )
