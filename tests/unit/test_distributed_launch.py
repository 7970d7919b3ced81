"""Who started a process, and whether that is what the configuration asks for."""

from __future__ import annotations

import pytest

from echo_pl.distributed.launch import Launch, detect, refuse_other_world

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


@pytest.mark.parametrize("change", [{"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_NUM_TASKS": None}], ids=["batch script", "no step"])
def test_a_job_s_script_is_no_step_of_tasks(change):
    environment = {name: value for name, value in {**SRUN, **change}.items() if value is not None}
    assert detect(environment).launcher == "python"


def test_uneven_tasks_are_refused():
    with pytest.raises(ValueError, match="7 tasks on 2 nodes"):
        detect({**SRUN, "SLURM_STEP_NUM_TASKS": "7"})


def test_a_torn_environment_is_refused():
    with pytest.raises(ValueError, match="torchrun has set TORCHELASTIC_RUN_ID but not 'WORLD_SIZE'"):
        detect({name: value for name, value in TORCHRUN.items() if name != "WORLD_SIZE"})


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), (4, 1), (2, 1)])
def test_another_world_names_both(devices, nodes):
    launch = detect(TORCHRUN)
    refuse_other_world(launch, 2, 2)
    with pytest.raises(ValueError, match=rf"started 2 processes on each of 2 nodes, .*devices={devices} trainer.num_nodes={nodes}"):
        refuse_other_world(launch, devices, nodes)


def test_python_starts_what_is_asked_on_its_own_node():
    refuse_other_world(detect({}), 8, 1)
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2 needs a launcher .*: torchrun or srun"):
        refuse_other_world(detect({}), 8, 2)
