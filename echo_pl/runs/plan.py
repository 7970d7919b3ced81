"""The plan of a run: what it takes from checkpoints and run folders, read once, before anything is built."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from echo_pl.config.keys import flat_settings, with_values
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import agreed, raise_on_all_ranks
from echo_pl.distributed.launch import Launch
from echo_pl.io.run_folders import read_info
from echo_pl.runs.baseline import ancestor
from echo_pl.runs.lineage import SavedCheckpoint, check_model_fits, check_same_data
from echo_pl.runs.resume import check_same_stage, read_resume, run_folder
from echo_pl.runs.start import read_start, read_start_of_resumed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The same on all ranks; each by itself might find another newest run, or another second."""

    resume: SavedCheckpoint | None
    start: SavedCheckpoint | None
    folder: Path
    chain: str
    """Name that the stages of one chain share."""
    mlflow_run_id: str | None
    """MLflow run to continue; None: a new one."""
    ar_checkpoint: str | None
    """Stage 1 of this chain, for comparisons."""
    same_settings: bool
    """False if a run is resumed with settings that change what is trained."""

    def plain(self) -> dict[str, Any]:
        """Plain values, for the other ranks."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        paths = {name: values[name] and str(values[name].path) for name in ("resume", "start")}
        return values | paths | {"folder": str(self.folder)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> RunPlan:
        """Read the checkpoints that rank 0 has chosen."""
        saved = {name: None if values[name] is None else SavedCheckpoint.read(Path(values[name])) for name in ("resume", "start")}
        return cls(**(values | saved | {"folder": Path(values["folder"])}))

    def without_contents(self) -> RunPlan:
        """Release the files: a mapped checkpoint that is replaced would keep its disk space until the run ends."""
        resume = self.resume and replace(self.resume, content={})
        return replace(self, resume=resume, start=self.start and replace(self.start, content={}))


def make_plan(config: DictConfig) -> RunPlan:
    """Read everything that a run of this configuration continues or starts from.

    Raises:
        FileNotFoundError: a checkpoint does not exist.
        FileExistsError: the run's folder holds another run.
        ValueError: a checkpoint does not fit the configuration.
    """
    resume = read_resume(config)
    if resume is None:
        start = read_start(config)
    else:
        check_same_stage(config, resume)
        start = read_start_of_resumed(config, resume)
    folder = run_folder(config, resume)
    before = None if start is None else start.record
    unfinished = read_info(folder)  # killed before its first checkpoint, perhaps: it begins again in its own MLflow run
    begun = None if unfinished is None else unfinished.mlflow_run_id
    return RunPlan(
        resume=resume,
        start=start,
        folder=folder,
        chain=before.chain if before is not None and before.chain else f"{folder.name}-{uuid.uuid4().hex[:8]}",
        mlflow_run_id=begun if resume is None else resume.record.mlflow_run_id,
        ar_checkpoint=None if start is None else ancestor(str(start.path.resolve()), before, "pretrain"),
        same_settings=not warn_of_other_settings(config, folder),
    )


def agree_on_plan(launch: Launch, config: DictConfig) -> RunPlan:
    """Make the plan on rank 0 and share it; an error is raised on all ranks, so that none waits for another."""
    plan = problem = None
    if launch.rank == 0:
        try:
            plan = make_plan(config)
        except (ValueError, OSError) as error:
            if launch.world_size == 1:
                raise
            problem = str(error)
    raise_on_all_ranks(launch, problem)
    values = agreed(launch, {} if plan is None else plan.plain())
    return plan if plan is not None else RunPlan.from_plain(values)


def check_plan(plan: RunPlan, config: DictConfig, data: ReportDataModule) -> None:
    """Check that the checkpoints of a plan fit the configuration's data and model.

    Raises:
        ValueError: naming the difference.
    """
    check_same_data(data, plan.start, plan.resume)
    if config.stage.name == "dcd" and plan.start is None:
        raise ValueError("stage dcd needs a stage-2 checkpoint as its teacher: give start=<path>")
    data.check_batches(config.trainer.devices * config.trainer.num_nodes)
    for checkpoint in {saved.path: saved for saved in (plan.resume, plan.start) if saved is not None}.values():
        check_model_fits(config, data, checkpoint)


def with_run_node(config: DictConfig, plan: RunPlan) -> DictConfig:
    """Return the configuration with the values of the plan, to which the callbacks of ``experiments/`` refer as ``${run...}``."""
    node = {
        "name": plan.folder.name,
        "folder": str(plan.folder),
        "config_path": str(plan.folder / "config.yaml"),
        "chain": plan.chain,
        "parent_run_id": None if plan.start is None else plan.start.record.mlflow_run_id,
        "ar_checkpoint": plan.ar_checkpoint,
    }
    return with_values(config, {"start": None if plan.start is None else str(plan.start.path), "run": node})


_NOT_TRAINED = (
    """resume start start_stage start_block_size run_name task trainer callbacks mlflow threads min_free_gb outputs sweep"""
)
"""Parts of a configuration that change nothing of what is trained."""


def warn_of_other_settings(config: DictConfig, folder: Path) -> bool:
    """Warn of the settings that differ from those that the run of this folder began with; return True if there are any."""
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    saved, current = (flat_settings(one) for one in (OmegaConf.load(path), config))  # type: ignore[arg-type]
    names = [name for name in sorted(saved.keys() | current.keys()) if name.partition(".")[0] not in _NOT_TRAINED.split()]
    changed = [name for name in names if saved.get(name) != current.get(name) and name not in ("data_root", "data.root")]
    if changed:
        pairs = "; ".join(f"{name} was {saved.get(name)!r}, is {current.get(name)!r}" for name in changed)
        log.warning("%s is resumed with other settings than it began with: %s", folder, pairs)
    return bool(changed)
