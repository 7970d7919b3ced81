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

from echo_pl.io.stop_signals import SignalledError, stop_on_signals
from echo_pl.io.workers import Workers

pytestmark = pytest.mark.slow


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


def test_a_dead_worker_is_reported():
    with pytest.raises(RuntimeError, match="a worker process has died"), Workers(1) as workers:
        list(workers.run(die, range(2)))


def test_a_negative_number_is_rejected():
    with pytest.raises(ValueError, match="-1"):
        Workers(-1)


def test_leaving_ends_what_workers_do(tmp_path):
    log = tmp_path / "log"

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


def stubborn(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    endless(path)


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_pipeline_workers import endless, stubborn
from echo_pl.io.stop_signals import SignalledError, stop_on_signals
from echo_pl.io.workers import Workers
if __name__ == "__main__":
    try:
        with stop_on_signals(), Workers(2) as workers:
            list(workers.run({task}, [{log!r}, {log!r}]))
    except SignalledError as stop:
        sys.exit(128 + stop.number)
"""


@pytest.mark.parametrize(
    ("task", "signals"),
    [
        ("endless", [signal.SIGKILL]),
        ("endless", [signal.SIGTERM]),
        ("endless", [signal.SIGINT]),
        ("stubborn", [signal.SIGTERM, signal.SIGUSR1]),
    ],
)
def test_workers_end_with_their_parent(tmp_path, task, signals):
    log, script = tmp_path / "log", tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), log=str(log), task=task))
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not log.exists() or log.read_text().count("\n") < 2:
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in signals:
            time.sleep(0.5)
            parent.send_signal(number)
        killed = signals == [signal.SIGKILL]
        assert parent.wait(60) == (-signal.SIGKILL if killed else 128 + signals[0])
    finally:
        parent.kill()
        parent.wait()
    wait_until_gone([int(line) for line in log.read_text().split()])


def test_a_signal_is_noted_and_raised_between_items():
    done = []

    def task(number: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(number)

    with pytest.raises(SignalledError, match="ended by SIGTERM") as stopped, stop_on_signals(), Workers(0) as workers:
        list(workers.run(task, range(3)))
    assert done == [0]
    assert stopped.value.number == signal.SIGTERM


def test_a_signal_after_the_last_item_is_not_lost():
    def items() -> Iterator[int]:
        with stop_on_signals():
            yield 1

    with pytest.raises(SignalledError), stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
    found = items()
    assert next(found) == 1
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SignalledError):
        found.close()
