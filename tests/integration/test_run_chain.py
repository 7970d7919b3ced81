"""Whole runs from composed configurations: the chain of stages finds its way, is cut off, resumed, validated and recorded."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from commands import run_process
from mlflow.entities import Run
from omegaconf import OmegaConf

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.config.compose import compose_config
from echo_pl.io.checkpoints import AtomicCheckpointIO
from echo_pl.io.run_folders import read_info, resumable_checkpoint
from echo_pl.runs.checkpoint_files import from_hf, to_hf
from echo_pl.runs.checkpointing import StoppedError
from echo_pl.runs.finite_loss import NonFiniteLossError
from echo_pl.runs.run import RunOutcome, run
from echo_pl.runs.stored_features import store_features

pytestmark = pytest.mark.slow

SMALL = [
    "threads=1",
    "min_free_gb=0",
    "trainer.enable_progress_bar=false",
    "trainer.precision=32-true",
    "stage.batch_size=4",
    "stage.eval_batch_size=4",
    "stage.max_steps=4",
    "stage.validate_every=2",
    "stage.checkpoint_every=1",
    "data.limit_val=4",
    "data.limit_train=12",
    "backbone.factory.width=32",
    "backbone.factory.layers=2",
    "backbone.factory.heads=2",
    "backbone.factory.key_heads=1",
    "backbone.factory.mlp_width=48",
    "backbone.factory.vision_width=32",
    "backbone.factory.vision_layers=1",
]
QUIET = ["mlflow=null", "callbacks=none"]
OWN = ["stage=pretrain", "start=null", *QUIET]
CUT = "+callbacks.cut={_target_: stage_parts.CutOff, at: 3}"


@pytest.fixture(scope="module")
def data_root(tiny_data) -> Path:
    return tiny_data


def start_run(data_root: Path, outputs: Path, *overrides: str) -> RunOutcome:
    return run(compose_config([f"data_root={data_root}", f"outputs={outputs}", *SMALL, *overrides]))


@pytest.fixture(scope="module")
def chain(data_root, tmp_path_factory) -> dict[str, RunOutcome]:
    """All four stages, each left to find the one before it."""
    outputs = tmp_path_factory.mktemp("chain")
    stages = ("warmup", "pretrain", "rad", "dcd")
    return {stage: start_run(data_root, outputs, f"stage={stage}", *QUIET) for stage in stages}


def test_every_stage_starts_from_the_newest_one_before_it(chain):
    before = None
    first = read_info(chain["warmup"].folder)
    assert first.chain.startswith(chain["warmup"].folder.name)
    for stage, outcome in chain.items():
        record, content = read_checkpoint(outcome.checkpoint)
        info = read_info(outcome.folder)
        assert (record.stage, info.stage, info.status) == (stage, stage, "finished")
        assert record.start == info.start == (None if before is None else str(before))
        assert record.chain == info.chain == first.chain
        assert record.block_size == info.block_size == (8 if stage in ("rad", "dcd") else None)
        assert content["global_step"] == 4
        assert outcome.metrics["val/loss"] > 0
        before = outcome.checkpoint


def test_the_resolved_configuration_is_kept_beside_the_checkpoints(chain):
    folder = chain["dcd"].folder
    config = OmegaConf.load(folder / "config.yaml")
    assert config.stage.module.decode.block_size == 8
    assert config.run.folder == str(folder)
    assert config.run.ar_checkpoint == str(chain["pretrain"].checkpoint)
    assert "${" not in (folder / "config.yaml").read_text(encoding="utf-8")


def test_the_start_that_was_found_is_logged(data_root, chain, caplog):
    with caplog.at_level(logging.INFO):
        start_run(data_root, outputs_of(chain), "stage=rad", "stage.max_steps=1", *QUIET)
    assert f"starting from {chain['pretrain'].checkpoint} (stage pretrain" in caplog.text


def outputs_of(chain: dict[str, RunOutcome]) -> Path:
    return chain["rad"].folder.parent.parent


def test_a_stage_without_the_one_before_it_names_the_command(data_root, tmp_path, chain):
    with pytest.raises(FileNotFoundError, match=r"run `echo-pl stage=pretrain` first, or give start=<checkpoint>"):
        start_run(data_root, tmp_path, "stage=rad", *QUIET)
    with pytest.raises(FileNotFoundError, match=r"run `echo-pl stage=rad block_size=4` first"):
        start_run(data_root, outputs_of(chain), "stage=dcd", "block_size=4", *QUIET)
    with pytest.raises(FileNotFoundError, match=r"no unfinished run of stage dcd with a checkpoint under"):
        start_run(data_root, tmp_path, "stage=dcd", "resume=auto", *QUIET)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere.ckpt"):
        start_run(data_root, tmp_path, "stage=rad", "start=nowhere.ckpt", *QUIET)


@pytest.mark.parametrize(
    ("stage", "start", "asked", "message"),
    [
        ("dcd", "pretrain", (), r"is a checkpoint of stage 'pretrain', needed is one of 'rad'"),
        ("rad", "warmup", (), r"is a checkpoint of stage 'warmup', needed is one of 'pretrain' or 'rad'"),
        ("dcd", "rad", ("block_size=4",), r"was trained with block_size 8, this run has 4"),
        (
            "dcd",
            "rad",
            ("backbone.factory.width=64",),
            r"\(a TinyBackbone\) does not fit .* weights have other shapes",
        ),
        ("rad", "pretrain", ("backbone.factory.vision_heads=2",), r"was trained with vision_heads 4, the model of .* has 2"),
        ("rad", "pretrain", ("trainer.devices=auto",), r"trainer.devices must be a positive number, got 'auto'"),
        ("rad", "pretrain", ("stage.batch_size=64",), r"12 training studies do not fill one batch of 64 on 1 rank"),
        ("rad", "pretrain", ("stage.batch_size=8", "trainer=ddp"), r"12 training studies do not fill one batch of 8 on 2 rank"),
    ],
)
def test_a_start_that_does_not_fit_is_rejected_before_anything_is_written(data_root, tmp_path, chain, stage, start, asked, message):
    with pytest.raises(ValueError, match=message):
        start_run(data_root, tmp_path / "outputs", f"stage={stage}", f"start={chain[start].checkpoint}", *asked)
    assert not (tmp_path / "outputs" / "runs").exists()
    assert not list(tmp_path.rglob("*.db"))


def test_settings_that_would_not_train_as_configured_are_rejected(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"the vision warm-up is small and is not sharded: .* trainer=cpu, gpu or ddp"):
        start_run(data_root, tmp_path, "stage=warmup", "trainer=fsdp2", "trainer.devices=1")
    with pytest.raises(ValueError, match=r"stage dcd needs a stage-2 checkpoint as its teacher: give start="):
        start_run(data_root, tmp_path, "stage=dcd", "start=null")
    assert not (tmp_path / "runs").exists()


def test_another_vocabulary_and_other_data_are_rejected(data_root, small_data, tmp_path, chain):
    start = chain["pretrain"].checkpoint
    content = torch.load(start, weights_only=True)
    content["echo_pl"]["vocabulary"] = "0123"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"was trained with vocabulary 0123, this run has \w+: its token ids"):
        start_run(data_root, tmp_path, "stage=rad", f"start={tmp_path / 'other.ckpt'}")
    with pytest.raises(ValueError, match=r"was trained on data with fingerprint \w+, this run has \w+; resume with the same"):
        start_run(small_data, tmp_path, "stage=pretrain", f"resume={start}")
    with pytest.raises(ValueError, match=r"\(a TinyBackbone\) does not fit the model: \d+ weights have other shapes"):
        start_run(data_root, tmp_path, "stage=pretrain", f"resume={start}", "backbone.factory.width=64")
    assert not (tmp_path / "runs").exists()


def test_a_run_does_not_start_over_one_that_can_be_resumed(data_root, tmp_path):
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, "run_name=mine", CUT)
    with pytest.raises(FileExistsError, match=r"mine is an unfinished run with a checkpoint: .*resume=auto run_name=mine"):
        start_run(data_root, tmp_path, *OWN, "run_name=mine")
    start_run(data_root, tmp_path, *OWN, "run_name=mine", "resume=if_any")


@pytest.mark.filterwarnings("ignore:.*noload")
def test_changed_settings_of_a_resumed_run_are_reported_and_their_figures_logged(data_root, tmp_path, caplog):
    own = ["stage=pretrain", "start=null", "callbacks=none", "trainer.log_every_n_steps=1", "stage.checkpoint_every=2"]
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *own, "+callbacks.cut={_target_: stage_parts.CutOff, at: 4}")
    with caplog.at_level(logging.WARNING):
        rest = start_run(data_root, tmp_path, *own, "resume=auto", "stage.module.optimization.learning_rate=0.01")
    assert "is resumed with other settings than it began with: stage.module.optimization.learning_rate was " in caplog.text
    assert "is 0.01" in caplog.text
    record = read_checkpoint(rest.checkpoint)[0]
    logged = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_metric_history(record.mlflow_run_id, "train/loss")
    assert [metric.step for metric in logged].count(2) == 2, "the step that was trained again has another value"


@pytest.mark.filterwarnings("ignore:.*noload")
def test_a_run_killed_before_its_first_checkpoint_restarts_in_its_mlflow_run(data_root, tmp_path):
    own = ["stage=pretrain", "start=null", "callbacks=none", "trainer.log_every_n_steps=1", "stage.checkpoint_every=100"]
    again = ["run_name=mine", "resume=if_any"]
    killed = "+callbacks.killed={_target_: stage_parts.Killed, at: 3, writing: false}"
    assert forked_run(data_root, tmp_path, *own, *again, killed) == -signal.SIGKILL
    made = start_run(data_root, tmp_path, *own, *again)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = read_checkpoint(made.checkpoint)[0].mlflow_run_id
    (found,) = client.search_runs([client.get_run(run_id).info.experiment_id])
    assert found.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == [0, 1, 2, 3]


def test_stored_features_of_another_tower_are_rejected_before_anything_is_written(data_root, tmp_path, chain):
    other = start_run(data_root, tmp_path / "other", "stage=pretrain", "start=null", "stage.max_steps=1", *QUIET)
    common = [f"data_root={data_root}", *SMALL, "stage=rad"]
    own = compose_config([*common, f"outputs={tmp_path}", f"start={chain['pretrain'].checkpoint}"])
    store_features(own, tmp_path / "features", "float32", 8)
    stored = f"data.stored_features={tmp_path / 'features'}"
    for stage, start in (("rad", chain["pretrain"]), ("dcd", chain["rad"])):
        start_run(data_root, tmp_path / "right", f"stage={stage}", f"start={start.checkpoint}", stored, "stage.max_steps=1", *QUIET)
    with pytest.raises(ValueError, match=r"stored vision features are of tower \w+, this model has \w+: make them again"):
        start_run(data_root, tmp_path / "outputs", "stage=rad", f"start={other.checkpoint}", stored)
    assert not (tmp_path / "outputs" / "runs").exists()


@pytest.fixture(scope="module")
def uninterrupted(data_root, tmp_path_factory) -> dict[str, torch.Tensor]:
    outcome = start_run(data_root, tmp_path_factory.mktemp("uninterrupted"), *OWN)
    return read_checkpoint(outcome.checkpoint)[1]["state_dict"]


def same_weights(outcome: RunOutcome, weights: dict[str, torch.Tensor]) -> bool:
    found = read_checkpoint(outcome.checkpoint)[1]["state_dict"]
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in found)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_ends_a_run_after_its_step_and_nothing_is_lost(data_root, tmp_path, uninterrupted, name):
    before = signal.getsignal(getattr(signal, name))
    sender = f"+callbacks.sender={{_target_: stage_parts.Sender, name: {name}, at: 2}}"
    with pytest.raises(StoppedError, match=f"{name} ended the run after a whole step; continue it with resume=auto"):
        start_run(data_root, tmp_path, *OWN, "stage.checkpoint_every=100", sender)
    assert signal.getsignal(getattr(signal, name)) is before
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_info(folder).status == "stopped"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")[1]["global_step"] == 2
    rest = start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert rest.folder == folder
    assert same_weights(rest, uninterrupted)


def test_a_run_in_mixed_precision_resumes_bit_by_bit(data_root, tmp_path, uninterrupted):
    own = [*OWN, "trainer.precision=bf16-mixed", "stage.checkpoint_every=100"]
    whole = start_run(data_root, tmp_path / "whole", *own)
    with pytest.raises(StoppedError):
        start_run(data_root, tmp_path / "stopped", *own, "+callbacks.sender={_target_: stage_parts.Sender, name: SIGUSR1, at: 2}")
    rest = start_run(data_root, tmp_path / "stopped", *own, "resume=auto")
    assert same_weights(rest, read_checkpoint(whole.checkpoint)[1]["state_dict"])
    assert not same_weights(whole, uninterrupted), "nothing was rounded"


@pytest.mark.parametrize("at", [1, 2, 3], ids=["step", "validation", "epoch"])
@pytest.mark.filterwarnings("ignore:.*noload")
def test_the_step_of_a_signal_is_in_mlflow_too(data_root, tmp_path, at):
    """Loggers write a step behind the callbacks. After the second step comes a validation, after the third an epoch."""
    own = ["stage=pretrain", "start=null", "callbacks=none", "trainer.log_every_n_steps=1"]
    with pytest.raises(StoppedError):
        start_run(data_root, tmp_path, *own, f"+callbacks.sender={{_target_: stage_parts.Sender, name: SIGUSR1, at: {at}}}")
    (folder,) = (tmp_path / "runs").iterdir()
    record, content = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert content["global_step"] == at
    if at > 1:  # a checkpoint was due at the same step, and is not written twice
        assert read_checkpoint(folder / "checkpoints" / "previous.ckpt")[1]["global_step"] == at - 1
    start_run(data_root, tmp_path, *own, "resume=auto")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [metric.step for metric in client.get_metric_history(record.mlflow_run_id, "train/loss")] == [0, 1, 2, 3]
    assert len(client.get_metric_history(record.mlflow_run_id, "val/loss")) == 2
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"


def test_a_signal_within_accumulated_batches_waits_for_the_step(data_root, tmp_path):
    own = [*OWN, "stage.accumulate=2", "stage.max_steps=3"]
    whole = start_run(data_root, tmp_path / "whole", *own)
    sender = "+callbacks.sender={_target_: stage_parts.Sender, name: SIGTERM, at: 0}"  # in the first half of the first step
    with pytest.raises(StoppedError):
        start_run(data_root, tmp_path / "stopped", *own, sender)
    (folder,) = (tmp_path / "stopped" / "runs").iterdir()
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")[1]["global_step"] == 1
    rest = start_run(data_root, tmp_path / "stopped", *own, "resume=auto")
    assert same_weights(rest, read_checkpoint(whole.checkpoint)[1]["state_dict"])


def test_a_torn_checkpoint_is_noticed_and_the_one_before_is_used(data_root, tmp_path, uninterrupted, caplog):
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, CUT)
    (folder,) = (tmp_path / "runs").iterdir()
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    assert [read_checkpoint(path)[1]["global_step"] for path in (last, previous)] == [2, 1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        rest = start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert f"the run resumes from the checkpoint before it, {previous}" in caplog.text
    assert same_weights(rest, uninterrupted)


def test_a_torn_checkpoint_does_not_replace_the_previous_one(data_root, tmp_path, uninterrupted, monkeypatch):
    """Torn, resumed, and no room for the first checkpoint then: the good one is still there."""
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, CUT)
    (folder,) = (tmp_path / "runs").iterdir()
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:100])

    def full(content, path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="cannot write a checkpoint"):
            start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert same_weights(start_run(data_root, tmp_path, *OWN, "resume=auto"), uninterrupted)


def test_a_signal_in_the_last_step_comes_too_late(data_root, tmp_path, uninterrupted):
    sender = "+callbacks.sender={_target_: stage_parts.Sender, name: SIGTERM, at: 4}"
    assert same_weights(start_run(data_root, tmp_path, *OWN, sender), uninterrupted)


def test_a_run_that_died_after_its_last_step_is_finished(data_root, tmp_path, uninterrupted):
    outcome = start_run(data_root, tmp_path, *OWN)
    outcome.checkpoint.unlink()
    info = outcome.folder / "run.json"
    info.write_text(info.read_text().replace("finished", "failed"))
    rest = start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert same_weights(rest, uninterrupted)


def test_a_run_that_died_between_two_checkpoints_resumes_from_the_first(data_root, tmp_path, uninterrupted):
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, CUT)
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "checkpoints" / "last.ckpt").rename(folder / "checkpoints" / "last.ckpt.partial")
    assert same_weights(start_run(data_root, tmp_path, *OWN, "resume=auto"), uninterrupted)


def forked_run(data_root: Path, outputs: Path, *overrides: str) -> int:
    """Return the exit status of a run in a process of its own."""
    return run_process(["train", f"data_root={data_root}", f"outputs={outputs}", *SMALL, *overrides], outputs / "log.txt")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_all_processes_spares_those_that_load(data_root, tmp_path, uninterrupted, name):
    """As SLURM sends it: to every process of a job's step."""
    sender = f"+callbacks.sender={{_target_: stage_parts.Sender, name: {name}, at: 2, to_all: true}}"
    loading = ["stage.checkpoint_every=100", "data.num_workers=2", "data.cache_samples=0"]
    done = subprocess.run(
        [sys.executable, "-m", "echo_pl", f"data_root={data_root}", f"outputs={tmp_path}", *SMALL, *OWN, *loading, sender],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=300,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 128 + getattr(signal, name), done.stderr[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert (read_info(folder).status, read_checkpoint(resumable_checkpoint(folder))[1]["global_step"]) == ("stopped", 2)
    assert same_weights(start_run(data_root, tmp_path, *OWN, "resume=auto"), uninterrupted)


@pytest.mark.parametrize("writing", ["false", "true"], ids=["between-steps", "in-a-checkpoint"])
def test_a_killed_run_resumes(data_root, tmp_path, uninterrupted, writing):
    """A process of its own, as nothing is left of it."""
    status = forked_run(data_root, tmp_path, *OWN, f"+callbacks.killed={{_target_: stage_parts.Killed, at: 3, writing: {writing}}}")
    assert status == -signal.SIGKILL, (tmp_path / "log.txt").read_text()[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_info(folder).status == "running", "a killed process cannot update its status"
    assert (folder / "checkpoints" / "last.ckpt.partial").exists() == (writing == "true")
    assert read_checkpoint(resumable_checkpoint(folder))[1]["global_step"] == 2
    rest = start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert rest.folder == folder
    assert same_weights(rest, uninterrupted)
    assert not list(folder.rglob("*.partial"))


@pytest.mark.filterwarnings("ignore:.*noload")
def test_a_killed_run_resumes_in_its_mlflow_run_and_logs_no_step_twice(data_root, tmp_path):
    own = ["stage=pretrain", "start=null", "callbacks=none", "trainer.log_every_n_steps=1", "stage.checkpoint_every=2"]
    killed = "+callbacks.killed={_target_: stage_parts.Killed, at: 4, writing: false}"
    assert forked_run(data_root, tmp_path, *own, killed) == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    record, content = read_checkpoint(resumable_checkpoint(folder))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    def steps(name: str) -> list[int]:
        return [metric.step for metric in client.get_metric_history(record.mlflow_run_id, name)]

    assert max(steps("train/loss")) >= content["global_step"], "a step was logged that the checkpoint does not have"
    start_run(data_root, tmp_path, *own, "resume=auto")
    assert steps("train/loss") == [0, 1, 2, 3]
    assert len(steps("val/loss")) == 2
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"
    assert len(client.search_runs([client.get_run(record.mlflow_run_id).info.experiment_id])) == 1


def test_a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(data_root, tmp_path, uninterrupted, monkeypatch):
    save, saved = torch.save, []

    def full(content, file, *args, **kwargs):
        if str(file.name).endswith("last.ckpt.partial"):
            saved.append(file.name)
            if len(saved) == 3:
                file.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
        return save(content, file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"cannot write a checkpoint .* make room, then resume=auto"):
            start_run(data_root, tmp_path, *OWN)
    (folder,) = (tmp_path / "runs").iterdir()
    assert not list(folder.rglob("*.partial"))
    assert same_weights(start_run(data_root, tmp_path, *OWN, "resume=auto"), uninterrupted)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_reported(tmp_path):
    place = tmp_path / "last.ckpt"
    place.with_name("last.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot write a checkpoint .* make room, then resume=auto"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.zeros(100_000)}}, place)
    assert not list(tmp_path.iterdir())


def test_a_student_without_its_teacher_is_validated(data_root, tmp_path, chain):
    """Exported and imported again: its teacher is on another machine."""
    to_hf(chain["dcd"].checkpoint, tmp_path / "model")
    for about in ("echo_pl.json", None):
        if about is None:
            (tmp_path / "model" / "echo_pl.json").unlink()
        imported = tmp_path / f"{about}.ckpt"
        from_hf(tmp_path / "model", imported, stage="dcd", block_size=8)
        seen = start_run(data_root, tmp_path, "stage=dcd", "task=validate", f"resume={imported}")
        assert seen.metrics["val/loss"] == pytest.approx(chain["dcd"].metrics["val/loss"])


def test_an_interrupted_run_resumes_where_it_was(data_root, tmp_path, uninterrupted):
    """Four steps, or a power cut in the third and the rest: the same weights bit by bit, in the same folder."""
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, CUT)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_info(folder).status == "failed"
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")[1]["global_step"] == 2
    rest = start_run(data_root, tmp_path, *OWN, "resume=auto")
    assert rest.folder == folder
    assert read_info(folder).status == "finished"
    assert same_weights(rest, uninterrupted)
    with pytest.raises(FileNotFoundError, match="no unfinished run of stage pretrain"):
        start_run(data_root, tmp_path, *OWN, "resume=auto")


def test_a_named_run_is_started_and_resumed_by_the_same_command(data_root, tmp_path, uninterrupted):
    """As a batch job does that is started again: another unfinished run beside it is not taken."""
    own = [*OWN, "resume=if_any"]
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *own, "run_name=job-1", CUT)
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *own, "run_name=job-2", "seed=1", CUT)
    rest = start_run(data_root, tmp_path, *own, "run_name=job-1")
    assert rest.folder.name == "job-1"
    assert same_weights(rest, uninterrupted)
    with pytest.raises(FileExistsError, match="is a finished run"):
        start_run(data_root, tmp_path, *own, "run_name=job-1")
    with pytest.raises(ValueError, match=r"resume=if_any .*: give run_name"):
        start_run(data_root, tmp_path, *own)
    with pytest.raises(FileNotFoundError, match="no unfinished run of stage pretrain and name 'job-3'"):
        start_run(data_root, tmp_path, *OWN, "resume=auto", "run_name=job-3")


def test_a_run_of_another_stage_is_not_begun_over_an_unfinished_one(data_root, tmp_path):
    with pytest.raises(ConnectionError):
        start_run(data_root, tmp_path, *OWN, "run_name=job", CUT)
    folder = tmp_path / "runs" / "job"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"job is an unfinished run of stage pretrain, this one is of rad: give another run_name"):
        start_run(data_root, tmp_path, "stage=rad", "start=null", *QUIET, "run_name=job", "resume=if_any")
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"has a checkpoint and no readable run.json: resume=.*last.ckpt"):
        start_run(data_root, tmp_path, *OWN, "run_name=job", "resume=if_any")
    (folder / "run.json").write_bytes(before[folder / "run.json"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


NAN_AT_2 = "+callbacks.spoil={_target_: stage_parts.SpoilLoss, at: 2}"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_studies(data_root, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"optimizer step 3 is not finite; studies of the batch: \S+, \S+, \S+, \S+\. "):
        start_run(data_root, tmp_path, *OWN, NAN_AT_2)
    (folder,) = (tmp_path / "runs").iterdir()
    found = read_checkpoint(folder / "checkpoints" / "last.ckpt")[1]
    assert found["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in found["state_dict"].values())


def test_a_step_whose_loss_is_not_finite_can_be_left_out(data_root, tmp_path, caplog):
    own = [*OWN, "stage.on_nonfinite_loss=skip"]
    outcome = start_run(data_root, tmp_path, *own, NAN_AT_2, "stage.max_steps=3")
    assert outcome.metrics["train/skipped_steps"] == 1
    assert "is not finite; studies of the batch:" in caplog.text
    two = read_checkpoint(outcome.folder / "checkpoints" / "previous.ckpt")[1]  # of the step before the one left out
    three = read_checkpoint(outcome.checkpoint)[1]
    assert (two["global_step"], three["global_step"]) == (2, 3)
    assert all(torch.equal(two["state_dict"][name], value) for name, value in three["state_dict"].items())
    with pytest.raises(ValueError, match=r"on_nonfinite_loss must be one of \('error', 'skip'\), got 'ignore'"):
        start_run(data_root, tmp_path / "other", *OWN, "stage.on_nonfinite_loss=ignore")


def test_a_resume_that_does_not_fit_is_rejected(data_root, chain):
    outputs, last = outputs_of(chain), chain["rad"].checkpoint
    with pytest.raises(ValueError, match=r"is a checkpoint of stage 'rad'; it cannot resume stage 'dcd'"):
        start_run(data_root, outputs, "stage=dcd", f"resume={last}", *QUIET)
    for override, name, had in (
        ("block_size=4", "block_size", 8),
        ("grid=absolute", "grid", "response"),
        ("context_attention=full", "context_attention", "causal"),
    ):
        with pytest.raises(ValueError, match=rf"was trained with {name} {had}, .*give {name}={had} to resume it"):
            start_run(data_root, outputs, "stage=rad", override, f"resume={last}", *QUIET)


def test_a_checkpoint_is_validated_as_it_was_at_the_end_of_its_run(data_root, chain):
    outputs = outputs_of(chain)
    for stage in ("pretrain", "rad", "dcd"):
        own = [f"stage={stage}", "task=validate", f"resume={chain[stage].checkpoint}"]
        outcome = start_run(data_root, outputs, *own, *QUIET)
        assert outcome.metrics["val/loss"] == chain[stage].metrics["val/loss"]
        assert outcome.metrics["speed/nfe"] == chain[stage].metrics["speed/nfe"]


def test_validating_needs_a_checkpoint_of_the_stage(data_root, chain):
    outputs = outputs_of(chain)
    with pytest.raises(ValueError, match=r"task=validate needs the checkpoint to validate: give resume=<checkpoint>"):
        start_run(data_root, outputs, "stage=rad", "task=validate", *QUIET)
    other = f"resume={chain['pretrain'].checkpoint}"
    with pytest.raises(ValueError, match=r"is a checkpoint of stage 'pretrain'; it cannot resume stage 'rad'"):
        start_run(data_root, outputs, "stage=rad", "task=validate", other, *QUIET)


def test_validating_touches_nothing(data_root, chain):
    folder = chain["pretrain"].folder

    def contents() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, runs = contents(), sorted(folder.parent.iterdir())
    own = ["stage=pretrain", "task=validate", f"resume={chain['pretrain'].checkpoint}"]
    start_run(data_root, outputs_of(chain), *own, *QUIET)
    assert contents() == before
    assert sorted(folder.parent.iterdir()) == runs


def test_a_finished_run_is_not_written_over(data_root, chain):
    with pytest.raises(FileExistsError, match="is a finished run; give another run_name"):
        start_run(data_root, outputs_of(chain), "stage=rad", f"run_name={chain['rad'].folder.name}", *QUIET)


@pytest.mark.filterwarnings("ignore:.*noload")
def test_stages_are_linked_in_mlflow(data_root, tmp_path):
    """The local database: metrics, configuration, data and the chain, stage after stage."""
    observers = ["callbacks.trajectories=null"]
    first = start_run(data_root, tmp_path, "stage=pretrain", "start=null", *observers)
    second = start_run(data_root, tmp_path, "stage=rad", "trainer.log_every_n_steps=1", *observers)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent, child = (client.get_run(read_checkpoint(o.checkpoint)[0].mlflow_run_id) for o in (first, second))
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {name_of(parent), name_of(child)} == {first.folder.name, second.folder.name}
    assert child.data.metrics["train/loss"] == pytest.approx(second.metrics["train/loss"])
    assert child.data.metrics["val/loss"] == pytest.approx(second.metrics["val/loss"])
    for one in (parent, child):
        assert one.data.tags["echo_pl.chain"] == read_info(first.folder).chain
        assert one.info.status == "FINISHED"
        assert any(artifact.path for artifact in client.list_artifacts(one.info.run_id))


def name_of(one: Run) -> str:
    return str(one.info.run_name)
