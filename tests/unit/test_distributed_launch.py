"""Detection of a process's launcher, and its match with the configuration."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.api import CheckpointException

from echo_pl.distributed.agree import slurm_environment, together
from echo_pl.distributed.fsdp2 import FSDP2Strategy
from echo_pl.distributed.launch import Launch, check_world_size, detect, warn_of_idle_tasks
from echo_pl.runs.assemble import cluster_environment

pytestmark = pytest.mark.slow

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "abc", "RANK": "3", "LOCAL_RANK": "1",
    "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip


def test_nobody_but_python():
    assert detect({}) == Launch(launcher="python", rank=0, world_size=1, processes_per_node=1, nodes=1)


def test_a_process_that_lightning_started_knows_its_rank():
    assert detect({"LOCAL_RANK": "1"}).rank == 1


def test_torchrun():
    assert detect(TORCHRUN) == Launch(launcher="torchrun", rank=3, world_size=4, processes_per_node=2, nodes=2)


def test_srun():
    assert detect(SRUN) == Launch(launcher="srun", rank=5, world_size=8, processes_per_node=4, nodes=2)


@pytest.mark.parametrize(
    "change",
    [{"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_ID": "4294967290"}, {"SLURM_STEP_NUM_TASKS": None}],
    ids=["batch script", "interactive shell", "no step"],
)
def test_a_job_s_script_is_no_step_of_tasks(change):
    environment = {name: value for name, value in {**SRUN, **change}.items() if value is not None}
    assert detect(environment).launcher == "python"


@pytest.mark.parametrize(("tasks", "per_node"), [("7", "4,3"), ("8", "5,3"), ("8", "3(x2),2")])
def test_uneven_tasks_are_rejected(tasks, per_node):
    detect({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"})
    with pytest.raises(ValueError, match=f"{tasks} tasks on 2 nodes"):
        detect({**SRUN, "SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_TASKS_PER_NODE": per_node})


def test_tasks_that_no_launcher_starts_are_reported(caplog):
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    warn_of_idle_tasks(detect(job), job)
    assert "this SLURM job has 2 tasks, and srun started none of them" in caplog.text
    caplog.clear()
    for quiet in ({}, {**job, "SLURM_NTASKS": "1"}, {**job, **SRUN}, {**job, "LOCAL_RANK": "1"}):
        warn_of_idle_tasks(detect(quiet), quiet)
    assert not caplog.text


def test_in_a_job_without_srun_lightning_starts_processes_itself(monkeypatch):
    """Its own guess is that SLURM does, and it would wait for the others for ever."""
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    assert cluster_environment() == []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    (environment,) = cluster_environment()
    assert type(environment) is LightningEnvironment
    assert not environment.creates_processes_externally


def test_tasks_that_lightning_rejects_are_one_message(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ValueError, match=r"SLURM: .*--ntasks-per-node"):
        slurm_environment()


def test_the_process_group_is_closed_behind_a_run():
    with together():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert not dist.is_initialized()


def test_the_process_group_is_closed_behind_a_run_that_fails():
    def fail() -> None:
        with together():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            raise KeyError("something else")

    with pytest.raises(KeyError):
        fail()
    assert not dist.is_initialized()


def test_a_full_disk_ends_a_sharded_checkpoint_with_one_message(tmp_path, monkeypatch):
    strategy = FSDP2Strategy()
    last = tmp_path / "last.ckpt"
    last.mkdir()

    def failing(error: BaseException) -> None:
        def save(self, checkpoint, filepath, storage_options=None):
            Path(filepath).mkdir()
            (Path(filepath) / "__0_0.distcp").write_bytes(b"half")
            raise error

        monkeypatch.setattr(ModelParallelStrategy, "save_checkpoint", save)

    monkeypatch.setattr(FSDP2Strategy, "broadcast", lambda self, value: value)
    monkeypatch.setattr(FSDP2Strategy, "barrier", lambda self: None)
    monkeypatch.setattr(FSDP2Strategy, "is_global_zero", True)
    failing(RuntimeError("the writer has failed"))
    with pytest.raises(RuntimeError, match="the writer has failed"):
        strategy.save_checkpoint({}, last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    failing(CheckpointException("write", {1: (OSError(errno.EDQUOT, "Disk quota exceeded"), [])}))  # as on every rank
    with pytest.raises(OSError, match=r"cannot write a checkpoint \(\d+ MB free\): make room, then resume=auto"):
        strategy.save_checkpoint({}, last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    failing(RuntimeError("the writer has failed"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(OSError, match=r"cannot write a checkpoint \(5 MB free\)"):
        strategy.save_checkpoint({}, last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (2, 1)])
def test_another_world_names_both(devices, nodes):
    launch = detect(TORCHRUN)
    check_world_size(launch, 2, 2)
    with pytest.raises(ValueError, match=rf"started 2 processes on each of 2 nodes, .*devices={devices} trainer.num_nodes={nodes}"):
        check_world_size(launch, devices, nodes)


def test_python_starts_what_is_asked_on_its_own_node():
    check_world_size(detect({}), 8, 1)
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2 needs a launcher .*: torchrun or srun"):
        check_world_size(detect({}), 8, 2)
