"""Where the time of a decode forward goes: operators by part of the model, and what is left is Python.

One more decode, under torch's profiler; it is slower than the timed ones, and the record says by how much.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile, record_function

from echo_pl.backbone import text_decoder
from echo_pl.backbone.text_decoder import TextDecoder
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import autoregressive, forwards
from echo_pl.structs import DecodeResult

PARTS = ("projections", "attention", "feed-forward", "head", "commit", "other operators", "Python")
"""``projections``: norm, queries, keys, values, rotary positions, output. ``attention``: over the cache alone. ``commit``: token,
confidence, commit rule. ``other operators``: embeddings, cache writes, bookkeeping."""
_MARK = "echo_pl: "


def _marked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + part):
            return function(*args, **kwargs)

    return marked


@contextmanager
def _all_marked(vlm: VLM) -> Iterator[None]:
    places: list[tuple[Any, str, str]] = [
        (TextDecoder, "_project", "projections"),
        (TextDecoder, "_add_attended", "projections"),
        (text_decoder, "attend_groups", "attention"),
        (text_decoder, "attend_two_blocks", "attention"),
        (TextDecoder, "_add_feed_forward", "feed-forward"),
        (TextDecoder, "head", "head"),
        (forwards, "commit", "commit"),
        (autoregressive, "predict", "commit"),
    ]
    patches = [patch.object(owner, name, _marked(part, getattr(owner, name))) for owner, name, part in places]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def breakdown(vlm: VLM, run: Callable[[], DecodeResult]) -> dict[str, float]:
    """Milliseconds per forward of every part in :data:`PARTS`, and of the whole (``profiled``), on a CPU.

    Raises:
        ValueError: the model does not decode in one piece, or not on a CPU.
    """
    if vlm.text_decoder() is None or vlm.device.type != "cpu":
        raise ValueError("the breakdown is made for a frozen, dense model on a CPU; on a GPU use Nsight or torch.profiler")
    with _all_marked(vlm), profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        result = run()
        whole = time.perf_counter() - started
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or []:
        if event.name.startswith(_MARK):
            continue
        parent = event.cpu_parent
        if parent is None or parent.name.startswith(_MARK):  # an operator that no other operator called
            part = "other operators" if parent is None else parent.name.removeprefix(_MARK)
            seconds[part] += event.cpu_time_total / 1e6
    seconds["Python"] = whole - sum(seconds.values())
    per_forward = 1e3 / result.forwards
    return {part: seconds[part] * per_forward for part in PARTS} | {"profiled": whole * per_forward}
