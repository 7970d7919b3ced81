"""Other processes: they share tasks, are ended with the run, and go when their parent goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from echo_pl.io.signal_safe_pool import SignalSafePool
from echo_pl.io.workers import Workers


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"task {number}")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def endless(path: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline, "they are still there"
        time.sleep(0.05)


@pytest.mark.parametrize("count", [0, 2])
def test_every_task_is_done_once(count):
    with Workers(count) as workers:
        assert sorted(workers.run(square, range(20))) == [number * number for number in range(20)]
        assert sorted(workers.run(square, range(3))) == [0, 1, 4]
        with pytest.raises(ValueError, match="task 0"):
            list(workers.run(fail, range(1)))


def test_a_worker_that_dies_is_said():
    with pytest.raises(RuntimeError, match="a worker process has died"), Workers(1) as workers:
        list(workers.run(die, range(2)))


def test_a_number_below_none_is_refused():
    with pytest.raises(ValueError, match="-1"):
        Workers(-1)


@pytest.mark.parametrize("signals", [1, 2])
def test_leaving_ends_what_workers_do(tmp_path, monkeypatch, signals):
    log = tmp_path / "log"

    def again(self: SignalSafePool) -> None:
        raise InterruptedError

    if signals == 2:
        monkeypatch.setattr(SignalSafePool, "__exit__", again)

    def interrupted() -> Iterator[str]:
        yield str(log)
        deadline = time.monotonic() + 120
        while not log.exists() or not log.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise InterruptedError

    with pytest.raises(InterruptedError), Workers(1) as workers:
        list(workers.run(endless, interrupted()))
    wait_until_gone([int(line) for line in log.read_text().split()])


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_pipeline_workers import endless
from echo_pl.io.workers import Workers
if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.run(endless, [{log!r}, {log!r}]))
"""


def test_workers_go_when_their_parent_is_killed(tmp_path):
    log, script = tmp_path / "log", tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), log=str(log)))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not log.exists() or log.read_text().count("\n") < 2:
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    wait_until_gone([int(line) for line in log.read_text().split()])
