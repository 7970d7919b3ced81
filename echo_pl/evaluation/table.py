"""Rows of the comparison as a table. Its columns, their legend and the variants of the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echo_pl.evaluation.rows import Row, method_label, speed_over_ar
from echo_pl.pages.tables import Column, Table, number, text

COLUMNS = (
    Column("method", method_label, "who decoded", left=True),
    Column("L", text("block_size"), "block size"),
    Column("KV cache", text("kv_cache"), "how a finished block gets into the cache", left=True),
    Column("batch", text("batch_size"), "studies decoded at once"),
    Column(
        "finding F1",
        number("finding_f1", 3),
        "micro F1 of the findings, side or lobe counted but not size, read back from the text",
    ),
    Column("valid sent.", number("valid_sentences", 3), "share of sentences that could have been written"),
    Column("valid rep.", number("valid_reports", 3), "share of reports that are wholly valid"),
    Column("ROUGE-L", number("rouge_l", 3), "F-measure against the reference"),
    Column("dup. words", number("duplicate_word_rate", 4), "share of words that repeat the word before, in one sentence"),
    Column("stopped", number("stopped", 3), "share of reports that ended with eos"),
    Column("nfe", number("nfe", 1), "forwards after prefill per report, KV writes too"),
    Column("tpf", number("tpf", 2), "tokens before eos per forward"),
    Column("tpf pub.", number("tpf_published", 2), "tpf as published: no KV writes, tokens after eos too"),
    Column(
        "fwd/block", number("forwards_per_block", 2), "forwards per block, KV writes left out: 1 at one step, up to 2 with a gate"
    ),
    Column("tps", number("tps", 0), "tokens before eos per second after prefill"),
    Column("× AR", number("over_ar", 2), "tps over AR at the same batch size"),
    Column("prefill ms", number("prefill_seconds", 1, scale=1000), "milliseconds of prefill per report"),
    Column("ms/report", number("seconds_per_report", 1, scale=1000), "milliseconds per report, prefill included"),
)


def comparison_table(rows: Iterable[Row]) -> Table:
    """One line for each row of the comparison, with its speed over autoregressive decoding (AR)."""
    rows = list(rows)
    ratios = speed_over_ar(rows)
    return Table.from_records(COLUMNS, [row | {"over_ar": ratio} for row, ratio in zip(rows, ratios, strict=True)])


def legend() -> str:
    """Meaning of every heading that does not explain itself."""
    return "; ".join(f"{column.heading}: {column.meaning}" for column in COLUMNS[4:]) + "."


def score_variants(signatures: Mapping[str, str]) -> str:
    """Sentence that lists the variant of every score in a table."""
    return f"Score variants: {'; '.join(signatures.values())}."
