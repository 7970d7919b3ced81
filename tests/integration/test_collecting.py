"""Collecting trajectories as a command: killed and started again, and by two processes, it writes the same bytes.

Commands run in forked children of the test process, which have all modules already: a program of its own spends seconds on them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from commands import command as run_command
from forked import begin_child
from ranks import SIZES
from stage_parts import BACKBONE, lively, record, write_checkpoint

from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.sampling.trajectory_store import TrajectoryStore
from echo_pl.sampling.trajectory_writer import TrajectoryWriter

pytestmark = pytest.mark.slow

STUDIES, PATIENCE = 13, 120
LAUNCHERS = ("SLURM_", "TORCHELASTIC", "LOCAL_", "RANK", "GROUP_", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
ONE: tuple[dict[str, str], ...] = ({},)


@dataclass(frozen=True)
class Done:
    """Status of a command (the negative number of a signal) and the output of all its processes."""

    status: int
    stdout: str
    stderr: str


def two() -> tuple[dict[str, str], ...]:
    """Environment that torchrun sets for each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "collecting", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1",
              "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    return tuple(common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data) -> Path:
    folder = tmp_path_factory.mktemp("collecting")
    (folder / "synthetic").symlink_to(small_data / "synthetic")
    data = ReportDataModule(root=folder / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    write_checkpoint(folder / "rad.ckpt", vlm, record("rad", vocabulary=data.vocabulary_fingerprint))
    other = lively(replace(BACKBONE, seed=9).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    write_checkpoint(folder / "dcd.ckpt", other, record("dcd", vocabulary=data.vocabulary_fingerprint))
    return folder


def killed_at(part: int) -> None:
    """Have this process killed when it has written half of a part."""
    plain = TrajectoryWriter.write

    def write(self: TrajectoryWriter, number: int, *rest) -> None:
        if number == part:
            self.folder.with_name(self.folder.name + ".part").joinpath(f"part-{part:05d}.safetensors.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, number, *rest)

    TrajectoryWriter.write = write


def child(arguments: list[str], variables: Mapping[str, str], out: Path, err: Path, kill: int | None) -> int:
    """The command in a forked child, with a launcher's variables; its process id."""
    if pid := os.fork():
        return pid
    status = 70
    try:
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
            del os.environ[name]
        os.environ.update(variables)
        begin_child(PATIENCE)  # two that wait for each other end, too
        if kill is not None:
            killed_at(kill)
        status = run_command("trajectories", "collect")(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(
    folder: Path,
    out: Path,
    logs: Path,
    processes: tuple[dict[str, str], ...] = ONE,
    keep: int = 4,
    kill: int | None = None,
    options: tuple[str, ...] = (),
) -> Done:
    sizes = ["--studies", str(STUDIES), "--batch-size", "3", "--batches-per-part", "1", "--keep", str(keep)]
    config = [f"data_root={folder}", f"outputs={folder}", f"start={folder / 'rad.ckpt'}", "min_free_gb=0", "threads=1"]
    arguments = ["--out", str(out), *sizes, *config, "stage.module.decode.denoising_steps=2", *SIZES, *options]
    files = logs / "stdout.txt", logs / "stderr.txt"
    for file in files:
        file.write_text("")
    children = [child(arguments, variables, *files, kill) for variables in processes]
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return Done(next((end for end in ends if end), 0), *(file.read_text() for file in files))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    done = command(folder, folder / "whole", folder)
    assert done.status == 0, done.stderr[-3000:]
    store = TrajectoryStore(folder / "whole")
    assert 0 < len(store) < STUDIES
    assert f"{len(store)} trajectories in " in done.stdout
    assert sorted(path.suffix for path in (folder / "whole").iterdir()) == [".json"] + 5 * [".safetensors"]
    return folder / "whole"


@pytest.fixture(scope="module")
def interrupted(folder) -> Path:
    """Files of a collection that was killed in its third part."""
    assert command(folder, folder / "killed", folder, kill=2).status == -signal.SIGKILL
    left = contents(folder / "killed.part")
    assert {name for name in left if name.endswith(".safetensors")} == {f"part-0000{n}.safetensors" for n in (0, 1)}
    assert "part-00002.safetensors.partial" in left
    assert not (folder / "killed").exists()
    return folder / "killed.part"


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again_it_writes_the_same_bytes(folder, whole, interrupted, tmp_path, processes):
    shutil.copytree(interrupted, tmp_path / "store.part")
    done = command(folder, tmp_path / "store", tmp_path, two() if processes == 2 else ONE)
    assert done.status == 0, done.stderr[-3000:]
    assert contents(tmp_path / "store") == contents(whole)


def test_two_processes_write_what_one_writes(folder, whole, tmp_path):
    done = command(folder, tmp_path / "store", tmp_path, two())
    assert done.status == 0, done.stderr[-3000:]
    assert contents(tmp_path / "store") == contents(whole)
    assert done.stdout.count("trajectories in") == 1


def test_two_processes_fail_together(folder, whole, tmp_path):
    """The folder exists already: every rank reports it, and none waits for another."""
    done = command(folder, whole, tmp_path, two())
    assert done.status == 2
    assert done.stderr.count("whole exists already; remove it, or collect into another folder") == 2


def test_another_k_is_another_collection(folder, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "store.part")
    done = command(folder, tmp_path / "store", tmp_path, keep=8)
    assert done.status == 2
    assert "unfinished collection of kept_tokens 4, this one is of 8" in done.stderr
    assert contents(tmp_path / "store.part") == contents(interrupted)


def test_a_teacher_that_leans_to_a_student(folder, whole, interrupted, tmp_path):
    """A named student or the teacher itself as the target of the tilt; the record names it, and no other can continue the store."""
    tilted = ("stage.module.tilt=1.0",)
    named = (*tilted, "--student", str(folder / "dcd.ckpt"))
    stores = {}
    for name, options in {"own": tilted, "named": named}.items():
        done = command(folder, tmp_path / name, tmp_path, options=options)
        assert done.status == 0, done.stderr[-3000:]
        stores[name] = TrajectoryStore(tmp_path / name)
    own, theirs = (stores[name].identity for name in ("own", "named"))
    assert own.tilt == theirs.tilt == 1.0
    assert own.tilt_student == own.teacher_fingerprint != theirs.tilt_student
    tokens = [
        [t.token_R.tolist() for key in store.keys if (t := store.get(key))] for store in (TrajectoryStore(whole), *stores.values())
    ]
    assert tokens[0] != tokens[1] != tokens[2]
    stores["own"].check(replace(own, tilt_student="another one"))  # training asks how far, not to whom
    with pytest.raises(ValueError, match=r"have tilt 1.0, this run needs 0.0"):
        stores["own"].check(replace(own, tilt=0.0))
    shutil.copytree(interrupted, tmp_path / "other.part")
    done = command(folder, tmp_path / "other", tmp_path, options=named)
    assert done.status == 2
    assert "unfinished collection of tilt 0.0, this one is of 1.0" in done.stderr


def test_a_student_without_a_tilt_is_rejected(folder, tmp_path):
    done = command(folder, tmp_path / "store", tmp_path, options=("--student", str(folder / "dcd.ckpt")))
    assert done.status == 2
    assert "dcd.ckpt is a student to tilt the teacher to, but stage.module.tilt is 0: give ablation=tilted too" in done.stderr
    assert not list(tmp_path.glob("store*"))
