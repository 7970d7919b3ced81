"""Speed of reading shards, decoding images and making batches, from a folder and over HTTP.

Everything is timed side by side in one run: rounds of all ways, one after the other, of which the medians count. What is compared
is the same work on the same bytes. Samples per second are by the clock; ratios of work that is done in one process are also given
in its own processor time, which neighbours on the machine change less.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL import __version__ as pillow_version

from echo_pl.bench.benchmark import say
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.shard_reader import RawSample, decode_study, read_samples
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import write_json

ROOM = 10**12
KINDS = ("png", "jpeg")
JPEG_QUALITY = 90
READING_ROUNDS = 5
"""Rounds of reading for each of batches: they are short, and what is compared differs by a few per cent."""


class _Folder(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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


def read_only(folder: Path, index: CorpusIndex) -> int:
    """Read every training sample, decode nothing."""
    return sum(1 for shard in index.shards("train") for _ in read_samples(folder, shard, range(shard.samples)))


def read_and_decode(folder: Path, index: CorpusIndex) -> int:
    """Read and decode every training study."""
    count = 0
    for shard in index.shards("train"):
        for _, raw in read_samples(folder, shard, range(shard.samples)):
            decode_study(raw)
            count += 1
    return count


def pillow_alone(images: Sequence[bytes]) -> int:
    """Decode the same images with PIL, from memory."""
    for content in images:
        Image.open(io.BytesIO(content)).load()
    return len(images)


def decode_alone(samples: Sequence[RawSample]) -> int:
    """Decode the same studies, images and reports, from memory."""
    for sample in samples:
        decode_study(sample)
    return len(samples)


def one_epoch(data: ReportDataModule) -> int:
    """Make every batch of a training epoch: read, decode, patches, tokens, collate."""
    return sum(len(batch) for batch in data.train_dataloader())


def as_jpeg(folder: Path, target: Path) -> Path:
    """Write a corpus's shards anew with their images as JPEG, as hospitals and public datasets have them."""
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


def ways_of_reading(folder: Path, kind: str) -> dict[str, Callable[[], int]]:
    """Name to what is timed in one process and without tensors; each returns the samples that it went through."""
    index = CorpusIndex.load(folder)
    samples = [raw for shard in index.shards("train") for _, raw in read_samples(folder, shard, range(shard.samples))]
    images = [content for sample in samples for name, content in sample.fields.items() if name != "json"]
    return {
        f"read_{kind}": lambda: read_only(folder, index),
        f"read_and_decode_{kind}": lambda: read_and_decode(folder, index),
        f"pillow_alone_{kind}": lambda: pillow_alone(images),
        f"decode_alone_{kind}": lambda: decode_alone(samples),
    }


def ways_of_batches(folder: Path, url: str, scratch: Path, side: int, workers: Sequence[int]) -> dict[str, Callable[[], int]]:
    """Name to an epoch of batches, from the folder with so many workers, and over HTTP without any."""

    def data(root: Path | str, number: int, cache: Path | None = None) -> ReportDataModule:
        pixels = side * side
        made = ReportDataModule(
            root=root,
            cache_dir=cache,
            cache_bytes=ROOM,
            batch_size=8,
            num_workers=number,
            patch_size=16,
            min_pixels=pixels,
            max_pixels=pixels,
        )
        made.setup()
        return made

    def uncached() -> int:
        shutil.rmtree(scratch / "anew", ignore_errors=True)
        return one_epoch(data(url, 0, scratch / "anew"))

    return {
        **{f"batches_workers_{number}": functools.partial(one_epoch, data(folder, number)) for number in workers},
        "batches_http_cached": lambda: one_epoch(data(url, 0, scratch / "kept")),  # since the round that does not count
        "batches_http_uncached": uncached,
    }


def timed(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, Any]]:
    """Samples per second of each way, the median over the rounds, and the seconds a sample took in each. Round 0 does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began, worked = time.perf_counter(), time.process_time()
            count = way()
            if number:
                seconds[name].append((time.perf_counter() - began) / count)
                processor[name].append((time.process_time() - worked) / count)
        say(f"round {number} of {rounds}")
    return {
        name: {
            "samples_per_second": 1 / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "processor_seconds": processor[name],
        }
        for name in ways
    }


def ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the parts cost: medians of the ratios within a round, whose ways ran next to each other."""

    def of(one: str, other: str, kind: str) -> float:
        return statistics.median(a / b for a, b in zip(rows[one][kind], rows[other][kind], strict=True))

    decoding = {
        f"{way}_over_pillow_{kind}{said}": of(f"{way}_{kind}", f"pillow_alone_{kind}", clock)
        for kind in KINDS
        for way in ("read_and_decode", "decode_alone")
        for said, clock in (("", "seconds"), ("_processor", "processor_seconds"))
    }
    return {
        **decoding,
        "http_cached_over_folder": of("batches_http_cached", "batches_workers_0", "seconds"),
        "http_uncached_over_folder": of("batches_http_uncached", "batches_workers_0", "seconds"),
    }


def table(record: dict[str, Any]) -> str:
    """The record as text."""
    lines = [f"{'way':<28}{'samples/s':>12}{'slowest':>12}{'fastest':>12}{'CPU ms each':>14}"]
    for name, row in record["rows"].items():
        slowest, fastest = (1 / chosen(row["seconds"]) for chosen in (max, min))
        each = 1e3 * statistics.median(row["processor_seconds"])
        lines.append(f"{name:<28}{row['samples_per_second']:>12.0f}{slowest:>12.0f}{fastest:>12.0f}{each:>14.2f}")
    return "\n".join([*lines, "", "time over time:", *(f"{name:<48}{value:>8.3f}" for name, value in record["ratios"].items())])


def run_bench(out: Path, *, studies: int, side: int, rounds: int, workers: Sequence[int]) -> dict[str, Any]:
    """Make a corpus in a scratch folder, time everything, write ``data.json``.

    Raises:
        ValueError: ``workers`` without 0, which the others are compared with.
    """
    if 0 not in workers:
        raise ValueError(f"--workers must have a 0, which the others are compared with, got {list(workers)}")
    with tempfile.TemporaryDirectory(prefix="echo_pl-bench-") as name:
        scratch = Path(name)
        folder = make_synthetic(
            scratch / "corpus", train=studies, val=1, test=1, image_size=side, shard_size=max(1, studies // 4), progress=False
        )
        with serving(folder) as url:
            folders = {"png": folder, "jpeg": as_jpeg(folder, scratch / "jpeg")}
            rows: dict[str, dict[str, Any]] = {}
            for kind in KINDS:
                rows |= timed(ways_of_reading(folders[kind], kind), READING_ROUNDS * rounds)
            rows |= timed(ways_of_batches(folder, url, scratch, side, workers), rounds)
        sizes = {kind: sum(shard.bytes for shard in CorpusIndex.load(folders[kind]).shards("train")) for kind in KINDS}
    record = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "pillow": pillow_version,
        },
        "corpus": {"studies": studies, "image_side": side, "bytes_of_shards": sizes},
        "rows": rows,
        "ratios": ratios(rows),
    }
    write_json(out / "data.json", record)
    return record
