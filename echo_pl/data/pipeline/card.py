"""Dataset card: contents of a corpus, its sources, and what was left out; as ``card.json`` and as ``README.md``.

It contains counts and names, but no words of a report, no time and no paths, so that equal corpora have equal cards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from echo_pl.data.pipeline.entries import KINDS, Kind, LeftOut, Listing
from echo_pl.data.pipeline.plan import Plan
from echo_pl.data.pipeline.shards import WrittenShard
from echo_pl.data.pipeline.splitting import Arrangement
from echo_pl.data.readers.reader import CorpusReader
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
    """Dataset card."""

    record: Mapping[str, Any]

    def left_out(self, kind: Kind) -> int:
        """Return the number of items that were left out for this kind of reason."""
        return sum(self.record["left_out"][kind].values())

    def as_markdown(self) -> str:
        """Return the card for people."""
        return _markdown(self.record)


def make_card(
    *,
    index: CorpusIndex,
    plan: Plan,
    reader: CorpusReader,
    official_splits: bool,
    listing: Listing,
    arrangement: Arrangement,
    shards: Iterable[WrittenShard],
    left_out: Iterable[LeftOut],
) -> Card:
    """Make the card of a corpus from its index and from the results of the steps."""
    sums: dict[str, Counter[str]] = {}
    splits: dict[str, Counter[str]] = {}
    for written in shards:
        for name, counts in written.counts.items():
            sums.setdefault(name, Counter()).update(counts)
        if written.shard is not None:
            images = written.counts["images"]["images"]
            numbers = {"studies": written.shard.samples, "images": images, "shards": 1, "bytes": written.shard.bytes}
            splits.setdefault(written.split, Counter()).update(numbers)
    reports = sums["studies"]["reports"]
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for one in left_out:
        reasons[one.kind][f"{one.step}: {one.reason}"] += 1
    imputed = sums.get("imputed", Counter())
    return Card(
        record={
            "corpus": index.corpus,
            "fingerprint": index.fingerprint,
            "source_listing": listing.digest,
            "licence": reader.licence,
            "citation": reader.citation,
            "entries_in_source": listing.entries,
            "splits": {split: {**numbers, "patients": arrangement.patients.get(split, 0)} for split, numbers in splits.items()},
            "split_rule": "official" if official_splits else "patient",
            "patients_in_several_splits": arrangement.shared_patients,
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
    """Counts in descending order, equal ones by name."""
    return dict(sorted((counts or {}).items(), key=lambda item: (-item[1], item[0])))


def _markdown(card: Mapping[str, Any]) -> str:
    splits = [
        [split, of["studies"], of["patients"], of["images"], of["shards"], f"{of['bytes'] / 1e6:.1f}"]
        for split, of in card["splits"].items()
    ]
    split_rule = "the dataset's own" if card["split_rule"] == "official" else f"by patient, seed {card['settings']['seed']}"
    paragraphs = [
        f"# {card['corpus']}: chest X-ray studies with normalized reports",
        f"Made by echo_pl. Fingerprint `{card['fingerprint']}`; of a source with listing `{card['source_listing']}`, "
        f"{card['entries_in_source']} entries.",
        f"Licence of the source: {card['licence']}  \nCite: {card['citation']}",
        "## Splits",
        _table(["split", "studies", "patients", "images", "shards", "MB"], splits),
        "Patients are counted before images were opened. "
        f"In more than one split: {card['patients_in_several_splits']}. Splits: {split_rule}.",
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
    return "\n\n".join(paragraphs) + "\n"


def _listed(counts: Mapping[str, int], most: int | None = None) -> str:
    shown = list(counts.items())[:most]
    more = len(counts) - len(shown)
    return (", ".join(f"{name} {count}" for name, count in shown) or "none") + (f" and {more} more" if more else "")


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return Table(head, [[str(cell) for cell in row] for row in rows]).markdown()
