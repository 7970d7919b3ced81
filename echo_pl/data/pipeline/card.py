"""The dataset card: what is in a corpus, where it comes from, what was left out. ``card.json`` for programs, ``README.md`` for
people.

Knows counts and names; has no words of a report, no time and no place of a machine, so that equal corpora have equal cards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from echo_pl.data.pipeline.entries import KINDS, LeftOut
from echo_pl.data.pipeline.plan import Plan
from echo_pl.data.pipeline.sharding import WrittenShard
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.pages.tables import Table
from echo_pl.reports.regions import REGION_NAMES

_MEANING = {
    "reject": "cannot be used",
    "review": "its normalized report failed a check; see review.jsonl",
    "filtered": "not wanted, as the settings say",
    "image": "cannot be used; its study stays with its other images",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """A dataset card."""

    record: Mapping[str, Any]

    @property
    def rejected(self) -> int:
        """Entries that could not be used."""
        return sum(self.record["left_out"]["reject"].values())

    @property
    def lost_images(self) -> int:
        """Images that could not be used, of studies that stay with their others."""
        return sum(self.record["left_out"]["image"].values())

    @property
    def reviewed(self) -> int:
        """Reports that are left to a person."""
        return sum(self.record["left_out"]["review"].values())

    @property
    def filtered(self) -> int:
        """Entries that were not wanted."""
        return sum(self.record["left_out"]["filtered"].values())

    def as_markdown(self) -> str:
        """The card for people."""
        return _markdown(self.record)


def make_card(
    *,
    index: CorpusIndex,
    plan: Plan,
    official_splits: bool,
    licence: str,
    citation: str,
    listing_digest: str,
    entries: int,
    patients: Mapping[str, int],
    shared_patients: int,
    shards: Iterable[WrittenShard],
    left_out: Iterable[LeftOut],
) -> Card:
    """Put a card together.

    Args:
        index: of the corpus.
        plan: all settings.
        official_splits: whether splits are the dataset's own.
        licence: of the source.
        citation: of the source.
        listing_digest: of the source as it was read.
        entries: of the source.
        patients: by split, before images were opened.
        shared_patients: in more than one split.
        shards: what stands in them.
        left_out: all that stands in none.
    """
    sums: dict[str, Counter[str]] = {}
    splits: dict[str, dict[str, int]] = {}
    for written in shards:
        for name, counts in written.counts.items():
            sums.setdefault(name, Counter()).update(counts)
        if written.shard is not None:
            of = splits.setdefault(written.split, {"studies": 0, "images": 0, "shards": 0, "bytes": 0})
            of["studies"] += written.shard.samples
            of["images"] += written.counts["images"]["images"]
            of["shards"] += 1
            of["bytes"] += written.shard.bytes
    reports = sums["studies"]["reports"]
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for one in left_out:
        reasons[one.kind][f"{one.step}: {one.reason}"] += 1
    imputed = sums.get("imputed", Counter())
    return Card(
        record={
            "corpus": index.corpus,
            "fingerprint": index.fingerprint,
            "source_listing": listing_digest,
            "licence": licence,
            "citation": citation,
            "entries_in_source": entries,
            "splits": {split: {**of, "patients": patients.get(split, 0)} for split, of in splits.items()},
            "split_rule": "official" if official_splits else "patient",
            "patients_in_several_splits": shared_patients,
            "reports": reports,
            "general_samples": sums["studies"]["general"],
            "languages": _sorted(sums.get("languages")),
            "imputed_share": {name: round(imputed[name] / reports, 4) if reports else 0.0 for name in REGION_NAMES},
            "labels": _sorted(sums.get("labels")),
            "dropped_from_reports": _sorted(sums.get("dropped")),
            "redacted_from_reports": _sorted(sums.get("redacted")),
            "notes": _sorted(sums.get("notes")),
            "left_out": {kind: _sorted(reasons[kind]) for kind in KINDS},
            "settings": dict(plan),
        }
    )


def _sorted(counts: Mapping[str, int] | None) -> dict[str, int]:
    """Most frequent first, equals by name."""
    return dict(sorted((counts or {}).items(), key=lambda item: (-item[1], item[0])))


def _markdown(card: Mapping[str, Any]) -> str:
    splits = [
        [split, of["studies"], of["patients"], of["images"], of["shards"], f"{of['bytes'] / 1e6:.1f}"]
        for split, of in card["splits"].items()
    ]
    parts = [
        f"# {card['corpus']}: chest X-ray studies with normalized reports",
        f"Made by echo_pl. Fingerprint `{card['fingerprint']}`; of a source with listing `{card['source_listing']}`, "
        f"{card['entries_in_source']} entries.",
        f"Licence of the source: {card['licence']}  \nCite: {card['citation']}",
        "## Splits",
        _table(["split", "studies", "patients", "images", "shards", "MB"], splits),
        "Patients are counted before images were opened. "
        f"In more than one split: {card['patients_in_several_splits']}. Splits: {_split_rule(card)}.",
        f"Reports: {card['reports']}; general image-text samples in the training split: {card['general_samples']}. "
        f"Languages: {_listed(card['languages'])}.",
        "## What was written in",
        "Share of the reports whose original does not mention a region, so that its sentence is imputed:",
        _table(["region", "imputed"], [[name, f"{100 * share:.1f} %"] for name, share in card["imputed_share"].items()]),
        f"Left out of reports: {_listed(card['dropped_from_reports'])}. Redacted: {_listed(card['redacted_from_reports'])}. "
        f"Notes: {_listed(card['notes'])}.",
        "## What was left out",
        *[f"**{kind}** ({_MEANING[kind]}): {_listed(card['left_out'][kind])}" for kind in KINDS],
        "## Labels",
        _listed(card["labels"], most=30),
        "## Settings",
        _table(["setting", "value"], [[name, f"`{value}`"] for name, value in card["settings"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _split_rule(card: Mapping[str, Any]) -> str:
    return "the dataset's own" if card["split_rule"] == "official" else f"by patient, seed {card['settings']['seed']}"


def _listed(counts: Mapping[str, int], most: int | None = None) -> str:
    shown = list(counts.items())[:most]
    more = len(counts) - len(shown)
    return (", ".join(f"{name} {count}" for name, count in shown) or "none") + (f" and {more} more" if more else "")


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return Table(head, [[str(cell) for cell in row] for row in rows]).markdown()
