"""Rows of a training benchmark as tables, and what they say in words. Knows rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from echo_pl.bench.table import aligned, markdown

Row = dict[str, Any]


def _number(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "–" if row[name] is None else f"{row[name]:.{digits}f}"


_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("model", lambda r: r["model"]),
    ("context", lambda r: str(r["context"])),
    ("variant", lambda r: r["variant"]),
    ("tokens", lambda r: str(r["tokens"])),
    ("ms/step", lambda r: f"{1e3 * r['seconds']:.0f}"),
    ("spread", lambda r: f"{1e3 * r['seconds_spread']:.0f}"),
    ("supervised", lambda r: str(r["supervised_tokens"])),
    ("supervised/s", _number("supervised_tokens_per_second", 0)),
    ("x full dup., step", _number("speedup_over_full_duplication", 2)),
    ("x full dup., supervised/s", _number("supervised_speedup_over_full_duplication", 2)),
    ("peak MB", _number("peak_memory_mb", 0)),
    ("peak kB/supervised", _number("peak_memory_kb_per_supervised_token", 0)),
]
LEGEND = (
    "A step is forward, backward, clipping and AdamW of one batch, the language model on text alone; rad_pixels has a frozen "
    "vision tower in every step, rad_stored_features has its stored output. tokens: of one study's sequence. supervised: positions "
    "with a loss, of the whole batch. x full dup.: over duplicating the context with the response under a dense mask. peak MB: "
    "weights, gradients, optimizer states and activations of this variant alone, above what the process had before, with "
    "what the C library keeps in gaps; kB/supervised: divided by the positions with a loss."
)
ARITHMETIC_LEGEND = (
    "What RAD saves over full duplication by counting operations: of attention alone and of the language model as a whole, with "
    "masks counted as dense and as the pairs that they allow; the last column compares a dense mask on the duplicated sequence "
    "with split attention on RAD's. No operation of the head is counted."
)
_ARITHMETIC = (
    "attention_dense",
    "attention_sparse",
    "total_dense",
    "total_sparse",
    "total_sparse_over_dense_duplication",
)


def text_table(rows: Iterable[Row]) -> str:
    """For a terminal."""
    return aligned([[cell(row) for _, cell in _COLUMNS] for row in rows], [name for name, _ in _COLUMNS])


def markdown_table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    return markdown([[cell(row) for _, cell in _COLUMNS] for row in rows], [name for name, _ in _COLUMNS])


def arithmetic_table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    body = [[row["model"], str(row["context"]), *(f"{row[name]:.2f}" for name in _ARITHMETIC)] for row in rows]
    return markdown(body, ["model", "context", *(name.replace("_", " ") for name in _ARITHMETIC)])
