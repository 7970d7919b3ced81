"""A run that is killed at any moment and started again makes what an uninterrupted one makes, byte for byte.

Each kill is a SIGKILL that a forked child sends to itself: before the n-th change it makes to the disk, or when a file is half
written. ``ECHO_PL_EVERY_KILL=1`` tries every n (about three minutes); otherwise some, and every one of the last.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import begin_child
from pipeline_fakes import GARBLED, LOSSY, EqualTexts, Interpreter, make_components, row, write_dataset

from echo_pl.data.pipeline.components import Components
from echo_pl.data.pipeline.run import prepare
from echo_pl.data.pipeline.settings import Settings

pytestmark = pytest.mark.slow

SETTINGS = Settings(
    shard_size=5, work_size=6, val_share=0.2, test_share=0.2, near_duplicates=0.9, chinese_share=0.5, general_weight=0.3
)
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
"""Audit events of what changes the disk; opening a file to write is another, known by its mode."""


@pytest.fixture(scope="module")
def components(tmp_path_factory) -> Components:
    folder = tmp_path_factory.mktemp("source")
    rows = [row(number) for number in range(26)]
    rows[3] |= {"findings": GARBLED}
    rows[4] |= {"findings": f"{LOSSY} lung."}
    table = write_dataset(folder, rows)
    (folder / "5.png").write_bytes(b"")
    write_dataset(folder / "general", [row(n, image=f"g{n}.png") for n in range(9)])
    lines = (json.dumps({"image": f"g{n}.png", "text": f"thing {n}"}) + "\n" for n in range(9))
    (folder / "general" / "samples.jsonl").write_text("".join(lines))
    general = folder / "general" / "samples.jsonl"
    return make_components(table, general=general, translator=Interpreter(), duplicates=EqualTexts(letters=16))


@pytest.fixture(scope="module")
def wanted(components, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wanted") / "corpus"
    prepare(out, SETTINGS, components)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked child; how it ended, as of ``os.waitpid``."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            begin_child()
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_change(number: int) -> None:
    """From now on, kill this process just before its n-th change to the disk, counted from 0."""
    done = 0
    sync = os.fsync

    def count() -> bool:
        nonlocal done
        done += 1
        return done > number

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or writes) and count():
            die()

    def half(file: int) -> None:
        if count():
            os.ftruncate(file, os.fstat(file).st_size // 2)
            die()
        sync(file)

    os.fsync = half
    sys.addaudithook(hook)


def run_until(out: Path, components: Components, number: int) -> int:
    def work() -> None:
        die_at_change(number)
        prepare(out, SETTINGS, components)

    return in_child(work)


def count_changes(out: Path, components: Components) -> int:
    """Number of changes to the disk that a whole run makes."""
    low, high = 0, 1
    while (ended := run_until(out / f"high-{high}", components, high)) != 0:
        assert ended == -signal.SIGKILL
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if run_until(out / f"middle-{middle}", components, middle) == 0 else (middle, high)
    return high


def test_killed_before_a_change_to_the_disk(components, wanted, tmp_path):
    changes = count_changes(tmp_path, components)
    assert changes > 100, "hardly anything is counted"
    publishing = changes - 30
    some = np.random.default_rng(0).choice(publishing, 20, replace=False).tolist()
    numbers = range(changes) if os.environ.get("ECHO_PL_EVERY_KILL") else [*sorted(some), *range(publishing, changes, 3)]
    for number in numbers:
        out = tmp_path / f"{number:04d}"
        assert run_until(out, components, number) == -signal.SIGKILL
        assert not (out / "index.json").is_file() or set(wanted) <= set(contents(out)), "an index before all is there"
        prepare(out, SETTINGS, components)
        assert contents(out) == wanted, f"killed at change {number}"


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(components, wanted, tmp_path, seed):
    rng = np.random.default_rng(seed)
    kills = 0
    while (ended := run_until(tmp_path / "out", components, int(rng.integers(2, 30)))) != 0:
        assert ended == -signal.SIGKILL
        kills += 1
    assert contents(tmp_path / "out") == wanted
    assert kills > 5


def test_killed_by_the_clock(components, wanted, tmp_path):
    """At any place of the process, in Python code or native code."""
    rng = np.random.default_rng(7)

    def work() -> None:
        # From what no machine does it in to what the busiest does. SIGALRM ends the process as SIGKILL does.
        signal.setitimer(signal.ITIMER_REAL, 0.002 * 1.08**kills * float(rng.uniform(0.5, 1.5)))
        prepare(tmp_path / "out", SETTINGS, components)

    kills = 0
    while (ended := in_child(work)) != 0:
        assert ended == -signal.SIGALRM
        rng.uniform()  # the child's draws are not this process's
        kills += 1
    assert contents(tmp_path / "out") == wanted
    assert kills, "it was killed"


def test_another_process_may_not_work_there_at_the_same_time(components, tmp_path):
    def second(texts, folder):
        with pytest.raises(ValueError, match="another process is making the corpus"):
            prepare(tmp_path / "out", SETTINGS, components)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prepare(tmp_path / "out", SETTINGS, replace(components, tokenizer=second))
