"""Batch jobs on two emulated nodes: `make test-slurm`. Not part of `make test`: it installs SLURM and takes minutes.

Every job is submitted by the scripts of experiments/slurm, as a user submits them, with options for a cluster without GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pytest
import torch
from cluster import Cluster, cluster
from ranks import SIZES, SMALL, assert_same_steps, assert_trained_alike, pretrained_checkpoint, probe, weights

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.io.run_folders import read_info

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "experiments" / "slurm"
ON_CPUS = ["trainer.accelerator=cpu"]
ONE_TASK_A_NODE = ["--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=00:10:00"]
TWO_NODES = ["--nodes=2", *ONE_TASK_A_NODE]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with TemporaryDirectory(prefix="echo-pl-slurm-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # munge wants its socket where everybody may go
        with cluster(Path(folder)) as running:
            yield running


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_synthetic(folder / "synthetic", train=24, val=4, test=2, seed=2, shard_size=5, progress=False)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def pretrained(data_root, outputs) -> Path:
    return pretrained_checkpoint(data_root, outputs)


@pytest.fixture(scope="module")
def alone(data_root, outputs, pretrained) -> Path:
    """Stage 2 in one process, without SLURM."""
    own = arguments(data_root, outputs, pretrained, "one", "stage.batch_size=4")
    done = subprocess.run(
        [sys.executable, "-m", "echo_pl", *own, "run_name=one"],
        env=os.environ | extra(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return final(outputs, "one")


def arguments(data_root: Path, outputs: Path, start: Path, name: str, *more: str) -> list[str]:
    places = [f"data_root={data_root}", f"outputs={outputs}", f"start={start}"]
    return ["stage=rad", *SMALL, *SIZES, *places, probe(outputs, name), *more]


def extra() -> dict[str, str]:
    """Environment of jobs besides the variables that the scripts set."""
    return {
        "ECHO_PL_VENV": sys.prefix,
        "MASTER_ADDR": "127.0.0.1",  # the emulated nodes have names that nobody resolves
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)]),
    }


def submit(slurm: Cluster, outputs: Path, script: str, options: list[str], own: list[str], **environment: str) -> str:
    places = [f"--chdir={REPOSITORY}", f"--output={outputs}/job-%j.log"]
    return slurm.submit(SCRIPTS / script, own, [*options, *places], **extra(), **environment)


def log(outputs: Path, number: str) -> str:
    path = outputs / f"job-{number}.log"
    return path.read_text() if path.is_file() else ""


def final(outputs: Path, name: str) -> Path:
    folder = outputs / "runs" / name
    assert read_info(folder).status == "finished"
    return folder / "checkpoints" / "final.ckpt"


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_two_nodes_train_what_one_process_trains(slurm, data_root, outputs, pretrained, alone, trainer):
    own = arguments(data_root, outputs, pretrained, trainer, "stage.batch_size=2", f"trainer={trainer}", *ON_CPUS)
    number = submit(slurm, outputs, "several_nodes.sbatch", TWO_NODES, own, RUN_NAME=trainer)
    job = slurm.wait(number)
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), log(outputs, number)[-3000:]
    made = final(outputs, trainer)
    assert made.is_dir() == (trainer == "fsdp2")
    assert_same_steps(alone, made)
    assert_trained_alike(alone, made, pretrained, data_root)
    assert len(list((outputs / "runs").glob(f"{trainer}*"))) == 1


LONG = ["stage.max_steps=40", "stage.validate_every=40", "stage.checkpoint_every=100", "stage.batch_size=2", "trainer=ddp"]


@pytest.fixture(scope="module")
def uninterrupted(slurm, data_root, outputs, pretrained) -> Path:
    own = arguments(data_root, outputs, pretrained, "through", *LONG, *ON_CPUS)
    number = submit(slurm, outputs, "several_nodes.sbatch", TWO_NODES, own, RUN_NAME="through")
    assert slurm.wait(number).state == "COMPLETED", log(outputs, number)[-3000:]
    return final(outputs, "through")


def test_a_signalled_job_continues_as_if_nothing_had_happened(slurm, data_root, outputs, pretrained, uninterrupted):
    database = f"sqlite:///{outputs / 'requeued.db'}"
    recorded = ["mlflow={tracking_uri: '" + database + "', experiment: requeue, on_failure: error}", "trainer.log_every_n_steps=1"]
    own = arguments(data_root, outputs, pretrained, "requeued", *LONG, *ON_CPUS, *recorded)
    number = submit(slurm, outputs, "several_nodes.sbatch", TWO_NODES, own)
    name = f"echo-pl-{number}"  # of the job, as the scripts name a run
    wait_for_steps(slurm, number, outputs / "requeued.json", 5)
    slurm.call("scancel", "--signal=USR1", number)
    slurm.wait(number, "PENDING", "FAILED", "COMPLETED")
    assert "goes back into the queue" in log(outputs, number), log(outputs, number)[-3000:]
    last = outputs / "runs" / name / "checkpoints" / "last.ckpt"
    record, content = read_checkpoint(last)
    assert 5 <= content["global_step"] < 40
    assert read_info(outputs / "runs" / name).status == "stopped"
    time.sleep(5)  # SLURM itself waits two minutes; a node rejects a job that it has just been ordered to kill
    slurm.call("scontrol", "update", f"jobid={number}", "StartTime=now")
    job = slurm.wait(number)
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", "0:0", 1), log(outputs, number)[-3000:]
    one, other = weights(uninterrupted, data_root), weights(final(outputs, name), data_root)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(list((outputs / "runs").glob(f"{name}*"))) == 1
    mlflow.set_tracking_uri(database)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (found.info.run_id, found.info.status) == (record.mlflow_run_id, "FINISHED")
    logged = mlflow.MlflowClient().get_metric_history(found.info.run_id, "train/loss")
    assert sorted(metric.step for metric in logged) == list(range(40))


def test_a_job_whose_time_is_up_is_requeued_by_itself(slurm, data_root, outputs, pretrained, uninterrupted):
    """By SLURM's own clock, whose signal may come up to a minute earlier than it is asked for; steps are slow until then."""
    last = outputs / "runs" / "timed" / "checkpoints" / "last.ckpt"
    own = arguments(data_root, outputs, pretrained, "timed", *LONG, *ON_CPUS, slow_until(last, 4))
    options = [*(option for option in TWO_NODES if "--time" not in option), "--time=00:02:00", "--signal=USR1@30"]
    number = submit(slurm, outputs, "several_nodes.sbatch", options, own, RUN_NAME="timed")
    slurm.wait(number, "RUNNING")
    slurm.wait(number, "PENDING", "FAILED", "COMPLETED", "TIMEOUT")
    assert "goes back into the queue" in log(outputs, number), log(outputs, number)[-3000:]
    assert 0 < read_checkpoint(last)[1]["global_step"] < 40
    time.sleep(5)
    slurm.call("scontrol", "update", f"jobid={number}", "StartTime=now")
    job = slurm.wait(number)
    assert (job.state, job.restarts) == ("COMPLETED", 1), log(outputs, number)[-3000:]
    one, other = weights(uninterrupted, data_root), weights(final(outputs, "timed"), data_root)
    assert all(torch.equal(one[key], other[key]) for key in one)


def slow_until(path: Path, seconds: float) -> str:
    return f"+callbacks.slow={{_target_: stage_parts.Slow, seconds: {seconds}, until: {path}}}"


def test_a_job_is_not_requeued_for_ever(slurm, data_root, outputs, pretrained):
    own = arguments(data_root, outputs, pretrained, "limited", *LONG, *ON_CPUS, slow_until(outputs / "never", 2))
    number = submit(slurm, outputs, "several_nodes.sbatch", TWO_NODES, own, RUN_NAME="limited", MAX_REQUEUES="0")
    wait_for_steps(slurm, number, outputs / "limited.json", 2)
    slurm.call("scancel", "--signal=USR1", number)
    job = slurm.wait(number)
    assert (job.state, job.restarts) == ("FAILED", 0)
    assert "MAX_REQUEUES is 0: it stays stopped; submit it again with RUN_NAME=limited" in " ".join(log(outputs, number).split())


def wait_for_steps(slurm: Cluster, number: str, path: Path, count: int, seconds: float = 180) -> None:
    give_up = time.monotonic() + seconds
    while not (path.is_file() and (text := path.read_text()) and len(json.loads(text)) >= count):
        assert time.monotonic() < give_up, f"no {count} steps after {seconds} s"
        assert slurm.job(number).state in ("PENDING", "RUNNING"), log(path.parent, number)[-3000:]
        time.sleep(0.2)


def test_a_sweep_of_block_sizes_as_a_job_array(slurm, data_root, outputs, pretrained):
    own = arguments(data_root, outputs, pretrained, "array", "stage.batch_size=4", "trainer=cpu", *ON_CPUS)
    options = ["--nodes=1", *ONE_TASK_A_NODE, "--array=0-2"]
    number = submit(slurm, outputs, "sweep.sbatch", options, own, BLOCK_SIZES="4 8")
    states = [slurm.wait(f"{number}_{task}").state for task in range(3)]
    assert states == ["COMPLETED", "COMPLETED", "FAILED"]
    infos = [read_info(folder) for folder in (outputs / "runs").glob("echo-pl-sweep-*")]
    assert sorted((info.block_size, info.status) for info in infos) == [(4, "finished"), (8, "finished")]
    assert any("there is no block size number 2" in path.read_text() for path in outputs.glob("job-*.log"))


def test_a_sweep_by_hydra_and_submitit(slurm, data_root, outputs, pretrained):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[slurm]'")
    sweep = outputs / "sweep"
    sweep.mkdir()
    own = ["stage=rad", *SMALL, *SIZES, f"data_root={data_root}", f"outputs={sweep}", f"start={pretrained}", "stage.batch_size=4"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]
    done = subprocess.run(
        [sys.executable, "-m", "echo_pl", "-m", *own, *launcher, "block_size=4,8"],
        env=slurm.environment | extra(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    infos = [read_info(folder) for folder in (sweep / "runs").glob("*")]
    assert sorted((info.block_size, info.status) for info in infos) == [(4, "finished"), (8, "finished")]


def test_a_sweep_with_its_teachers_as_jobs(slurm, data_root, outputs):
    """Bases, teachers, trajectories and students, each stage as a job array; a second start finds all of it."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[slurm]'")
    place = outputs / "lab"
    place.mkdir()
    small = [one for one in SMALL if one != "mlflow=null" and not one.startswith("max_response")]
    given = ["rad.max_steps=2", "pretrain.max_steps=3", "grown.max_steps=2", "warmup.max_steps=2"]
    given += [f"{stage}.{one}" for stage in ("rad", "pretrain", "warmup") for one in ("validate_every=2", "batch_size=4")]
    own = ["sweep=lab", *small, *SIZES, f"data_root={data_root}", f"outputs={place}", *(f"+sweep.stages.{one}" for one in given)]
    own += ["sweep.grow=[4]", "sweep.trajectories=8", "sweep.studies=2", "sweep.timed_studies=1", "stage.batch_size=4"]
    launcher = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]
    axes = ["block_size=4,8", "ablation=dcd,ce", "seed=0"]
    printed = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "echo_pl", "-m", *own, *launcher, *axes],
            env=slurm.environment | extra(), capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[done.stderr.find("echo-pl:") :][:3000]
        printed.append(done.stdout)
    assert "4 jobs need 10 parts, 0 of them are done" in printed[0]
    assert "4 jobs need 10 parts, 10 of them are done" in printed[1]
    stages = sorted(read_info(folder).stage for folder in (place / "runs").iterdir())
    assert stages == ["dcd"] * 4 + ["pretrain"] + ["rad"] * 2 + ["warmup"]
    client = mlflow.MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    cells = [run for run in client.search_runs(["1"]) if "echo_pl.cell" in run.data.tags]
    assert sorted((run.data.params["objective"], run.info.status) for run in cells) == [
        *[("ar", "FINISHED")], *[("ce", "FINISHED")] * 2, *[("dcd", "FINISHED")] * 2, *[("teacher", "FINISHED")] * 2,
    ]  # fmt: skip


def test_tasks_that_contradict_the_trainer_are_rejected(slurm, data_root, outputs, pretrained):
    own = arguments(data_root, outputs, pretrained, "other", "stage.batch_size=2", "trainer=ddp", "trainer.devices=2", *ON_CPUS)
    number = submit(slurm, outputs, "several_nodes.sbatch", TWO_NODES, own, RUN_NAME="other")
    job = slurm.wait(number)
    assert (job.state, job.exit_code) == ("FAILED", "2:0"), log(outputs, number)[-3000:]
    wrong = "srun started 1 processes on each of 2 nodes, the trainer wants trainer.devices=2 trainer.num_nodes=2"
    assert wrong in log(outputs, number)
    assert not (outputs / "runs" / "other").exists()
