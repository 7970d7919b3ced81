"""Rows of the comparison (a decoding method and its scores, the schema of ``summary.json``) and their table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from echo_pl.pages.tables import Column, Table, number, text

MethodName = Literal["ar", "base", "base_one_step", "distilled"]
KVCache = Literal["vanilla", "fused"]
Row = dict[str, Any]

SCORES = (
    "finding_f1",
    "valid_sentences",
    "valid_reports",
    "rouge_l",
    "duplicate_word_rate",
    "repetition_rate",
    "stopped",
    "looped",
    "nfe",
    "tpf",
    "tpf_published",
    "forwards_per_block",
    "tps",
    "prefill_seconds",
    "seconds_per_report",
)
ROW_KEYS = ("method", "objective", "block_size", "kv_cache", "batch_size", "studies", *SCORES)

_NAMES = {"ar": "AR", "base": "base, multi-step", "base_one_step": "base, one step", "distilled": "distilled, one step"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Decoding method of a row."""

    method: MethodName
    objective: str | None = None
    """Distillation objective of ``distilled`` (``dcd``, ``ce``, ...)."""
    block_size: int = 1
    """1 for ``ar``."""
    kv_cache: KVCache | None = None
    """Way of a finished block into the cache; ``None`` without blocks, or without a block cache."""
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"method must be one of {get_args(MethodName)}, got {self.method!r}")
        if self.kv_cache not in (None, *get_args(KVCache)):
            raise ValueError(f"kv_cache must be None or one of {get_args(KVCache)}, got {self.kv_cache!r}")
        if (self.objective is not None) != (self.method == "distilled"):
            raise ValueError(f"objective belongs to method 'distilled', got {self.objective!r} for {self.method!r}")
        if self.block_size < 1 or self.batch_size < 1:
            raise ValueError(f"sizes must be positive, got block {self.block_size} and batch {self.batch_size}")

    @property
    def label(self) -> str:
        """Name in tables and plots, e.g. ``distilled (dcd), L=8, fused, batch 1``."""
        parts = [method_label({"method": self.method, "objective": self.objective})]
        if self.method != "ar":
            parts.append(f"L={self.block_size}")
        if self.kv_cache is not None:
            parts.append(self.kv_cache)
        return ", ".join([*parts, f"batch {self.batch_size}"])

    @property
    def slug(self) -> str:
        """Label with the characters of a metric name, e.g. ``distilled-dcd-L8-fused-b1``."""
        size = None if self.method == "ar" else f"L{self.block_size}"
        return "-".join(part for part in (self.method, self.objective, size, self.kv_cache, f"b{self.batch_size}") if part)


def make_row(setting: Setting, scores: Mapping[str, float]) -> Row:
    """Row with exactly :data:`ROW_KEYS`; forwards per block of AR and scores without a judge are ``None``."""
    token_by_token = {"forwards_per_block": None} if setting.method == "ar" else {}
    return asdict(setting) | {"studies": int(scores["studies"])} | {name: scores.get(name) for name in SCORES} | token_by_token


def method_label(row: Mapping[str, Any]) -> str:
    """Name of the method of a row.

    >>> method_label({"method": "distilled", "objective": "dcd"})
    'distilled (dcd), one step'
    """
    name = _NAMES[row["method"]]
    return name.replace(",", f" ({row['objective']}),", 1) if row["objective"] else name


def speed_over_ar(rows: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Tokens per second of each row as a multiple of the AR row *at the same batch size*; ``None`` without one."""
    rows = list(rows)
    baseline = {row["batch_size"]: row["tps"] for row in rows if row["method"] == "ar"}
    return [row["tps"] / baseline[row["batch_size"]] if baseline.get(row["batch_size"]) else None for row in rows]


COLUMNS = (
    Column("method", method_label, "decoding method", left=True),
    Column("L", text("block_size"), "block size"),
    Column("KV cache", text("kv_cache"), "way of a finished block into the cache", left=True),
    Column("batch", text("batch_size"), "studies decoded at once"),
    Column(
        "finding F1",
        number("finding_f1", 3),
        "micro F1 of the findings, side or lobe counted but not size, read back from the text",
    ),
    Column("valid sent.", number("valid_sentences", 3), "share of sentences that the corpus can contain"),
    Column("valid rep.", number("valid_reports", 3), "share of reports without an invalid part"),
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
