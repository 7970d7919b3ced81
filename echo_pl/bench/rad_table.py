"""Tables of the training benchmark, and their legends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from echo_pl.pages.tables import Column, Table, number, text

Row = dict[str, Any]


_COLUMNS = (
    Column("model", text("model"), left=True),
    Column("context", text("context")),
    Column("variant", text("variant"), left=True),
    Column("tokens", text("tokens")),
    Column("ms/step", number("seconds", 0, scale=1e3)),
    Column("spread", number("seconds_spread", 0, scale=1e3)),
    Column("supervised", text("supervised_tokens")),
    Column("supervised/s", number("supervised_tokens_per_second", 0)),
    Column("x full dup., step", number("speedup_over_full_duplication", 2)),
    Column("x full dup., supervised/s", number("supervised_speedup_over_full_duplication", 2)),
    Column("peak MB", number("peak_memory_mb", 0)),
    Column("peak kB/supervised", number("peak_memory_kb_per_supervised_token", 0)),
)
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


def training_table(rows: Iterable[Row]) -> Table:
    """One line for each model, context and variant."""
    return Table.from_records(_COLUMNS, rows)


def arithmetic_table(rows: Iterable[Row]) -> Table:
    """One line for each model and context."""
    body = [[row["model"], str(row["context"]), *(f"{row[name]:.2f}" for name in _ARITHMETIC)] for row in rows]
    return Table(["model", "context", *(name.replace("_", " ") for name in _ARITHMETIC)], body)
