"""A stochastic grammar of reports: from the findings of a study to its normalized and raw text.

Every finding has several wordings, so
that p(report | image) has many modes; that is what makes decoding a block in one step hard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from echo_pl.reports.regions import REGION_NAMES, REGIONS
from echo_pl.structs import ReportText

Wording = Literal["peaked", "even"]
PEAKED = (0.5, 0.2, 0.15, 0.1, 0.05)
"""Shares of the first, second ... wording: what a normalizer's habits look like."""

NORMAL_IMPRESSIONS = (
    "no acute cardiopulmonary process.",
    "normal chest.",
    "no acute abnormality is seen.",
    "there is no evidence of acute disease.",
    "unremarkable study.",
)
POSITIVE_IMPRESSIONS = (
    "{list}.",
    "findings of {list}.",
    "there is {list}.",
    "evidence of {list}.",
    "study shows {list}.",
)
RAW_NORMAL = ("no acute findings.", "lungs clear, heart normal.", "unremarkable.")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding of one region and its wordings. ``{size}`` is replaced by the size, if it has one."""

    name: str
    """The label, side or lobe included, size not."""
    region: str
    wordings: tuple[str, ...]
    """Whole sentences, the most frequent first."""
    summaries: tuple[str, ...]
    """Noun phrases for the impression, the most frequent first."""
    brief: tuple[str, ...]
    """Sentences of the raw version."""
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.region not in REGION_NAMES:
            raise ValueError(f"region of finding {self.name} must be one of {REGION_NAMES}, got {self.region!r}")
        for phrase in self.summaries:
            if " and " in phrase or "," in phrase:
                raise ValueError(f"a summary of {self.name} holds a list separator: {phrase!r}")
        for sentence in (*self.wordings, *self.brief):
            if sentence.count(".") != 1 or not sentence.endswith("."):
                raise ValueError(f"a wording of {self.name} must be one sentence with one full stop: {sentence!r}")


@dataclass(frozen=True, kw_only=True, order=True)
class Observation:
    """A finding seen in one study."""

    name: str
    size: str = ""

    @property
    def detailed(self) -> str:
        """The label with its size: ``effusion_left:small``."""
        return f"{self.name}:{self.size}" if self.size else self.name


def join_phrases(phrases: Sequence[str]) -> str:
    """Join noun phrases into an English list.

    >>> join_phrases(["a", "b", "c"])
    'a, b and c'
    """
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


class ReportGrammar:
    """Writes reports.

    Args:
        findings: The table of findings; those of one region are written in the order of this table.
        wording: ``peaked`` (unequal shares of the wordings, :data:`PEAKED`) or ``even``.
        max_findings: Most findings in one study, which bounds the length of a report.
    """

    def __init__(self, findings: Iterable[Finding], *, wording: Wording = "peaked", max_findings: int = 3) -> None:
        if wording not in ("peaked", "even"):
            raise ValueError(f"wording must be 'peaked' or 'even', got {wording!r}")
        if max_findings < 1:
            raise ValueError(f"max_findings must be at least 1, got {max_findings}")
        by_region = sorted(findings, key=lambda finding: REGION_NAMES.index(finding.region))
        self.findings = {finding.name: finding for finding in by_region}
        """In the order in which a report names them."""
        self.wording = wording
        self.max_findings = max_findings
        self.order = {name: place for place, name in enumerate(self.findings)}

    @property
    def digest(self) -> str:
        """Short hash of everything the grammar can say and how often."""
        tables = (
            [asdict(finding) for finding in self.findings.values()],
            [{"name": region.name, "title": region.title, "normal": region.normal} for region in REGIONS],
            (NORMAL_IMPRESSIONS, POSITIVE_IMPRESSIONS, RAW_NORMAL, PEAKED, self.wording, self.max_findings),
        )
        return hashlib.sha256(repr(tables).encode()).hexdigest()[:12]

    def normalized(self, observations: Iterable[Observation], rng: np.random.Generator) -> ReportText:
        """Write every region in order, each by its findings or by an explicit negative, then the impression."""
        seen = self._sorted(observations)
        sentences: list[str] = []
        for region in REGIONS:
            here = [o for o in seen if self.findings[o.name].region == region.name]
            sentences += [self._pick(self.findings[o.name].wordings, rng).format(size=o.size) for o in here]
            if not here:
                sentences.append(self._pick(region.normal, rng))
        return ReportText(findings=" ".join(sentences), impression=self._impression(seen, rng))

    def raw(self, observations: Iterable[Observation], rng: np.random.Generator) -> ReportText:
        """Write by exception: positive findings only, short, in any order, then the impression."""
        seen = self._sorted(observations)
        shuffled = [seen[i] for i in rng.permutation(len(seen))]
        sentences = [self._pick(self.findings[o.name].brief, rng).format(size=o.size) for o in shuffled]
        findings = " ".join(sentences) if sentences else self._pick(RAW_NORMAL, rng)
        return ReportText(findings=findings, impression=self._impression(seen, rng))

    def _impression(self, seen: Sequence[Observation], rng: np.random.Generator) -> str:
        if not seen:
            return self._pick(NORMAL_IMPRESSIONS, rng)
        phrases = [self._pick(self.findings[o.name].summaries, rng).format(size=o.size) for o in seen]
        return self._pick(POSITIVE_IMPRESSIONS, rng).replace("{list}", join_phrases(phrases))

    def _sorted(self, observations: Iterable[Observation]) -> list[Observation]:
        seen = sorted(observations, key=lambda o: self.order[o.name])
        if len(seen) > self.max_findings:
            raise ValueError(f"a study has at most {self.max_findings} findings, got {len(seen)}")
        return seen

    def _pick(self, wordings: Sequence[str], rng: np.random.Generator) -> str:
        if self.wording == "even":
            return wordings[int(rng.integers(len(wordings)))]
        shares = np.cumsum(PEAKED[: len(wordings)])
        return wordings[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
