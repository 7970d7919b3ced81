"""Stored vision features: what the tower makes of pixels, for this tower, this corpus and these patches alone."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from http_folder import serving
from omegaconf import DictConfig
from stage_parts import BACKBONE, dcd, lively, pretrain, rad, record, report_data, warmup, write_checkpoint

from echo_pl.backbone.vlm import VLM
from echo_pl.config.compose import compose_config
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.data.store import shard_reader
from echo_pl.data.store.feature_store import INDEX_NAME, FeatureIndex
from echo_pl.runs import stored_features as tool
from echo_pl.runs.assemble import text_tools
from echo_pl.runs.stored_features import store_features
from echo_pl.sampling import AutoregressiveSampler
from echo_pl.structs import Batch

pytestmark = pytest.mark.slow

TINY = ("width", "layers", "heads", "key_heads", "mlp_width", "vision_width", "vision_layers", "vision_heads", "vision_mlp_width")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data) -> Path:
    """A corpus of several shards, stage-1 and stage-2 checkpoints with one vision tower, and features in float32."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "data").symlink_to(small_data)
    data = report_data(folder / "data" / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special)
    for stage in ("pretrain", "rad"):
        write_checkpoint(folder / f"{stage}.ckpt", vlm, record(stage, vocabulary=data.vocabulary_fingerprint))
    other = replace(BACKBONE, seed=9).build(data.special, data.vocab_size)
    write_checkpoint(folder / "other.ckpt", other, record("pretrain", vocabulary=data.vocabulary_fingerprint))
    store_features(config(folder), folder / "float32", "float32", 5)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def config(folder: Path, start: str = "pretrain", precision: str = "32-true") -> DictConfig:
    small = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in TINY]
    places = [f"data_root={folder / 'data'}", f"outputs={folder}", f"start={folder / start}.ckpt", "min_free_gb=0", "threads=1"]
    return compose_config(["stage=rad", f"trainer.precision={precision}", *small, *places])


def data_of(folder: Path, features: str | None = "float32", **options):
    stored = None if features is None else folder / features
    return report_data(folder / "data" / "synthetic", stored_features=stored, **options)


def batches(folder: Path, features: str | None = "float32") -> list[Batch]:
    data = data_of(folder, features)
    return [*data.train_dataloader(), *data.val_dataloader()]


def test_a_corpus_behind_a_url(folder, tmp_path):
    with serving(folder / "data" / "synthetic") as server:
        there = config(folder)
        there.data.root, there.data.cache_dir = server.url, str(tmp_path / "cache")
        store_features(there, tmp_path / "stored", "float32", 5)
    files = sorted((tmp_path / "stored").iterdir())
    assert [path.name for path in files] == sorted(path.name for path in (folder / "float32").iterdir())
    assert all(path.read_bytes() == (folder / "float32" / path.name).read_bytes() for path in files)


def test_batches_are_the_same_but_for_their_images(folder, monkeypatch):
    pixels = batches(folder, None)

    def no_decoding(*_):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(shard_reader, "_decode_image", no_decoding)
    stored = batches(folder)
    assert len(stored) == len(pixels) == 4
    for one, other in zip(stored, pixels, strict=True):
        assert one.keys == other.keys
        for name in ("context_ids_BP", "response_ids_BR", "image_grid_thw", "labels_BF"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.pixel_values.shape == (0, other.pixel_values.shape[1])
        assert one.image_features.shape == (16 * len(one), BACKBONE.width)


@pytest.mark.parametrize("stage", ["rad", "dcd"])
def test_losses_are_those_from_pixels(folder, stage):
    """To rounding: the tower's products are over other batches of images."""
    losses = []
    for features in (None, "float32"):
        text = text_tools(data_of(folder, features))
        module = {"rad": rad, "dcd": dcd}[stage](text, folder / ("pretrain.ckpt" if stage == "rad" else "rad.ckpt"))
        module.configure_model()
        found = []
        for batch in batches(folder, features)[:2]:
            if stage == "rad":
                found.append(module.loss(batch, 0))
            else:
                found.append(module.phase_2.reference_loss(module.model, batch))
        losses.append(torch.stack(found))
    assert losses[0].requires_grad
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2**-9), ("bfloat16", 2**-6)])
@pytest.mark.parametrize("stage", ["rad", "dcd"])
def test_logits_of_training_sequences_are_those_from_pixels(folder, stage, dtype, tolerance, monkeypatch):
    """To the rounding of the stored type: two of its smallest steps around 1 (float32: to that of sums in another order)."""
    if not (folder / dtype / INDEX_NAME).is_file():
        store_features(config(folder), folder / dtype, dtype, 5)
    found = []

    def kept(self, *args, **kwargs):
        found[-1].append(forward(self, *args, **kwargs).detach())
        return found[-1][-1]

    forward = VLM.forward
    monkeypatch.setattr(VLM, "forward", kept)
    for features in (None, dtype):
        text = text_tools(data_of(folder, features))
        module = {"rad": rad, "dcd": dcd}[stage](text, folder / ("pretrain.ckpt" if stage == "rad" else "rad.ckpt"))
        module.configure_model()
        found.append([])
        batch = batches(folder, features)[0]
        with torch.no_grad():
            module.loss(batch, 0) if stage == "rad" else module.phase_2.reference_loss(module.model, batch)
    pixels, stored = (torch.cat([logits.flatten(0, -2) for logits in one]) for one in found)
    assert len(pixels) > 50
    assert pixels.dtype == stored.dtype == torch.float32
    difference = float((pixels - stored).abs().max() / pixels.abs().max())
    assert difference <= tolerance
    assert (difference > 1e-5) == (dtype != "float32"), "what is stored in half the bits is rounded"


def test_decoded_logits_are_those_from_pixels(folder):
    module = rad(text_tools(data_of(folder)), folder / "pretrain.ckpt")
    module.configure_model()
    vlm = module.model.requires_grad_(False).eval()
    found = []
    for features in (None, "float32"):
        batch = batches(folder, features)[-1]
        sampler = AutoregressiveSampler(vlm, module.special, 12)
        start = sampler.prefill(batch)
        found.append((start.logits_BV.clone(), sampler.generate(batch, start=start).tokens))
    (logits, tokens), (stored_logits, stored_tokens) = found
    assert torch.allclose(logits, stored_logits, atol=1e-4 * float(logits.abs().max()))
    assert [t.tolist() for t in tokens] == [t.tolist() for t in stored_tokens]


def test_in_bfloat16_they_are_what_the_tower_gives_under_autocast(folder, tmp_path):
    index = store_features(config(folder, precision="bf16-mixed"), tmp_path / "made", "bfloat16", 4)
    assert (index.dtype, index.precision) == ("bfloat16", "bf16-mixed")
    shutil.copytree(tmp_path / "made", folder / "bfloat16", dirs_exist_ok=True)
    module = rad(text_tools(data_of(folder, "bfloat16")), folder / "pretrain.ckpt")
    module.configure_model()
    for stored, pixels in zip(batches(folder, "bfloat16"), batches(folder, None), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            now = module.model.vision_features(pixels.pixel_values, pixels.image_grid_thw)
        assert stored.image_features.dtype == now.dtype == torch.bfloat16
        # equal but where a sum over another batch of images rounds to the neighbouring bfloat16
        difference = (stored.image_features.float() - now.float()).abs()
        assert float(difference.max()) <= 2**-7 * float(now.float().abs().max())
        assert float((difference > 0).float().mean()) < 0.05


def test_an_interrupted_run_is_finished_by_the_same_command(folder, tmp_path, monkeypatch):
    read, opened = tool.read_samples, []

    def power_cut(data, shard, wanted):
        opened.append(shard.name)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return read(data, shard, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "read_samples", power_cut)
        with pytest.raises(KeyboardInterrupt):
            store_features(config(folder), tmp_path / "out", "float32", 5)
    with pytest.raises(FileNotFoundError, match=r"no features.json"):
        data_of(folder, str(tmp_path / "out")).setup()
    opened.clear()
    opened += ["", "", ""]
    with monkeypatch.context() as patch:
        patch.setattr(tool, "read_samples", power_cut)
        store_features(config(folder), tmp_path / "out", "float32", 5)
    assert len(opened) - 3 == 5 - 2, "the shards that were finished must not be made again"
    whole = {path.name: path.read_bytes() for path in (folder / "float32").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole


def test_a_study_that_cannot_be_read_is_skipped_in_training_too(folder, tmp_path, monkeypatch):
    decode = tool.decode_study

    def broken(raw):
        if raw.key == "train-0000001":
            raise ValueError("train-0000001: its image is truncated")
        return decode(raw)

    monkeypatch.setattr(tool, "decode_study", broken)
    with pytest.raises(ValueError, match="its image is truncated"):
        store_features(config(folder), tmp_path / "error", "float32", 5)
    own = config(folder)
    own.data.on_bad_sample = "skip"
    store_features(own, tmp_path / "skipped", "float32", 5)
    skipping, strict = (data_of(folder, str(tmp_path / "skipped"), on_bad_sample=way) for way in ("skip", "error"))
    found, every = ([key for batch in data.train_batches_once(4) for key in batch.keys] for data in (skipping, data_of(folder)))
    assert "train-0000001" in every
    assert found == [key for key in every if key != "train-0000001"]
    with pytest.raises(ValueError, match="train-0000001 could not be read when vision features were stored"):
        list(strict.train_batches_once(4))


def test_the_same_command_again_finds_them(folder, monkeypatch):
    monkeypatch.setattr(tool, "read_samples", None)
    assert store_features(config(folder), folder / "float32", "float32", 5) == FeatureIndex.load(folder / "float32")


def test_other_features_are_not_written_over(folder):
    with pytest.raises(ValueError, match="already holds vision features of something else"):
        store_features(config(folder, "other"), folder / "float32", "float32", 5)
    with pytest.raises(ValueError, match=r"is not empty and holds no features.json"):
        store_features(config(folder), folder / "data", "float32", 5)


def test_another_tower_is_rejected(folder):
    module = rad(text_tools(data_of(folder)), folder / "other.ckpt")
    with pytest.raises(ValueError, match=r"stored vision features are of tower \w+, this model has \w+: make them again"):
        module.configure_model()


def test_weights_loaded_later_are_another_tower(folder):
    module = rad(text_tools(data_of(folder)), folder / "pretrain.ckpt")
    module.configure_model()
    (batch, *_) = batches(folder)
    module.loss(batch, 0)
    other = torch.load(folder / "other.ckpt", weights_only=True)["state_dict"]
    module.model.load_state_dict({name.removeprefix("vlm."): value for name, value in other.items()})
    with pytest.raises(ValueError, match="stored vision features are of tower"):
        module.loss(batch, 0)


@pytest.mark.parametrize("stage", [pretrain, warmup])
def test_a_stage_that_trains_the_tower_rejects_them(folder, stage):
    with pytest.raises(ValueError, match=r"the vision tower is in training here.*data.stored_features=null"):
        stage(text_tools(data_of(folder))).configure_model()


def test_other_patches_and_another_corpus_are_rejected(folder, tmp_path):
    with pytest.raises(ValueError, match=r"of another image processing: .*'max_pixels': 4096.*'max_pixels': 8192"):
        data_of(folder, max_pixels=8192).setup()
    make_synthetic(tmp_path / "corpus", train=20, val=4, test=2, seed=2, shard_size=8, progress=False)
    with pytest.raises(ValueError, match="of another corpus"):
        report_data(tmp_path / "corpus", stored_features=folder / "float32").setup()


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder / "float32", tmp_path / "broken"))


def rewrite(broken: Path, members: list[tuple[str, bytes]]) -> None:
    """The first training shard with these members, and an index that believes in it."""
    path = broken / "train-000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    index = json.loads((broken / INDEX_NAME).read_text())
    index["splits"]["train"][0]["bytes"] = path.stat().st_size
    (broken / INDEX_NAME).write_text(json.dumps(index))


def members(broken: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(broken / "train-000000.tar") as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def test_anything_but_tensors_is_rejected(folder, broken):
    rewrite(broken, [*members(broken)[:-1], ("train-0000007.pickle", b"cos\nsystem\n")])
    with pytest.raises(ValueError, match=r"holds 'train-0000007.pickle'; only plain files named \*.safetensors"):
        batches(folder, str(broken))


def test_studies_in_another_order_are_noticed(folder, broken):
    first, second, *others = members(broken)
    rewrite(broken, [second, first, *others])
    with pytest.raises(ValueError, match=r"has study train-000000\d where the vision features in .* are of train-000000\d"):
        batches(folder, str(broken))


@pytest.mark.parametrize("content", [b"", b"no tensors at all", b"\xff" * 64])
def test_damaged_features_name_their_study(folder, broken, content):
    (name, _), *others = members(broken)
    rewrite(broken, [(name, content), *others])
    with pytest.raises(ValueError, match=r"vision features of study train-0000000 cannot be read.*corpus features"):
        batches(folder, str(broken))


def test_a_missing_shard_is_named(folder, broken):
    (broken / "val-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"val-000000.tar is missing"):
        batches(folder, str(broken))
