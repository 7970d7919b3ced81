"""What tests of every room share: threads, and where real data may be found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import absl.logging
import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)
# absl, of rouge-score, keeps the stderr that it finds, and closes it when a command sets up its logging: not pytest's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data: ``ECHO_PL_DATA``, or ``../shared/data`` beside the repository. Skips without it."""
    folder = Path(os.environ.get("ECHO_PL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set ECHO_PL_DATA to the folder that holds nih_64 and qwen2_tokenizer")
    return folder


def _shared_corpus(factory: pytest.TempPathFactory, name: str, **sizes: int) -> Path:
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers of this test run
    from echo_pl.data.pipeline.make_corpus import make_synthetic  # imports the whole data package

    folder = base / "corpora" / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        make_synthetic(folder / "synthetic", **sizes, progress=False)  # finds the corpus if another worker has made it
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Data root of a synthetic corpus, to be read only: 16 training studies in 2 shards, 4 for validation, 4 for tests."""
    return _shared_corpus(tmp_path_factory, "tiny", train=16, val=4, test=4, seed=2, shard_size=8)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Data root of a synthetic corpus, to be read only: 20 training studies in 3 shards, 4 for validation, 6 for tests."""
    return _shared_corpus(tmp_path_factory, "small", train=20, val=4, test=6, seed=1, shard_size=8)


@pytest.fixture(scope="session")
def medium_data(tmp_path_factory) -> Path:
    """Data root of a synthetic corpus, to be read only: 40 training studies in 4 shards, 6 for validation, 4 for tests."""
    return _shared_corpus(tmp_path_factory, "medium", train=40, val=6, test=4, seed=6, shard_size=10)
