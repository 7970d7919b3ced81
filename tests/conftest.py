"""Fixtures of all tests: threads, corpora, databases and the location of real data."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import pytest
import torch
from filelock import FileLock
from sqlalchemy import Engine, create_engine

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


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all workers of this test run share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def migrated_databases(tmp_path_factory) -> Iterator[None]:
    """Copy one migrated MLflow database instead of running all migrations for each new one: 1.3 s of a core each."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.store.db import utils

    migrate = utils._initialize_tables

    def copy(engine: Engine) -> None:
        place = engine.url.database
        if engine.dialect.name != "sqlite" or not place or (Path(place).exists() and Path(place).stat().st_size):
            migrate(engine)
            return
        template = _shared_folder(tmp_path_factory) / "migrated.db"
        with FileLock(template.with_suffix(".lock")):
            if not template.exists():
                part = template.with_suffix(".part")
                first = create_engine(f"sqlite:///{part}")
                migrate(first)
                first.dispose()
                part.rename(template)
        engine.dispose()
        shutil.copyfile(template, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copy)
        yield


def _shared_corpus(factory: pytest.TempPathFactory, name: str, **sizes: int) -> Path:
    from echo_pl.data.pipeline.make_corpus import make_synthetic  # imports the whole data package

    folder = _shared_folder(factory) / "corpora" / name
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
