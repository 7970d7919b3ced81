"""Rows as a table: aligned for a terminal, or as Markdown. Knows rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from echo_pl.evaluation.rows import Row, method_label, speed_over_ar

MISSING = "–"


class Column(NamedTuple):
    """A heading, what it means, and how a row's value is written."""

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    left: bool = False


def _number(name: str, digits: int, scale: float = 1.0) -> Callable[[Row], str]:
    return lambda row: MISSING if row[name] is None else f"{row[name] * scale:.{digits}f}"


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: MISSING if row[name] is None else str(row[name])


COLUMNS = (
    Column("method", "who decoded", method_label, left=True),
    Column("L", "block size", _text("block_size")),
    Column("KV cache", "how a finished block gets into the cache", _text("kv_cache"), left=True),
    Column("batch", "studies decoded at once", _text("batch_size")),
    Column(
        "finding F1",
        "micro F1 of the findings, side or lobe counted but not size, read back from the text",
        _number("finding_f1", 3),
    ),
    Column("valid sent.", "share of sentences that could have been written", _number("valid_sentences", 3)),
    Column("valid rep.", "share of reports that are wholly valid", _number("valid_reports", 3)),
    Column("ROUGE-L", "F-measure against the reference", _number("rouge_l", 3)),
    Column("dup. words", "share of words that repeat the word before, in one sentence", _number("duplicate_word_rate", 4)),
    Column("stopped", "share of reports that ended with eos", _number("stopped", 3)),
    Column("nfe", "forwards after prefill per report, KV writes too", _number("nfe", 1)),
    Column("tpf", "tokens before eos per forward", _number("tpf", 2)),
    Column(
        "tpf pub.",
        "tpf as published: no KV writes, tokens after eos too",
        _number("tpf_published", 2),
    ),
    Column(
        "fwd/block", "forwards per block, KV writes left out: 1 at one step, up to 2 with a gate", _number("forwards_per_block", 2)
    ),
    Column("tps", "tokens before eos per second after prefill", _number("tps", 0)),
    Column("× AR", "tps over AR at the same batch size", _number("over_ar", 2)),
    Column("prefill ms", "milliseconds of prefill per report", _number("prefill_seconds", 1, 1000)),
    Column("ms/report", "milliseconds per report, prefill included", _number("seconds_per_report", 1, 1000)),
)


def cells(rows: Iterable[Row]) -> list[list[str]]:
    """The body of the table as strings, one list per row, in the order of :data:`COLUMNS`."""
    rows = list(rows)
    extended: list[dict[str, Any]] = [row | {"over_ar": ratio} for row, ratio in zip(rows, speed_over_ar(rows), strict=True)]
    return [[column.cell(row) for column in COLUMNS] for row in extended]


def text_table(rows: Iterable[Row]) -> str:
    """The table for a terminal: columns padded with spaces, a rule under the headings."""
    body = cells(rows)
    widths = [max(len(line[i]) for line in [_headings(), *body]) for i in range(len(COLUMNS))]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([_aligned(_headings(), widths), rule, *(_aligned(line, widths) for line in body)])


def markdown_table(rows: Iterable[Row]) -> str:
    """The table in Markdown, numbers to the right."""
    rule = [":--" if column.left else "--:" for column in COLUMNS]
    lines = [_headings(), rule, *([cell.replace("|", "\\|") for cell in line] for line in cells(rows))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def legend() -> str:
    """One sentence per heading that is not plain."""
    return "; ".join(f"{column.heading}: {column.meaning}" for column in COLUMNS[4:]) + "."


def small_print(signatures: Mapping[str, str]) -> str:
    """Which variant of every score the table shows."""
    return f"Score variants: {'; '.join(signatures.values())}."


def _headings() -> list[str]:
    return [column.heading for column in COLUMNS]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(width) if column.left else cell.rjust(width) for cell, width, column in zip(line, widths, COLUMNS, strict=True)
    )
    return "  ".join(padded).rstrip()
