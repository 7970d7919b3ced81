"""Every stage under a real trainer, on a synthetic corpus of a few studies: trains, validates, checkpoints, resumes.

Single process, CPU, float32 unless stated; equality is bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import lightning as L
import pytest
import torch
from stage_parts import (
    BACKBONE,
    DECODE,
    LIMIT,
    Losses,
    dcd,
    lively,
    pretrain,
    rad,
    record,
    report_data,
    trainer,
    warmup,
    write_checkpoint,
)
from torch.utils.data import DataLoader

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.backbone.vlm import weights_fingerprint
from echo_pl.callbacks.trajectory_logger import TrajectoryLogger
from echo_pl.diffusion.noise import NoiseConfig
from echo_pl.diffusion.objectives import SequenceLevel
from echo_pl.runs.assemble import text_tools
from echo_pl.sampling import BlockSampler
from echo_pl.sampling.collect import collect, store_identity
from echo_pl.stages.validation import TextTools

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable"),
]

Make = Callable[[TextTools, Path], L.LightningModule]


@pytest.fixture(scope="module")
def root(medium_data) -> Path:
    return medium_data / "synthetic"


@pytest.fixture(scope="module")
def text(root) -> TextTools:
    return text_tools(report_data(root))


@pytest.fixture(scope="module")
def teacher(root, text, tmp_path_factory) -> Path:
    """A stage-2 checkpoint of random weights whose reports sometimes end."""
    vlm = lively(replace(BACKBONE, seed=8).build(text.special, text.vocab_size), text.special, eos_scale=2.0)
    return write_checkpoint(tmp_path_factory.mktemp("teacher") / "rad.ckpt", vlm, record("rad"))


STAGES: dict[str, Make] = {
    "warmup": lambda text, start: warmup(text),
    "pretrain": lambda text, start: pretrain(text),
    "rad": lambda text, start: rad(text),
    "dcd": lambda text, start: dcd(text, start),
    "dcd-ce": lambda text, start: dcd(text, start, objective=SequenceLevel()),
}


def fit(module: L.LightningModule, root: Path, folder: Path, steps: int, resume: Path | None = None, **options) -> list[float]:
    """Train; return the loss of every batch."""
    losses = Losses()
    callbacks = [losses, *options.pop("callbacks", [])]
    data = report_data(root, **options.pop("data", {}))
    run = trainer(folder, steps, *callbacks, **options)
    run.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
    return losses.values


def weights(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different[:3]


@dataclass(frozen=True)
class Trained:
    """A run from its first step to its last: the loss of every batch, the final weights, and the folder of its checkpoints."""

    losses: list[float]
    weights: dict[str, torch.Tensor]
    folder: Path


@pytest.fixture(scope="module")
def uninterrupted(root, text, teacher, tmp_path_factory) -> Callable[[str, int], Trained]:
    """Return a function that trains a stage for a number of steps, once for all tests."""

    @cache
    def train(stage: str, steps: int) -> Trained:
        folder = tmp_path_factory.mktemp(stage)
        module = STAGES[stage](text, teacher)
        losses = fit(module, root, folder, steps, checkpoints=1)
        return Trained(losses, weights(module), folder)

    return train


def test_the_stages_hand_over_from_warm_up_to_distillation(root, text, tmp_path):
    """Each stage starts from the checkpoint that the one before it saved, trains, validates and saves its own."""
    validating = {"limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}
    path: Path | None = None
    for name, make in (("warmup", warmup), ("pretrain", pretrain), ("rad", rad), ("dcd", dcd)):
        module = make(text) if path is None else make(text, path)
        run = trainer(tmp_path / name, 3, **validating)
        run.fit(module, datamodule=report_data(root))
        assert run.global_step == 3
        metrics = {key: float(value) for key, value in run.callback_metrics.items()}
        assert metrics["val/loss"] > 0
        if name == "warmup":
            assert 0 <= metrics["val/label_f1"] <= 1
        else:
            assert {"val/finding_f1", "val/valid_sentences", "val/rouge_l", "speed/tpf", "speed/nfe"} <= metrics.keys()
        before = path
        path = tmp_path / name / "final.ckpt"
        run.save_checkpoint(path)
        about, content = read_checkpoint(path)
        assert about.stage == name
        assert about.start == (None if before is None else str(before))
        if before is not None:
            previous = read_checkpoint(before)[1]["state_dict"]
            moved = [n for n in previous if n.startswith("vlm.") and not torch.equal(previous[n], content["state_dict"][n])]
            assert moved, "training changes weights"
            if name in ("rad", "dcd"):
                assert not [n for n in moved if ".visual." in n], "the vision tower is frozen bit by bit"
                assert [n for n in previous if ".visual." in n]
        if name == "dcd":
            assert not [n for n in content["state_dict"] if "teacher" in n]
            states = content["optimizer_states"][0]["state"]
            assert len(states) <= sum(p.requires_grad for p in module.model.parameters())


@pytest.mark.parametrize("at", [3, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_is_uninterrupted(root, text, teacher, uninterrupted, tmp_path, stage, at):
    """Eight steps, or the rest of them from a checkpoint at the end of the first epoch (3) or within the second (4)."""
    whole = uninterrupted(stage, 8)
    torch.manual_seed(99)  # a new process has any state
    rest = STAGES[stage](text, teacher)
    losses = fit(rest, root, tmp_path, 8, resume=whole.folder / f"step={at}.ckpt")
    assert losses == whole.losses[at:]
    assert len(set(whole.losses)) > 5
    assert_same_weights(weights(rest), whole.weights)


@pytest.mark.parametrize("stage", ["pretrain", "rad", "dcd"])
def test_validation_leaves_no_trace_in_the_loss_curve(root, text, teacher, uninterrupted, tmp_path, stage):
    validating = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    assert fit(STAGES[stage](text, teacher), root, tmp_path, 5, **validating) == uninterrupted(stage, 5).losses


@pytest.mark.parametrize("stage", ["rad", "dcd"])
def test_the_trajectory_logger_leaves_no_trace_in_the_loss_curve(root, text, teacher, uninterrupted, tmp_path, stage):
    validating = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    observed, plain = STAGES[stage](text, teacher), uninterrupted(stage, 5)
    losses = fit(observed, root, tmp_path, 5, callbacks=[TrajectoryLogger(num_samples=2)], **validating)
    assert losses == plain.losses
    assert_same_weights(weights(observed), plain.weights)
    assert len(list((tmp_path / "trajectories").glob("*.html"))) == 2
    assert not (plain.folder / "trajectories").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_mixed_is_close_to_float32(root, text, teacher, tmp_path, stage):
    """bf16 has 8 bits of mantissa: the first loss agrees to 2 %. Trajectories on the fly may differ, so they only have to run."""
    validating = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    module = STAGES[stage](text, teacher)
    half = fit(module, root, tmp_path, 2, precision="bf16-mixed", **validating)
    full = fit(STAGES[stage](text, teacher), root, tmp_path, 2)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    if not stage.startswith("dcd"):
        assert half[0] == pytest.approx(full[0], rel=0.02)
    assert half != full
    assert all(torch.isfinite(torch.tensor(half)))


@pytest.mark.parametrize("stage", ["pretrain", "rad", "dcd"])
@pytest.mark.parametrize("attention", ["sdpa", "split"])
def test_gradient_checkpointing_changes_no_loss(root, text, teacher, tmp_path, stage, attention):
    def losses(checkpointing: bool) -> list[float]:
        module = STAGES[stage](text, teacher)
        module.backbone = replace(BACKBONE, gradient_checkpointing=checkpointing, train_attention=attention)
        return fit(module, root, tmp_path, 3)

    assert losses(True) == losses(False)


def test_rad_trains_with_every_option(root, text, tmp_path):
    options = [
        {"loss_weight": "mean"},
        {"supervise_eos_fill": False},
        {"noise": NoiseConfig(noise_copies=3)},
        {"decode": replace(DECODE, grid="absolute", context_attention="block_causal")},
        {"decode": replace(DECODE, context_attention="full")},
    ]
    found = [fit(rad(text, **option), root, tmp_path, 2) for option in [{}, *options]]
    assert all(torch.isfinite(torch.tensor(losses)).all() for losses in found)
    assert len({losses[0] for losses in found}) == len(found), "every option changes the loss"


def test_the_loss_of_a_batch_is_that_of_its_samples(root, text):
    """Noise belongs to the sample and padding is no part of the loss: the batch's is the mean weighted by supervised tokens."""
    module = rad(text)
    module.configure_model()
    batch = next(iter(report_data(root).train_dataloader()))
    single = {sample.keys[0]: sample for sample in report_data(root, batch_size=1).train_dataloader()}
    supervised = [-(-length // DECODE.block_size) * DECODE.block_size for length in batch.response_lengths_B.tolist()]
    with torch.no_grad():
        together = float(module.loss(batch, epoch=0))
        alone = [float(module.loss(single[key], epoch=0)) for key in batch.keys]
    expected = sum(loss * n for loss, n in zip(alone, supervised, strict=True)) / sum(supervised)
    # float32 sums over some hundred positions: 1e-5.
    assert together == pytest.approx(expected, rel=1e-5)


class Gradients(L.Callback):
    """The gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, run: L.Trainer, module: L.LightningModule, optimizer) -> None:
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_accumulated_halves_are_one_batch(root, text, tmp_path):
    """The loss is a mean over tokens, so halves with equally many tokens add up to the whole; float32: 1e-5 of the largest."""
    batch = next(iter(report_data(root).train_dataloader()))
    shortest = int(batch.response_lengths_B.min())
    even = replace(
        batch,
        response_ids_BR=batch.response_ids_BR[:, :shortest],
        response_lengths_B=torch.full((4,), shortest),
    )
    images = batch.pixel_values.split(batch.image_grid_thw.prod(-1).tolist())

    def rows(start: int, stop: int):
        return replace(
            even,
            keys=even.keys[start:stop],
            context_ids_BP=even.context_ids_BP[start:stop],
            context_lengths_B=even.context_lengths_B[start:stop],
            response_ids_BR=even.response_ids_BR[start:stop],
            response_lengths_B=even.response_lengths_B[start:stop],
            pixel_values=torch.cat(images[start:stop]),
            image_grid_thw=even.image_grid_thw[start:stop],
            labels_BF=None,
        )

    found = []
    for batches, accumulate in (([rows(0, 4)], 1), ([rows(0, 2), rows(2, 4)], 2)):
        gradients = Gradients()
        run = trainer(tmp_path, 1, gradients, accumulate_grad_batches=accumulate, gradient_clip_val=None)
        run.fit(pretrain(text), train_dataloaders=DataLoader(batches, batch_size=None))
        assert run.global_step == 1
        found.append(gradients.found)
    whole, halves = found
    assert whole.keys() == halves.keys()
    largest = max(float(g.abs().max()) for g in whole.values())
    for name in whole:
        assert float((whole[name] - halves[name]).abs().max()) < 1e-5 * largest, name


def test_dcd_counts_what_it_drops(root, text, teacher, tmp_path):
    module = dcd(text, teacher)
    logged = []

    class Log(L.Callback):
        def on_train_batch_end(self, run: L.Trainer, *_) -> None:
            logged.append(float(run.callback_metrics["train/usable_trajectories"]))

    fit(module, root, tmp_path, 6, callbacks=[Log()])
    decoded = 6 * 4
    dropped = module.phase_1.dropped["loops"] + module.phase_1.dropped["endless"]
    assert 0 < dropped < decoded, "the example must have both"
    assert sum(logged) * 4 == pytest.approx(decoded - dropped)


def test_the_teacher_does_not_move(root, text, teacher, tmp_path):
    module = dcd(text, teacher)
    module.configure_model()
    before = weights_fingerprint(module.teacher)
    fit(module, root, tmp_path, 4)
    assert weights_fingerprint(module.teacher) == before
    assert weights_fingerprint(module.model) != before
    assert not [n for n, p in module.teacher.named_parameters() if p.grad is not None]


@pytest.mark.parametrize("objective", ["dcd", "ce"])
def test_stored_trajectories_train_like_those_decoded_on_the_fly(root, text, teacher, uninterrupted, tmp_path, objective):
    stage = "dcd" if objective == "dcd" else "dcd-ce"
    on_the_fly = uninterrupted(stage, 5).losses

    source = dcd(text, teacher)
    source.configure_model()
    batches = list(report_data(root).train_dataloader())
    identity = store_identity(source.decode, weights_fingerprint(source.teacher), text.fingerprint, distributions=True)
    collect(source.make_sampler(source.teacher), batches, tmp_path / "store", identity)

    stored = STAGES[stage](text, teacher)
    stored.phase_1.folder = str(tmp_path / "store")
    losses = fit(stored, root, tmp_path, 5)
    if objective == "ce":
        assert losses == on_the_fly, "hard labels are the same tokens"
    else:
        # Distributions are stored as float16: eleven bits.
        assert losses == pytest.approx(on_the_fly, rel=2e-3)
    assert stored.phase_1.dropped == {"loops": 0, "endless": 0}


def test_a_batch_without_any_usable_trajectory_has_a_zero_loss_and_no_nan(root, text, tmp_path):
    """A teacher that never ends a report."""
    vlm = BACKBONE.build(text.special, text.vocab_size)
    with torch.no_grad():
        vlm.network.lm_head.weight[text.special.eos] = 0.0
        vlm.network.lm_head.weight[text.special.eos + 8 :] *= 3.0
    path = write_checkpoint(tmp_path / "rad.ckpt", vlm, record("rad"))
    module = dcd(text, path)
    losses = fit(module, root, tmp_path, 2)
    assert losses == [0.0, 0.0]
    assert module.phase_1.dropped["loops"] + module.phase_1.dropped["endless"] == 8
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_one_step_student_decodes_a_block_per_forward(root, text, teacher):
    module = dcd(text, teacher)
    module.configure_model()
    batch = report_data(root).held_out_batches("val", 4, 4)[0]
    result = module.sampler.generate(batch)
    assert torch.equal(result.nfe_B, -(-result.written_B // DECODE.block_size))
    assert int(result.nfe_B.max()) <= LIMIT // DECODE.block_size
    assert isinstance(module.sampler, BlockSampler)
