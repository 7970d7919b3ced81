"""The datamodule: the same batches streamed or in memory, with any workers and ranks, and after a resume."""

from __future__ import annotations

import gc
import inspect
import json
import multiprocessing
import os
import pickle
import shutil
from itertools import islice
from pathlib import Path

import lightning as L
import pytest
import torch

from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.data.loading import stream
from echo_pl.data.loading.collator import ReportCollator
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.loading.processor import ReportProcessor
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_writer import encode_study, write_corpus
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.data.synthetic.synthetic import SyntheticCorpus
from echo_pl.reports.response import format_response
from echo_pl.structs import Batch

TRAIN, VAL, TEST = 60, 10, 7


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "corpus"
    return make_synthetic(folder, train=TRAIN, val=VAL, test=TEST, seed=6, shard_size=25, progress=False)


def module(root: Path, **options) -> ReportDataModule:
    return ReportDataModule(root=root, **{"batch_size": 8, "shuffle_buffer": 30, "seed": 1, **options})


def keys(batches) -> list[tuple[str, ...]]:
    return [batch.keys for batch in batches]


def same(one: Batch, other: Batch) -> bool:
    tensors = ("context_ids_BP", "response_ids_BR", "response_lengths_B", "pixel_values", "image_grid_thw", "labels_BF")
    equal = (torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    return one.keys == other.keys and one.references == other.references and all(equal)


def test_streamed_is_in_memory(root):
    data = module(root)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == TRAIN // 8
    corpus = SyntheticCorpus(seed=6)
    in_memory = {study.key: data.processor(study) for study in corpus.studies("train", TRAIN)}
    collate = ReportCollator(data.special, corpus.labels, references=False)
    for batch in batches:
        assert same(batch, collate([in_memory[key] for key in batch.keys]))
    assert len({key for batch in batches for key in batch.keys}) == 8 * len(batches)


def test_epochs_differ_and_are_reproducible(root):
    loader, again = module(root).train_dataloader(), module(root).train_dataloader()
    first, second = keys(loader), keys(loader)
    assert first != second
    assert [keys(again), keys(again)] == [first, second]
    assert keys(module(root, seed=2).train_dataloader()) != first


WINDOWS = pytest.mark.parametrize("window", [0, 3], ids=["as_they_come", "grouped_by_length"])


@WINDOWS
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(root, workers, window):
    alone, helped = (module(root, length_window=window, num_workers=n).train_dataloader() for n in (0, workers))
    for one, other in zip(alone, helped, strict=True):
        assert same(one, other)
    assert keys(module(root, num_workers=workers, limit_val=5).val_dataloader()) == keys(module(root, limit_val=5).val_dataloader())


@WINDOWS
@pytest.mark.parametrize("epoch", [0, 1])
def test_two_ranks_share_the_batches_of_one(root, epoch, window):
    def epoch_keys(**options):
        loader = module(root, length_window=window, **options).train_dataloader()
        return [keys(loader) for _ in range(epoch + 1)][epoch]

    whole = epoch_keys()
    parts = [epoch_keys(batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.slow
@WINDOWS
@pytest.mark.parametrize(("done", "workers"), [(0, 0), (3, 0), (7, 0), (10, 0), (10, 2)])
def test_resume_is_exact(root, workers, done, window):
    def make_loader():
        return module(root, num_workers=workers, length_window=window).train_dataloader()

    loader = make_loader()
    expected = [*keys(loader), *keys(loader), *keys(loader)]
    per_epoch = len(loader)

    interrupted = make_loader()
    epochs, part = divmod(done, per_epoch)
    for _ in range(epochs):
        list(interrupted)
    list(islice(interrupted, part))
    resumed = make_loader()
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
    rest = [key for _ in range(2) for key in keys(resumed)]
    assert rest == expected[done : done + len(rest)]
    assert len(rest) == 2 * per_epoch - done % per_epoch


def test_grouping_by_length_pads_less_and_reads_the_same_studies(root):
    plain, grouped = (list(module(root, length_window=window).train_dataloader()) for window in (0, 7))
    assert {key for batch in grouped for key in batch.keys} == {key for batch in plain for key in batch.keys}

    def padding(batches: list[Batch]) -> int:
        return sum(batch.response_ids_BR.numel() - int(batch.response_lengths_B.sum()) for batch in batches)

    assert padding(grouped) < 0.7 * padding(plain)


def test_grouping_by_length_needs_the_lengths(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "old")
    record = json.loads((folder / "index.json").read_text())
    for shard in record["splits"]["train"]:
        del shard["characters"]
    (folder / "index.json").write_text(json.dumps(record))
    assert len(list(module(folder).train_dataloader())) == 7
    with pytest.raises(ValueError, match=r"does not say how long the reports of train-000000.tar are: run `echo-pl corpus"):
        module(folder, length_window=3).setup()
    make_synthetic(folder, train=TRAIN, val=VAL, test=TEST, seed=6, shard_size=25, progress=False)
    assert CorpusIndex.load(folder) == CorpusIndex.load(root)


def test_a_place_in_another_order_is_rejected(root):
    state = module(root, length_window=3).train_dataloader().state_dict()
    module(root, batch_size=4, length_window=3, rank=1, world_size=2).train_dataloader().load_state_dict(state)
    for change in ({"length_window": 0}, {"seed": 2}, {"shuffle_buffer": 7}, {"batch_size": 4}):
        loader = module(root, **{"length_window": 3, **change}).train_dataloader()
        with pytest.raises(ValueError, match=r"order of studies with seed 1, .* this run has .*: resume with the same settings"):
            loader.load_state_dict(state)


def test_resume_does_not_decode_what_it_skips(root, monkeypatch):
    decoded = []
    decode = stream.decode_study
    monkeypatch.setattr(stream, "decode_study", lambda raw, stored: decoded.append(raw.key) or decode(raw, stored))
    loader = module(root).train_dataloader()
    loader.load_state_dict({"epoch": 4, "batches_done": 6})
    assert len(list(loader)) == 1
    assert len(decoded) == 8


def test_resume_on_another_number_of_ranks(root):
    state = {"epoch": 1, "batches_done": 2}
    one = module(root).train_dataloader()
    one.load_state_dict(state)
    parts = []
    for rank in range(2):
        part = module(root, batch_size=4, rank=rank, world_size=2).train_dataloader()
        part.load_state_dict(state)
        parts.append(keys(part))
    assert [a + b for a, b in zip(*parts, strict=True)] == keys(one)


def test_a_state_beyond_the_epoch_is_rejected(root):
    with pytest.raises(ValueError, match="batch 8 of its epoch, but an epoch now has 7"):
        module(root).train_dataloader().load_state_dict({"epoch": 0, "batches_done": 8})


class Recorder(L.LightningModule):
    """Notes which studies it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(384))
        self.seen: list[tuple[str, ...]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.keys)
        return ((batch.pixel_values @ self.weight - 1) ** 2).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.references

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def fit(root: Path, steps: int, folder: Path, checkpoint: Path | None = None) -> tuple[Recorder, L.Trainer]:
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=module(root), ckpt_path=checkpoint, weights_only=False)
    return model, trainer


@pytest.mark.parametrize("steps", [3, 7, 10])
def test_lightning_resumes_exactly(root, tmp_path, steps):
    whole, _ = fit(root, 12, tmp_path)
    interrupted, trainer = fit(root, steps, tmp_path)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    resumed, _ = fit(root, 12, tmp_path, tmp_path / "mid.ckpt")
    assert interrupted.seen + resumed.seen == whole.seen
    assert torch.equal(resumed.weight, whole.weight)


def test_held_out_splits_in_order_with_references(root):
    data = module(root, eval_batch_size=4)
    for split, count, loader in (("val", VAL, data.val_dataloader()), ("test", TEST, data.test_dataloader())):
        batches = list(loader)
        assert [key for batch in batches for key in batch.keys] == [f"{split}-{i:07d}" for i in range(count)]
        assert len(loader) == len(batches)
        for batch in batches:
            for row, reference in enumerate(batch.references):
                ids = batch.response_ids_BR[row, : batch.response_lengths_B[row]]
                assert data.detokenize(ids) == format_response(reference)
                parsed = data.judge.parse(reference)
                assert parsed.well_formed
                assert parsed.findings == {data.labels[i] for i in batch.labels_BF[row].nonzero().flatten()}


def test_held_out_batches_and_images(root):
    data = module(root)
    batches = data.held_out_batches("test", 3, 5)
    assert [len(batch) for batch in batches] == [3, 2]
    images = data.images("test", batches[1].keys)
    original = SyntheticCorpus(seed=6).study("test", 4)
    assert list(images) == list(batches[1].keys)
    assert images[original.key].tobytes() == original.images[0].tobytes()
    with pytest.raises(ValueError, match="no study 'nobody'"):
        data.images("test", ["nobody"])


def test_raw_version(root):
    data = module(root, version="raw")
    batch = data.held_out_batches("val", 10, 10)[0]
    assert all(data.judge.parse(reference).well_formed for reference in batch.references)
    assert (
        batch.response_lengths_B.float().mean() < module(root).held_out_batches("val", 10, 10)[0].response_lengths_B.float().mean()
    )


def test_fingerprint(root):
    fingerprint = module(root).fingerprint
    assert fingerprint == module(root, batch_size=2, num_workers=1).fingerprint
    assert fingerprint != module(root, version="raw").fingerprint


def test_limits(root):
    data = module(root, limit_train=17, limit_val=3, limit_test=2)
    seen = {key for _ in range(4) for batch in data.train_dataloader() for key in batch.keys}
    assert seen <= {f"train-{i:07d}" for i in range(17)}
    assert len(data.train_dataloader()) == 2
    assert [len(batch) for batch in data.val_dataloader()] == [3]
    assert [len(batch) for batch in data.test_dataloader()] == [2]


def spoiled(root: Path, folder: Path, **spoil: bytes) -> Path:
    """A corpus of eight studies, of which the third has other content."""
    studies = list(SyntheticCorpus(seed=6).studies("train", 8))
    index = write_corpus(
        folder,
        {"train": studies},
        counts={"train": 8},
        corpus="synthetic",
        options={},
        labels=CorpusIndex.load(root).labels,
    )
    samples = [encode_study(study) for study in studies]
    samples[2].update(spoil)
    path = folder / "train-000000.tar"
    with path.open("wb") as file, TarWriter(file) as writer:
        for sample in samples:
            writer.write(sample)
    record = json.loads((folder / "index.json").read_text())
    record["splits"]["train"][0]["bytes"] = path.stat().st_size
    (folder / "index.json").write_text(json.dumps(record))
    assert index.count("train") == 8
    shutil.copytree(root / "tokenizer", folder / "tokenizer")
    return folder


def test_bad_samples_stop_or_are_skipped(root, tmp_path, caplog):
    folder = spoiled(root, tmp_path / "bad", **{"0.png": b"no image"})
    with pytest.raises(ValueError, match=r"sample train-0000002 of shard train-000000.tar.*on_bad_sample=skip"):
        list(module(folder).train_dataloader())
    (batch,) = module(folder, on_bad_sample="skip").train_dataloader()
    assert len(batch) == 7
    assert "train-0000002" not in batch.keys
    assert "skipped a sample (1 so far)" in caplog.text


def test_a_report_without_findings_is_a_bad_sample(root, tmp_path):
    study = json.loads(encode_study(SyntheticCorpus(seed=6).study("train", 2))["json"])
    folder = spoiled(root, tmp_path / "bad", json=json.dumps({**study, "findings": ""}).encode())
    with pytest.raises(ValueError, match="train-0000002 has a normalized report without findings"):
        list(module(folder).train_dataloader())


def test_long_responses_stop_or_are_skipped(root, caplog):
    lengths = [int(n) for batch in module(root).held_out_batches("val", VAL, VAL) for n in batch.response_lengths_B]
    limit = sorted(lengths)[VAL // 2]
    with pytest.raises(ValueError, match="more than max_response_tokens"):
        list(module(root, max_response_tokens=limit).val_dataloader())
    kept = module(root, max_response_tokens=limit, on_long_response="skip", eval_batch_size=VAL).val_dataloader()
    assert sum(len(batch) for batch in kept) == sum(length <= limit for length in lengths)
    with pytest.raises(ValueError, match="not one sample of a batch"):
        list(module(root, max_response_tokens=5, on_long_response="skip").val_dataloader())


def test_errors_of_a_worker_name_the_sample(root, tmp_path):
    folder = spoiled(root, tmp_path / "bad", **{"0.png": b"no image"})
    with pytest.raises(ValueError, match="train-0000002"):
        list(module(folder, num_workers=1).train_dataloader())


@pytest.mark.parametrize("split", ["train", "val"])
def test_processes_end_with_their_error(root, split):
    """By counting references alone: whoever collects torch's iterator as part of a cycle waits 5 s for each process."""
    data = module(root, num_workers=2, max_response_tokens=5)
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    before = set(multiprocessing.active_children())
    gc.disable()
    try:
        with pytest.raises(ValueError, match="more than max_response_tokens"):
            list(loader)
        del loader
        assert set(multiprocessing.active_children()) <= before
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_same_workers_read_every_epoch(root, tmp_path, monkeypatch):
    """Epochs that are read to the end, two that are left, and a jump."""
    log = tmp_path / "processes"
    collate = ReportCollator.__call__

    def noted(self, samples):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return collate(self, samples)

    alone, helped = (module(root, num_workers=number).train_dataloader() for number in (0, 2))
    expected = [keys(alone) for _ in range(7)]
    monkeypatch.setattr(ReportCollator, "__call__", noted)  # processes are forked from here
    assert [keys(helped), keys(helped)] == expected[:2]
    assert keys(islice(helped, 3)) == expected[2][:3]
    assert keys(islice(helped, 1)) == expected[3][:1]
    assert helped.state_dict()["epoch"] == 3
    assert keys(helped) == expected[4]
    assert len(set(log.read_text().split())) == 2
    helped.load_state_dict({"epoch": 5, "batches_done": 2})
    assert [keys(helped), keys(helped)] == [expected[5][2:], expected[6]]
    assert len(set(log.read_text().split())) == 4, "work in other processes happens in new ones"


def test_what_workers_are_given_can_be_sent_to_them(root):
    """With spawned processes everything is pickled, but not the trainer and its model."""
    data = module(root, rank=0, world_size=1)
    data.trainer = lambda: "a trainer"  # cannot be pickled
    passes = data.train_dataloader()._make_stream
    again = pickle.loads(pickle.dumps(passes))
    assert keys(again(1, 2)) == keys(passes(1, 2))


def test_loaders_leave_torch_s_own_generator_alone(root):
    state = torch.get_rng_state()
    for workers in (0, 1):
        data = module(root, num_workers=workers)
        next(iter(data.train_dataloader()))
        next(iter(data.val_dataloader()))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_corpus_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no index.json in .*echo-pl corpus make synthetic --out"):
        module(tmp_path / "none").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length_window": -1}, "length_window must be at least 0, got -1"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"prefetch_batches": 0}, "prefetch_batches must be at least 1, got 0"),
        ({"limit_val": 0}, "limit_val must be at least 1, got 0"),
        ({"on_bad_sample": "ignore"}, "on_bad_sample must be"),
        ({"rank": 1}, "both rank and world_size"),
        ({"root": "pipe:cat x"}, "never from a URL or a command"),
    ],
)
def test_bad_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        module(**{"root": root, **options})


def test_a_batch_larger_than_the_corpus(root):
    with pytest.raises(ValueError, match="60 training studies do not fill one batch of 64 on 1 rank"):
        module(root, batch_size=64).train_dataloader()


@pytest.mark.parametrize("name", ["synthetic", "nih", "mixed"])
def test_yaml_names_and_comments_every_argument(name):
    arguments = set(inspect.signature(ReportDataModule).parameters) - {"rank", "world_size"}
    assert set(compose_config([f"data={name}"]).data) == arguments | {"_target_"}
    text = (EXPERIMENTS / "data" / f"{name}.yaml").read_text()
    lines = [line for line in text.splitlines() if ":" in line and not line.startswith(("#", "_target_", "defaults"))]
    assert all("#" in line or line.strip() in ("synthetic:", "nih:") for line in lines)


def test_with_workers_nothing_is_decoded_or_tokenized_in_the_training_process(root, tmp_path, monkeypatch):
    """Each step notes the process that it ran in; processes are forked, so the patches are theirs too."""
    log = tmp_path / "processes"

    def noted(name, function):
        def call(*arguments):
            with log.open("a") as file:
                file.write(f"{name} {os.getpid()}\n")
            return function(*arguments)

        return call

    monkeypatch.setattr(stream, "decode_study", noted("decode", stream.decode_study))
    monkeypatch.setattr(ReportProcessor, "__call__", noted("process", ReportProcessor.__call__))
    monkeypatch.setattr(ReportCollator, "__call__", noted("collate", ReportCollator.__call__))
    list(module(root, num_workers=2, prefetch_batches=1).train_dataloader())
    steps = {tuple(line.split()) for line in log.read_text().splitlines()}
    assert {name for name, _ in steps} == {"decode", "process", "collate"}
    workers = {process for _, process in steps}
    assert len(workers) == 2
    assert str(os.getpid()) not in workers
