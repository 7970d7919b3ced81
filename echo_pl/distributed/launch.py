"""Launcher of this process (``python``, ``torchrun``, ``fabric run`` or ``srun``) and its rank, from environment variables.

Lightning's trainer does not compare its configuration with the launcher; another number of processes would silently become as many
separate runs. So both are compared here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger(__name__)
_FIRST_RESERVED_STEP = 0xFFFF_FFF0
"""SLURM's own steps (batch script, interactive shell) have this number or a higher one."""
Launcher = Literal["python", "torchrun", "srun"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process among those of a run."""

    launcher: Launcher
    rank: int
    world_size: int
    """1 for ``python``: Lightning starts the other processes."""
    processes_per_node: int
    nodes: int


def detect(environment: Mapping[str, str] | None = None) -> Launch:
    """Read the launcher's variables.

    Raises:
        ValueError: they contradict each other.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env:
        return _launch("torchrun", env, "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and _is_step_of_tasks(env):
        tasks, nodes = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_STEP_NUM_NODES"])
        per_node = env.get("SLURM_STEP_TASKS_PER_NODE", "1")
        if tasks % nodes or "," in per_node:  # "2(x4)", or "3,1" where they differ
            raise ValueError(f"srun started {tasks} tasks on {nodes} nodes; use the same number on every node (--ntasks-per-node)")
        return Launch(
            launcher="srun", rank=int(env["SLURM_PROCID"]), world_size=tasks, processes_per_node=tasks // nodes, nodes=nodes
        )
    return Launch(launcher="python", rank=int(env.get("LOCAL_RANK", 0)), world_size=1, processes_per_node=1, nodes=1)


def _is_step_of_tasks(env: Mapping[str, str]) -> bool:
    """Return False for the batch script and the interactive shell of a job, which have SLURM's variables too."""
    step = env["SLURM_STEP_ID"]
    return step.isdecimal() and int(step) < _FIRST_RESERVED_STEP and {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"} <= env.keys()


def _launch(launcher: Launcher, env: Mapping[str, str], rank: str, world: str, local: str, nodes: str) -> Launch:
    try:
        found = Launch(
            launcher=launcher,
            rank=int(env[rank]),
            world_size=int(env[world]),
            processes_per_node=int(env[local]),
            nodes=int(env.get(nodes, "1")),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{launcher} has set TORCHELASTIC_RUN_ID but not {error}: start again in a clean environment") from error
    return found


def warn_of_idle_tasks(launch: Launch, environment: Mapping[str, str] | None = None) -> None:
    """Warn if a SLURM job has tasks and this process is not one of them."""
    env = os.environ if environment is None else environment
    tasks = env.get("SLURM_NTASKS", "1")
    if launch.launcher == "python" and launch.rank == 0 and tasks.isdecimal() and int(tasks) > 1:
        log.warning(
            "this SLURM job has %s tasks, and srun started none of them: the processes of this run are started on this node only; "
            "begin the command with srun to use the tasks",
            tasks,
        )


def check_world_size(launch: Launch, devices: int, nodes: int) -> None:
    """Check that the launcher started as many processes as the trainer is configured for.

    Args:
        launch: of this process.
        devices: processes per node of the trainer.
        nodes: its nodes.

    Raises:
        ValueError: naming both.
    """
    if launch.launcher == "python":
        if nodes > 1:
            raise ValueError(f"trainer.num_nodes={nodes} needs a launcher that starts processes on all of them: torchrun or srun")
        return
    if (launch.processes_per_node, launch.nodes) != (devices, nodes):
        raise ValueError(
            f"{launch.launcher} started {launch.processes_per_node} processes on each of {launch.nodes} nodes, the trainer has "
            f"trainer.devices={devices} trainer.num_nodes={nodes}: give trainer.devices={launch.processes_per_node} "
            f"trainer.num_nodes={launch.nodes}, or start as many processes as configured"
        )
