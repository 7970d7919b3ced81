"""Wherever a signal interrupts its use, the executor's threads go on, and their end is not waited for in vain."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType

import pytest

from echo_pl.io import signal_safe_pool
from echo_pl.io.signal_safe_pool import SignalSafePool

FILES = (signal_safe_pool.__file__, threading.__file__, str(Path(threading.__file__).parent / "concurrent"))
"""Whose code is interrupted: the standard library's, and those between them and a test."""


class Told(BaseException):
    """What the handler of a signal raises."""


class Interrupted:
    """Raises within this block of this thread, before the n-th instruction of Python in what may not be cut short."""

    def __init__(self, instruction: int) -> None:
        self.instruction = instruction
        self.at: FrameType | None = None

    def __enter__(self) -> Interrupted:
        left = self.instruction

        def count(frame: FrameType, event: str, argument: object):
            nonlocal left
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left < 0:
                    sys.settrace(None)
                    self.at = frame
                    raise Told
            return count

        sys.settrace(lambda frame, event, argument: count if frame.f_code.co_filename.startswith(FILES) else None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.settrace(None)


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"task {number}")


def use(pool: SignalSafePool[int], in_order: bool) -> list[int]:
    numbers = [pool.submit(square, number) for number in range(3)]
    if in_order:
        return [pool.result(number) for number in numbers]
    return [future.result() for _, future in (pool.next_finished() for _ in numbers)]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_signal_at_any_instruction_leaves_an_executor_that_ends(in_order):
    instruction = 0
    while True:
        with ThreadPoolExecutor(2) as executor, SignalSafePool(executor) as pool:
            try:
                with Interrupted(instruction) as interrupted:
                    found = use(pool, in_order)
            except Told:
                instruction += 1
            else:
                break
    assert sorted(found) == [0, 1, 4]
    assert interrupted.at is None
    assert instruction > 100, "hardly anything was interrupted"


def test_what_a_call_raises_is_raised_and_the_rest_goes_on():
    with ThreadPoolExecutor(1) as executor, SignalSafePool(executor) as pool:
        first, second = pool.submit(fail, 3), pool.submit(square, 3)
        with pytest.raises(ValueError, match="task 3"):
            pool.result(first)
        assert pool.result(second) == 9


def test_an_executor_that_takes_nothing_more_is_said():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with SignalSafePool(executor) as pool, pytest.raises(RuntimeError, match="after shutdown"):
        pool.result(pool.submit(square, 3))
