"""`echo-pl bench data`: speed of reading shards, decoding images and making batches, from a folder and over HTTP.

All methods are timed in turns on the same bytes, and the medians over the rounds count. Samples per second are by the clock;
ratios of work in one process are also given in its processor time, which other load on the machine changes less.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL import __version__ as pillow_version

from echo_pl.bench.benchmark import report_progress
from echo_pl.bench.machine import describe
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.shard_reader import RawSample, decode_study, read_samples
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import write_json
from echo_pl.pages.tables import Table

_CACHE_BYTES = 10**12
KINDS = ("png", "jpeg")
JPEG_QUALITY = 90
READING_ROUNDS = 5
"""Rounds of reading for each round of batches, as they are short and the methods differ by a few per cent."""


class _Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP on this machine; yields its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Folder, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _samples(folder: Path) -> Iterator[RawSample]:
    """Read every training sample, decode nothing."""
    for shard in CorpusIndex.load(folder).shards("train"):
        for _, raw in read_samples(folder, shard, range(shard.samples)):
            yield raw


def pillow_alone(images: Sequence[bytes]) -> int:
    """Decode the same images with PIL."""
    for content in images:
        Image.open(io.BytesIO(content)).load()
    return len(images)


def decode_studies(samples: Iterable[RawSample]) -> int:
    """Decode studies, images and reports."""
    return sum(bool(decode_study(sample)) for sample in samples)


def one_epoch(data: ReportDataModule) -> int:
    """Make every batch of a training epoch: read, decode, patches, tokens, collate."""
    return sum(len(batch) for batch in data.train_dataloader())


def as_jpeg(folder: Path, target: Path) -> Path:
    """Rewrite a corpus's shards with JPEG images, the format of hospitals and public datasets."""
    target.mkdir()
    index = CorpusIndex.load(folder)

    def rewritten(shard: Shard) -> Shard:
        path = target / shard.name
        with path.open("wb") as file, TarWriter(file, mtime=0) as writer:
            for _, raw in read_samples(folder, shard, range(shard.samples)):
                encoded = io.BytesIO()
                Image.open(io.BytesIO(raw.fields["0.png"])).save(encoded, format="JPEG", quality=JPEG_QUALITY)
                writer.write({"__key__": raw.key, "0.jpg": encoded.getvalue(), "json": raw.fields["json"]})
        content = path.read_bytes()
        return replace(shard, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    splits = {split: tuple(map(rewritten, shards)) for split, shards in index.splits.items()}
    replace(index, splits=splits, files=()).save(target)
    return target


def reading_methods(folder: Path, kind: str) -> dict[str, Callable[[], int]]:
    """Functions to time in one process and without tensors, by name; each returns its number of samples."""
    samples = list(_samples(folder))
    images = [content for sample in samples for name, content in sample.fields.items() if name != "json"]
    return {
        f"read_{kind}": lambda: sum(1 for _ in _samples(folder)),
        f"read_and_decode_{kind}": lambda: decode_studies(_samples(folder)),
        f"pillow_alone_{kind}": lambda: pillow_alone(images),
        f"decode_alone_{kind}": lambda: decode_studies(samples),
    }


def batch_methods(folder: Path, url: str, scratch: Path, side: int, workers: Sequence[int]) -> dict[str, Callable[[], int]]:
    """Epochs of batches by name: from the folder with each number of workers, and over HTTP without workers."""

    def data(root: Path | str, number: int, cache: Path | None = None) -> ReportDataModule:
        pixels = side * side
        made = ReportDataModule(
            root=root, cache_dir=cache, cache_bytes=_CACHE_BYTES, batch_size=8, num_workers=number, patch_size=16,
            min_pixels=pixels, max_pixels=pixels,
        )  # fmt: skip
        made.setup()
        return made

    def uncached() -> int:
        shutil.rmtree(scratch / "uncached", ignore_errors=True)
        return one_epoch(data(url, 0, scratch / "uncached"))

    return {
        **{f"batches_workers_{number}": functools.partial(one_epoch, data(folder, number)) for number in workers},
        "batches_http_cached": lambda: one_epoch(data(url, 0, scratch / "cached")),  # filled in round 0
        "batches_http_uncached": uncached,
    }


def timed(methods: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median samples per second of each method, and its seconds per sample in each round. Round 0 does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    processor: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            began, worked = time.perf_counter(), time.process_time()
            count = method()
            if number:
                seconds[name].append((time.perf_counter() - began) / count)
                processor[name].append((time.process_time() - worked) / count)
        report_progress(f"round {number} of {rounds}")
    return {
        name: {
            "samples_per_second": 1 / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "processor_seconds": processor[name],
        }
        for name in methods
    }


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Costs of the parts: medians of the ratios within a round."""

    def of(one: str, other: str, kind: str) -> float:
        return statistics.median(a / b for a, b in zip(rows[one][kind], rows[other][kind], strict=True))

    decoding = {
        f"{method}_over_pillow_{kind}{suffix}": of(f"{method}_{kind}", f"pillow_alone_{kind}", clock)
        for kind in KINDS
        for method in ("read_and_decode", "decode_alone")
        for suffix, clock in (("", "seconds"), ("_processor", "processor_seconds"))
    }
    return {
        **decoding,
        "http_cached_over_folder": of("batches_http_cached", "batches_workers_0", "seconds"),
        "http_uncached_over_folder": of("batches_http_uncached", "batches_workers_0", "seconds"),
    }


def table(record: dict[str, Any]) -> str:
    """Tables of the record as text."""
    rows = [
        [name, f"{row['samples_per_second']:.0f}", f"{1 / max(row['seconds']):.0f}", f"{1 / min(row['seconds']):.0f}",
         f"{1e3 * statistics.median(row['processor_seconds']):.2f}"]
        for name, row in record["rows"].items()
    ]  # fmt: skip
    speeds = Table(["method", "samples/s", "slowest", "fastest", "CPU ms each"], rows)
    ratios = Table(["time over time", "ratio"], [[name, f"{value:.3f}"] for name, value in record["ratios"].items()])
    return f"{speeds.text()}\n\n{ratios.text()}"


def run_bench(out: Path, *, studies: int, side: int, rounds: int, workers: Sequence[int]) -> dict[str, Any]:
    """Make a corpus in a scratch folder, time everything, write ``data.json``.

    Raises:
        ValueError: ``workers`` without 0, the reference of the others.
    """
    if 0 not in workers:
        raise ValueError(f"--workers must have a 0, the reference of the others, got {list(workers)}")
    with tempfile.TemporaryDirectory(prefix="echo_pl-bench-") as name:
        scratch = Path(name)
        folder = make_synthetic(
            scratch / "corpus", train=studies, val=1, test=1, image_size=side, shard_size=max(1, studies // 4), progress=False
        )
        with serving(folder) as url:
            folders = {"png": folder, "jpeg": as_jpeg(folder, scratch / "jpeg")}
            rows: dict[str, dict[str, Any]] = {}
            for kind in KINDS:
                rows |= timed(reading_methods(folders[kind], kind), READING_ROUNDS * rounds)
            rows |= timed(batch_methods(folder, url, scratch, side, workers), rounds)
        sizes = {kind: sum(shard.bytes for shard in CorpusIndex.load(folders[kind]).shards("train")) for kind in KINDS}
    record = {
        "machine": describe(torch.device("cpu")) | {"pillow": pillow_version},
        "corpus": {"studies": studies, "image_side": side, "bytes_of_shards": sizes},
        "rows": rows,
        "ratios": ratios(rows),
    }
    write_json(out / "data.json", record)
    return record
