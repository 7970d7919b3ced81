"""Values that all processes of a run must share before there is a trainer: its name, its start, the checkpoint it resumes.

Processes that a launcher has started share them over the process group, which is opened here and which the trainer then finds
open. Processes that Lightning starts from a running one receive them in their environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _init_dist_connection

from echo_pl.distributed.launch import Launch

_SHARED = "ECHO_PL_SHARED"
_SET_BY_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=30)


def open_group(launch: Launch, accelerator: str) -> None:
    """Open the process group of launched processes, unless there is only one, or it is open."""
    if launch.world_size == 1 or dist.is_initialized():
        return
    cluster: ClusterEnvironment = slurm_environment() if launch.launcher == "srun" else TorchElasticEnvironment()
    backend = "gloo" if accelerator == "cpu" else "nccl"
    if backend == "nccl":
        torch.cuda.set_device(cluster.local_rank())
    _init_dist_connection(cluster, backend, launch.rank, launch.world_size, timeout=_TIMEOUT)


def slurm_environment() -> SLURMEnvironment:
    """Lightning's own without its requeueing, which saves in the middle of a step (:mod:`echo_pl.runs.checkpointing`).

    Raises:
        ValueError: Lightning rejects the job's variables (``--ntasks`` without ``--ntasks-per-node``).
    """
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise ValueError(f"SLURM: {error}") from error


@contextmanager
def together() -> Iterator[None]:
    """Around a run: leave the process group and the environment as they were.

    All ranks close the group at once, as a process must not end while others send to it; a rank that has failed does not wait.
    The variables that Lightning sets for the processes it starts are removed, so that a next run starts its own.
    """
    before = {name: os.environ.get(name) for name in (*_SET_BY_LIGHTNING, _SHARED)}
    try:
        yield
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_same_settings(launch: Launch, settings: dict[str, Any]) -> None:
    """Check that all ranks have the settings of rank 0; every rank raises the same error.

    Args:
        launch: of this process.
        settings: plain values by name.

    Raises:
        ValueError: naming a setting and the two values.
    """
    if launch.world_size == 1:
        return
    gathered: list[Any] = [None] * launch.world_size
    dist.all_gather_object(gathered, settings)
    first = gathered[0]
    for rank, own in enumerate(gathered):
        # The root first, as other settings refer to it.
        for name in sorted(first.keys() | own.keys(), key=lambda name: (name.count("."), name)):
            if first.get(name) != own.get(name):
                raise ValueError(
                    f"the ranks of this run were given different configurations: {name} is {first.get(name)!r} on rank 0 and "
                    f"{own.get(name)!r} on rank {rank}; start all of them with the same command and files"
                )


def raise_on_all_ranks(launch: Launch, problem: str | None) -> None:
    """Raise rank 0's error on every rank, so that no rank waits for one that has failed.

    Raises:
        ValueError: with rank 0's message, if there is one.
    """
    box = [problem]
    if launch.world_size > 1:
        dist.broadcast_object_list(box, src=0)
    if box[0] is not None:
        raise ValueError(box[0])


def agreed(launch: Launch, value: dict[str, Any]) -> dict[str, Any]:
    """Return rank 0's value on every rank. The values must be plain (they are sent as JSON)."""
    if launch.world_size > 1:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
    if launch.launcher == "python" and launch.rank > 0:
        return json.loads(os.environ[_SHARED])
    os.environ[_SHARED] = json.dumps(value)
    return value
