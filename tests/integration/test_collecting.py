"""Collecting trajectories as a command: killed and started again, and by two processes, it writes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ranks import SIZES
from stage_parts import BACKBONE, lively, record, write_checkpoint

from echo_pl.data.datamodule import ReportDataModule
from echo_pl.sampling.trajectory_store import TrajectoryStore
from echo_pl.tools.make_corpus import make_synthetic

STUDIES, PATIENCE = 13, 300
KILLED_AT = """
import os, signal, sys
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
at, plain = int(sys.argv.pop(1)), TrajectoryWriter.write
def write(self, part, *rest):
    if part == at:  # half a file is written
        self.folder.with_name(self.folder.name + ".part").joinpath(f"part-{part:05d}.safetensors.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, part, *rest)
TrajectoryWriter.write = write
from echo_pl.tools.collect_trajectories import main
main()
"""
TOOL = ("-m", "echo_pl.tools.collect_trajectories")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TOOL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collecting")
    make_synthetic(folder / "synthetic", train=20, val=2, test=2, seed=1, shard_size=8, progress=False)
    data = ReportDataModule(root=folder / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    write_checkpoint(folder / "rad.ckpt", vlm, record("rad", vocabulary=data.vocabulary_fingerprint))
    return folder


def command(folder: Path, out: Path, *launcher: str, keep: int = 4) -> subprocess.CompletedProcess[str]:
    launchers = ("SLURM_", "TORCHELASTIC", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    sizes = ["--studies", str(STUDIES), "--batch-size", "3", "--batches-per-part", "1", "--keep", str(keep)]
    config = [f"data_root={folder}", f"outputs={folder}", f"start={folder / 'rad.ckpt'}", "min_free_gb=0", "threads=1"]
    return subprocess.run(
        [sys.executable, *launcher, "--out", str(out), *sizes, *config, "stage.module.decode.denoising_steps=2", *SIZES],
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    done = command(folder, folder / "whole", *TOOL)
    assert done.returncode == 0, done.stderr[-3000:]
    store = TrajectoryStore(folder / "whole")
    assert 0 < len(store) < STUDIES
    assert f"{len(store)} trajectories in " in done.stdout
    assert sorted(path.suffix for path in (folder / "whole").iterdir()) == [".json"] + 5 * [".safetensors"]
    return folder / "whole"


@pytest.mark.parametrize("again", [TOOL, TWO], ids=["by one", "by two"])
def test_killed_and_started_again_it_writes_the_same_bytes(folder, whole, tmp_path, again):
    killed = command(folder, tmp_path / "store", "-c", KILLED_AT, "2")
    assert killed.returncode == -signal.SIGKILL
    left = contents(tmp_path / "store.part")
    assert {name for name in left if name.endswith(".safetensors")} == {f"part-0000{n}.safetensors" for n in (0, 1)}
    assert not (tmp_path / "store").exists()
    done = command(folder, tmp_path / "store", *again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "store") == contents(whole)


def test_two_processes_write_what_one_writes(folder, whole, tmp_path):
    done = command(folder, tmp_path / "store", *TWO)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "store") == contents(whole)
    assert done.stdout.count("trajectories in") == 1


def test_two_processes_refuse_together(folder, whole):
    """The folder is there already: every rank says so, and none waits for another."""
    done = command(folder, whole, *TWO)
    assert done.returncode != 0
    assert done.stderr.count("whole exists already; remove it, or collect into another folder") == 2


def test_another_k_is_another_collection(folder, tmp_path):
    assert command(folder, tmp_path / "store", "-c", KILLED_AT, "1").returncode == -signal.SIGKILL
    done = command(folder, tmp_path / "store", *TOOL, keep=8)
    assert done.returncode == 2
    assert "unfinished collection of kept_tokens 4, this one is of 8" in done.stderr
