"""The observers on a very small stage: what they write, and that they leave no trace in the run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_fakes import SPECIAL, FakeJudge, FakeSampler, batches, detokenize
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from echo_pl.callbacks.observing import frozen, observing
from echo_pl.callbacks.run_record import RunRecord, environment, git_revision
from echo_pl.callbacks.speedup_ablation import SpeedupAblation
from echo_pl.callbacks.summary import StageSummary, summary_lines
from echo_pl.callbacks.trajectory_logger import TrajectoryLogger
from echo_pl.structs import Batch, SpecialTokens

pytestmark = pytest.mark.slow


class TinyData(LightningDataModule):
    special = SPECIAL
    vocab_size = 123
    fingerprint = "f00d"
    judge = FakeJudge()

    def detokenize(self, tokens: Tensor) -> str:
        return detokenize(tokens)

    def held_out_batches(self, split: str, batch_size: int, limit: int) -> list[Batch]:
        random.random(), np.random.rand(), torch.rand(1)  # a reader may shuffle
        return batches(limit, batch_size)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(24.0).view(12, 2) / 24, batch_size=3, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.ones(4, 2), batch_size=2)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()


class TinyStage(LightningModule):
    """Loss depends on the torch generator (dropout) and on Python's, so that a stray draw shows."""

    block_size = 8

    def __init__(self, stage_name: str = "dcd") -> None:
        super().__init__()
        self.stage_name = stage_name
        self.vlm = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.frozen = nn.Dropout(0.5).eval()
        self.teacher = "teacher"
        self.decoded_with: list[dict[str, Any]] = []
        self.sampler = self.make_sampler(self.vlm)
        self.objective = SimpleNamespace(name="ce")
        self.losses: list[float] = []

    def make_sampler(
        self,
        vlm: Any,
        *,
        block_size: int = 8,
        denoising_steps: int = 1,
        kv_cache: str = "fused",
        remasking: str = "random",
        students: bool = False,
    ) -> Any:
        if block_size == 7:
            raise ValueError("block_size 7 does not fit the grid")
        who = {"student": vlm is self.vlm, "as_students": students}
        self.decoded_with.append({"steps": denoising_steps, "remasking": remasking, **who})
        stage = self

        class Forwarding(FakeSampler):
            def generate(self, batch: Batch, recorder: Any = None) -> Any:
                assert not stage.vlm.training
                assert not torch.is_grad_enabled()
                stage.vlm(torch.ones(1, 2))
                return super().generate(batch, recorder)

        return Forwarding(block_size, stutter=denoising_steps == 1 and vlm == self.teacher)

    def make_student_sampler(self, **changes: Any) -> Any:
        return self.make_sampler(self.vlm, **changes, students=True)

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        assert self.vlm.training
        assert not self.frozen.training
        loss = (self.vlm(batch) + random.random()).pow(2).mean()
        self.losses.append(loss.item())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val/loss", self.vlm(batch).mean())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class FakeBaseline(FakeSampler):
    """An AR decoder; says where its model was put."""

    def __init__(self, *, special: SpecialTokens, vocab_size: int) -> None:
        super().__init__(1)
        assert (special, vocab_size) == (TinyData.special, TinyData.vocab_size)
        self.devices: list[torch.device] = []
        self.vlm = SimpleNamespace(to=self.devices.append)


def fit(folder: Path, callbacks: list[Callback], *, stage: str = "dcd", loggers: Any = False, epochs: int = 2) -> Trainer:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(TinyStage(stage), datamodule=TinyData())
    return trainer


@pytest.fixture(scope="session")
def mlflow_logger(tmp_path_factory: pytest.TempPathFactory) -> MLFlowLogger:
    """One database for the whole session: its tables take seconds to create."""
    folder = tmp_path_factory.mktemp("mlflow")
    logger = MLFlowLogger(
        experiment_name="echo",
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        artifact_location=(folder / "artifacts").as_uri(),
    )
    # Starts the run now: MLflow draws its name from Python's generator, which is the logger's doing and no observer's.
    assert logger.run_id
    return logger


@pytest.fixture(scope="session")
def observed(mlflow_logger: MLFlowLogger, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run with every observer, logging to MLflow."""
    folder = tmp_path_factory.mktemp("observed")
    observers = [
        RunRecord(config={"block_size": 8}, stage="dcd", chain="chain-1", parent_run_id="parent-1"),
        TrajectoryLogger(num_samples=2),
        SpeedupAblation(block_sizes=[8, 4], batch_sizes=[1, 2], studies=3, autoregressive=FakeBaseline, progress=False),
        StageSummary(),
    ]
    return fit(folder, observers, loggers=mlflow_logger), folder


def weights_and_losses(trainer: Trainer) -> tuple[list[float], list[Tensor]]:
    stage = trainer.lightning_module
    assert isinstance(stage, TinyStage)
    return stage.losses, [weight.detach() for weight in stage.parameters()]


def test_without_the_observers_the_run_is_bit_identical(observed: tuple[Trainer, Path], tmp_path: Path) -> None:
    losses, weights = weights_and_losses(observed[0])
    plain_losses, plain_weights = weights_and_losses(fit(tmp_path, []))
    assert len(losses) == 8
    assert losses == plain_losses
    assert all(torch.equal(left, right) for left, right in zip(weights, plain_weights, strict=True))


def test_observing_restores_everything(observed: tuple[Trainer, Path]) -> None:
    trainer, stage = observed[0], TinyStage().train()
    stage.frozen.eval()
    before = [part.training for part in stage.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def look() -> Iterator[None]:
        with observing(trainer, stage):
            assert not any(part.training for part in stage.modules())
            assert not torch.is_grad_enabled()
            torch.rand(5), random.random(), np.random.rand()
            yield
            raise KeyError("inside")

    looking = look()
    next(looking)
    with pytest.raises(KeyError):
        next(looking)
    with observing(trainer, stage):
        torch.rand(5), random.random(), np.random.rand()
    assert [part.training for part in stage.modules()] == before
    assert torch.is_grad_enabled()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_trajectories_are_written_after_every_validation(observed: tuple[Trainer, Path]) -> None:
    folder = observed[1] / "trajectories"
    names = ["step-000004.html", "step-000004.json", "step-000008.html", "step-000008.json"]
    assert sorted(path.name for path in folder.iterdir()) == names  # and none for the sanity check
    content = json.loads((folder / "step-000008.json").read_text())
    assert content["stage"] == "dcd"
    assert [sample["key"] for sample in content["samples"]] == ["study-0", "study-1"]
    assert content["samples"][0]["text"].startswith("Findings: ")
    assert "Reference" in (folder / "step-000008.html").read_text()


def test_every_second_validation_and_no_warm_up(tmp_path: Path) -> None:
    fit(tmp_path / "a", [TrajectoryLogger(num_samples=1, every_n_validations=2)])
    assert len(list((tmp_path / "a" / "trajectories").iterdir())) == 2
    fit(tmp_path / "b", [TrajectoryLogger()], stage="warmup", epochs=1)
    assert not (tmp_path / "b" / "trajectories").exists()


def test_speedup_rows(observed: tuple[Trainer, Path]) -> None:
    content = json.loads((observed[1] / "speedup" / "fit.json").read_text())
    rows = content["rows"]
    assert content["signatures"]["rouge_l"].startswith("rouge_l|")
    # per batch size: AR, and for two block sizes base vanilla, base fused, base one step, distilled
    assert len(rows) == 2 * (1 + 2 * 4)
    methods = [(row["method"], row["block_size"], row["kv_cache"]) for row in rows[:5]]
    assert methods == [
        ("ar", 1, None),
        ("base", 8, "vanilla"),
        ("base", 8, "fused"),
        ("base_one_step", 8, "fused"),
        ("distilled", 8, "fused"),
    ]
    assert rows[3]["valid_sentences"] < rows[4]["valid_sentences"] == 1.0
    assert {row["note"] for row in rows if row["block_size"] == 4} == {"trained with block size 8"}
    assert {row["note"] for row in rows if row["block_size"] != 4} == {""}


def test_speedup_rows_bear_the_objective_of_the_stage(observed: tuple[Trainer, Path]) -> None:
    rows = json.loads((observed[1] / "speedup" / "fit.json").read_text())["rows"]
    assert {row["objective"] for row in rows if row["method"] == "distilled"} == {"ce"}


def test_rows_do_not_decode_in_the_random_order_that_a_run_may_collect_in(tmp_path: Path) -> None:
    trainer = fit(tmp_path, [SpeedupAblation(block_sizes=[8], studies=2, progress=False)], epochs=1)
    own, *rows = trainer.lightning_module.decoded_with
    assert own["remasking"] == "random"
    assert {row["steps"] for row in rows} == {1, 8}
    assert {row["remasking"] for row in rows} == {"low_confidence_dynamic"}
    ways = {(row["student"], row["as_students"]) for row in rows}
    assert ways == {(False, False), (True, True)}, "a gate and bigrams are the student's alone"


def test_the_ar_model_is_moved_to_the_module_s_device(tmp_path: Path) -> None:
    made = []

    def make(**text: Any) -> FakeBaseline:
        made.append(FakeBaseline(**text))
        return made[0]

    ablation = SpeedupAblation(block_sizes=[8], studies=2, autoregressive=make, progress=False)
    fit(tmp_path, [ablation], epochs=1)
    assert [baseline.devices for baseline in made] == [[torch.device("cpu")]]


def test_a_chain_without_stage_1_has_no_ar_row_and_a_warning(tmp_path: Path) -> None:
    ablation = SpeedupAblation(block_sizes=[8], studies=2, autoregressive=lambda **_: None, progress=False)
    with pytest.warns(UserWarning, match="no AR row: this chain has no stage-1 checkpoint"):
        fit(tmp_path, [ablation], epochs=1)
    rows = json.loads((tmp_path / "speedup" / "fit.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["base", "base", "base_one_step", "distilled"]


def test_a_block_size_that_does_not_fit_raises_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_size 7 does not fit"):
        fit(tmp_path, [SpeedupAblation(block_sizes=[7])])


def test_speedup_of_other_stages(tmp_path: Path) -> None:
    ablation = SpeedupAblation(block_sizes=[8], studies=2, progress=False)
    fit(tmp_path / "rad", [ablation], stage="rad", epochs=1)
    rows = json.loads((tmp_path / "rad" / "speedup" / "fit.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["base", "base", "base_one_step"]
    with pytest.warns(UserWarning, match="nothing to compare in stage 'pretrain'"):
        fit(tmp_path / "pretrain", [ablation], stage="pretrain", epochs=1)
    with pytest.raises(ValueError, match="must be positive"):
        SpeedupAblation(block_sizes=[])


def test_summary_lists_the_results(observed: tuple[Trainer, Path], mlflow_logger: MLFlowLogger) -> None:
    lines = summary_lines(observed[0], 12.34)
    assert lines["steps"] == "8 in 2 epochs"
    assert lines["time"] == "12.3 s"
    assert "loss" in lines["last training"]
    assert "loss" in lines["last validation"]
    assert lines["MLflow run"] == mlflow_logger.run_id
    assert float(lines["peak memory"].removesuffix(" GB")) > 0.1


def test_summary_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [StageSummary()], epochs=1)
    assert "stage dcd finished" in capsys.readouterr().out


def test_mlflow_has_the_record(observed: tuple[Trainer, Path], mlflow_logger: MLFlowLogger) -> None:
    client, run_id = mlflow_logger.experiment, mlflow_logger.run_id
    run = client.get_run(run_id)
    assert run.data.tags["echo_pl.stage"] == "dcd"
    assert run.data.tags["echo_pl.chain"] == "chain-1"
    assert run.data.tags["mlflow.parentRunId"] == "parent-1"
    assert run.data.tags["echo_pl.dataset_fingerprint"] == "f00d"
    assert run.data.metrics["speedup/distilled-ce-L8-fused-b1/valid_sentences"] == 1.0
    names = {item.path for folder in ("", "trajectories", "speedup") for item in client.list_artifacts(run_id, folder)}
    assert {"config.yaml", "environment.json", "trajectories/step-000008.html", "speedup/fit.png"} <= names
    table = client.load_table(observed[0].logger.experiment_id, "speedup/fit.json", run_ids=[run_id])
    assert len(table) == 18


def test_revision_outside_git_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="git revision"):
        assert git_revision(tmp_path) == {}
    assert environment()["packages"]["torch"] == torch.__version__


def test_bare_loaders_raise(tmp_path: Path) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, callbacks=[TrajectoryLogger()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    data = TinyData()
    with pytest.raises(ValueError, match="datamodule="):
        trainer.fit(TinyStage(), data.train_dataloader(), data.val_dataloader())


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"every_n_validations": 0}])
def test_wrong_arguments_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TrajectoryLogger(**wrong)


def test_frozen_for_a_while():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    before = [parameter.requires_grad for parameter in module.parameters()]
    with frozen(module):
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert [parameter.requires_grad for parameter in module.parameters()] == before == [True, True, False, False]
