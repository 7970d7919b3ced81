"""Collecting trajectories to disk: every study that training will ask for, and the same as decoded on the fly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import command
from omegaconf import DictConfig, open_dict
from stage_parts import BACKBONE, DECODE, dcd, lively, record, report_data, write_checkpoint

from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.diffusion.losses import DistillationConfig
from echo_pl.diffusion.objectives import DirectConditional, SequenceLevel
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.runs.assemble import text_tools
from echo_pl.sampling.trajectory_store import TrajectoryStore
from echo_pl.stages.dcd import DCDModule

pytestmark = pytest.mark.slow

STUDIES, AT_ONCE = 11, 4
SDTT = DirectConditional(config=DistillationConfig(step_weight="none", eos_weight=0.0), name="sdtt")
TINY = ("width", "layers", "heads", "key_heads", "mlp_width", "vision_width", "vision_layers", "vision_heads", "vision_mlp_width")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data) -> Path:
    """A corpus and a teacher: random weights, whose reports sometimes end."""
    folder = tmp_path_factory.mktemp("collect")
    (folder / "data").symlink_to(small_data)
    data = corpus(folder)
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    write_checkpoint(folder / "rad.ckpt", vlm, record("rad", vocabulary=data.vocabulary_fingerprint))
    return folder


@pytest.fixture(scope="module")
def store(folder) -> TrajectoryStore:
    path, counts = collect_trajectories(config(folder), folder / "store")
    store = TrajectoryStore(path)
    assert store.counts == counts
    return store


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def corpus(folder: Path, **options) -> ReportDataModule:
    return report_data(folder / "data" / "synthetic", **{"limit_train": STUDIES, **options})


def config(folder: Path, *overrides: str) -> DictConfig:
    small = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in TINY]
    sizes = [f"stage.limit_train={STUDIES}", f"stage.batch_size={AT_ONCE}", "stage.module.decode.denoising_steps=2"]
    places = [f"data_root={folder / 'data'}", f"outputs={folder}", f"start={folder / 'rad.ckpt'}", "min_free_gb=0", "threads=1"]
    return compose_config(["stage=dcd", *small, *sizes, *places, *overrides])


def stage(folder: Path, **options) -> DCDModule:
    """The stage that the configuration above would build."""
    module = dcd(text_tools(corpus(folder)), folder / "rad.ckpt", decode=replace(DECODE, denoising_steps=2), **options)
    module.configure_model()
    return module


def test_every_study_that_training_visits_is_decoded_the_last_partial_batch_too(folder, store):
    counts = store.counts
    assert counts.kept + counts.dropped_loops + counts.dropped_endless == STUDIES
    assert 0 < counts.kept == len(store) < STUDIES, "the example must have both"
    data = corpus(folder, batch_size=1, shuffle_buffer=50, seed=5)
    visited = [key for batch in data.train_dataloader() for key in batch.keys]
    assert len(visited) == STUDIES
    assert sum(store.get(key) is not None for key in visited) == counts.kept


def test_one_pass_is_in_the_order_of_the_shards_and_leaves_nothing_out(folder):
    batches = list(corpus(folder).train_batches_once(AT_ONCE))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys)) == STUDIES
    assert keys == [key for batch in corpus(folder).train_batches_once(STUDIES) for key in batch.keys]
    assert len(corpus(folder, limit_train=None).train_batches_once(7)) == 3


def test_a_study_beyond_the_collection_is_rejected_and_not_taken_for_a_dropped_one(folder, store):
    beyond = list(corpus(folder, limit_train=STUDIES + 1).train_batches_once(1))[-1]
    module = stage(folder, trajectories=str(store.folder), objective=SequenceLevel())
    with pytest.raises(ValueError, match=rf"no trajectory of sample '{beyond.keys[0]}' .* \(11 studies .*stage.limit_train"):
        module.collect(beyond)


def test_on_the_fly_under_autocast_is_what_was_stored(folder, store):
    module = stage(folder)
    for batch in corpus(folder).train_batches_once(AT_ONCE):
        with torch.autocast("cpu", torch.bfloat16):
            found = module.collect(batch)
        for key, trajectory in zip(batch.keys, found, strict=True):
            stored = store.get(key)
            assert (stored is None) == (trajectory is None)
            if trajectory is not None:
                assert torch.equal(trajectory.token_R, stored.token_R)
                assert torch.equal(trajectory.commit_step_R, stored.commit_step_R)
                assert torch.equal(trajectory.target_RV.half(), stored.target_RV)
    counts = {"loops": store.counts.dropped_loops, "endless": store.counts.dropped_endless}
    assert module.phase_1.dropped == counts


def test_dropped_trajectories_are_logged_in_both_modes_and_counted_on_after_a_resume(folder, store, monkeypatch):
    wanted = {"train/dropped_loops": store.counts.dropped_loops, "train/dropped_endless": store.counts.dropped_endless}
    first, *rest = corpus(folder).train_batches_once(AT_ONCE)
    cut_off = stage(folder)
    cut_off.collect(first)
    checkpoint: dict = {}
    cut_off.on_save_checkpoint(checkpoint)
    resumed = stage(folder)
    resumed.on_load_checkpoint(checkpoint)
    for module, batches in ((resumed, rest), (stage(folder, trajectories=str(store.folder)), [first])):
        logged: dict[str, float] = {}
        monkeypatch.setattr(module, "log_dict", lambda scores, logged=logged, **_: logged.update(scores))
        monkeypatch.setattr(module, "log", lambda *_, **__: None)
        monkeypatch.setattr(module, "loss", lambda *_: (torch.zeros(()), {}))
        for index, batch in enumerate(batches):
            module.training_step(batch, index)
        assert logged == wanted


@pytest.fixture(scope="module")
def top_store(folder) -> TrajectoryStore:
    path, _ = collect_trajectories(config(folder), folder / "top", kept_tokens=6, batches_per_part=2)
    return TrajectoryStore(path)


def test_the_likeliest_tokens_of_every_position_are_those_of_the_whole(store, top_store):
    assert top_store.counts == store.counts
    assert len(list(top_store.folder.glob("*.safetensors"))) == 2 < len(list(store.folder.glob("*.safetensors")))
    for key in store.keys:
        one, other = store.get(key), top_store.get(key)
        assert torch.equal(one.token_R, other.token_R)
        assert other.target_RV is None
        assert torch.equal(other.top.token_MK[:, 0], other.token_R), "a greedy teacher takes the likeliest"
        assert torch.allclose(one.target_RV.float().gather(1, other.top.token_MK), other.top.probability_MK, atol=5e-4)
        assert torch.allclose(other.top.probability_MK.sum(-1) + other.top.tail_M, torch.ones(len(other.token_R)), atol=1e-5)


@pytest.mark.parametrize("objective", [DirectConditional(), SDTT, SequenceLevel()], ids=["dcd", "sdtt", "ce"])
def test_objectives_train_from_the_top_of_distributions(folder, store, top_store, objective):
    """Over the events of the top and its tail the loss is no more than the whole one; hard targets do not look at either."""
    losses = []
    for path in (store.folder, top_store.folder):
        module = stage(folder, trajectories=str(path), objective=objective)
        (batch,) = corpus(folder).train_batches_once(STUDIES)
        loss, _ = module.loss(batch, module.collect(batch), epoch=0, progress=0.0)
        loss.backward()
        assert any(bool(p.grad is not None and p.grad.abs().sum() > 0) for p in module.model.parameters())
        losses.append(float(loss.detach()))
    whole, top = losses
    assert top == whole if objective.name == "ce" else 0 < top < whole


def test_reverse_kl_from_the_top_of_distributions_warns_with_the_way_out(folder, store, top_store, caplog):
    reverse = DirectConditional(config=DistillationConfig(divergence="reverse_kl"), name="reverse_kl")
    for path, objective in ((store.folder, reverse), (top_store.folder, DirectConditional())):
        stage(folder, trajectories=str(path), objective=objective)
        assert "reverse KL" not in caplog.text
    stage(folder, trajectories=str(top_store.folder), objective=reverse)
    assert f"{top_store.folder} keep the 6 likeliest of {data_vocabulary(folder)} tokens" in caplog.text
    assert "echo-pl trajectories collect --keep 0" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--studies", "0", "--out", "x"], "'--studies'"),
        (["--studies", "4", "--out", "x", "--batch-size", "0"], "'--batch-size'"),
        (["--studies", "4"], "Missing option '--out'"),
        (["--out", "x"], "Missing option '--studies'"),
        (["--studies", "4", "--out", "x", "--keep", "-3"], "'--keep'"),
        (["--studies", "4", "--out", "x", "--keep", "4", "--no-distributions"], "give --keep or --no-distributions"),
    ],
)
def test_unused_options_are_an_error(capsys, options, message):
    assert command("trajectories", "collect")(options) == 2
    assert message in capsys.readouterr().err


def test_more_studies_than_exist_are_reported(folder, tmp_path, caplog):
    _, counts = collect_trajectories(config(folder, "stage.limit_train=1000"), tmp_path / "all", distributions=False)
    there = counts.kept + counts.dropped_loops + counts.dropped_endless
    assert f"the corpus has {there} training studies, 1000 were asked for: all of them are decoded" in caplog.text


def data_vocabulary(folder: Path) -> int:
    return corpus(folder).vocab_size


def test_threads_are_set_and_unknown_keys_rejected(folder):
    with pytest.raises(FileExistsError):
        collect_trajectories(config(folder, "threads=2"), folder)
    assert torch.get_num_threads() == 2
    wrong = config(folder)
    with open_dict(wrong):
        wrong.stage.limit_tain = 3
    with pytest.raises(ValueError, match=r"unknown configuration key stage.limit_tain"):
        collect_trajectories(wrong, folder / "never")
