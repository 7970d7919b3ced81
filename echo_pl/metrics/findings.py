"""Scores of findings: hallucinated and omitted findings, precision, recall and F1; and the share of regions in a report.

A labeller reads the findings of a text. Findings that it cannot read are not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from echo_pl.metrics.counted import PairMetric, PairRatio, count_rows, mean_over_reports, paired, ratio
from echo_pl.metrics.words import split_words

POSITIVE = "positive"
ABSENT = "absent"
STATUSES = (POSITIVE, "uncertain", "negative", ABSENT)


class ConceptLabel(Protocol):
    """Label of one concept in a text."""

    @property
    def status(self) -> str | Enum:
        """One of :data:`STATUSES`, or a member of an enumeration with that value."""


TextLabeller = Callable[[str], Mapping[str, ConceptLabel]]
"""Labeller of the concepts in any text; a concept that is not mentioned is absent, or not in the result."""


def plain_status(label: ConceptLabel) -> str:
    """The status as a word."""
    return str(label.status.value if isinstance(label.status, Enum) else label.status)


def positive_findings(labels: Mapping[str, ConceptLabel]) -> frozenset[str]:
    """Concepts that are stated as present, without uncertain and negated ones.

    Raises:
        ValueError: an invalid status, which would otherwise count as an absent concept.
    """
    values = {concept: plain_status(label) for concept, label in labels.items()}
    invalid = sorted({value for value in values.values() if value not in STATUSES})
    if invalid:
        raise ValueError(f"the status of a finding must be one of {STATUSES}, got {invalid}")
    return frozenset(concept for concept, value in values.items() if value == POSITIVE)


def precision_recall_f1(hits: Tensor, extra: Tensor, missed: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 from counts; all three are ``right`` if there is nothing to find and nothing is found."""
    nothing = (hits + extra + missed == 0).to(hits.dtype) * right
    precision = ratio(hits, hits + extra) + nothing
    recall = ratio(hits, hits + missed) + nothing
    return precision, recall, ratio(2 * hits, 2 * hits + extra + missed) + nothing


class FindingScores(PairMetric):
    """Positive findings of predictions against those of references.

    ``findings_{precision,recall,f1}_micro`` count over all concepts; ``_macro`` are means over the concepts that any of the
    reports or references states. ``hallucinated_findings`` and ``omitted_findings`` are numbers per report (so lower is better
    for these two). The side of a finding is not compared.

    If there is nothing to find and nothing is found, precision, recall and F1 are 1 if any prediction has a word, and 0 if all
    predictions are empty. So an empty report alone has 0, also for a study without findings. Among other reports it adds no finding
    and changes nothing: read the scores beside the share of empty reports.

    Args:
        label: labeller of a text.
        concepts: all concepts of the labeller.
        name: name and version of the labeller.

    Raises:
        ValueError: on update, if the labeller returns a concept that is not in ``concepts``.
    """

    names = (
        "findings_f1_micro",
        "findings_precision_micro",
        "findings_recall_micro",
        "findings_f1_macro",
        "findings_precision_macro",
        "findings_recall_macro",
        "hallucinated_findings",
        "omitted_findings",
    )
    direction = True

    def __init__(self, label: TextLabeller, concepts: Sequence[str], name: str) -> None:
        super().__init__(3 * len(concepts) + 2)
        self.label = label
        self.places = {concept: place for place, concept in enumerate(concepts)}
        # The number of concepts is no part of the variant: a judge has the concepts of the scored texts.
        self.variant = f"findings|positive only|uncertain:not positive|side:ignored|empty report alone:0|labeller:{name}|v2"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Hits, extra and missed, each by concept; then 1 for a prediction without a word or number; then 1."""
        pairs = list(paired(predictions, references))
        counts = torch.zeros(len(pairs), 3, len(self.places), dtype=torch.float64)
        for row, (prediction, reference) in zip(counts, pairs, strict=True):
            ours, theirs = self.found(prediction), self.found(reference)
            for kind, concepts in enumerate((ours & theirs, ours - theirs, theirs - ours)):
                for concept in concepts:
                    row[kind, self.places[concept]] = 1.0
        ends = [(float(not split_words(prediction)), 1.0) for prediction, _ in pairs]
        return torch.cat([counts.flatten(1), count_rows(ends, 2)], 1)

    def better(self, name: str) -> bool | None:
        """Return False for the numbers of wrong findings."""
        return not name.endswith("_findings")

    def found(self, text: str) -> frozenset[str]:
        """Positive findings of a text."""
        findings = positive_findings(self.label(text))
        unexpected = findings - self.places.keys()
        if unexpected:
            raise ValueError(f"the labeller returned concepts that are not in its list: {sorted(unexpected)}")
        return findings

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """See the class."""
        concepts = len(self.places)
        counts = sums[..., : 3 * concepts].unflatten(-1, (3, concepts))
        hits, extra, missed = counts.unbind(-2)
        empty, reports = sums[..., -2], sums[..., -1]
        right = (empty < reports).to(sums.dtype)
        micro = precision_recall_f1(hits.sum(-1), extra.sum(-1), missed.sum(-1), right)
        macro = precision_recall_f1(hits, extra, missed, right[..., None])
        seen = (hits + extra + missed > 0).to(sums.dtype)
        nothing = (seen.sum(-1) == 0).to(sums.dtype) * right
        precision, recall, f1 = (ratio((own * seen).sum(-1), seen.sum(-1)) + nothing for own in macro)
        values = (micro[2], micro[0], micro[1], f1, precision, recall)
        rates = (ratio(extra.sum(-1), reports), ratio(missed.sum(-1), reports))
        return dict(zip(self.names, (*values, *rates), strict=True))


def region_completeness(regions: Callable[[str], Collection[str]], known: Sequence[str], name: str) -> PairRatio:
    """Share of the regions that a report mentions, with findings or their absence; the reference is not used.

    Args:
        regions: reader of the regions of a text.
        known: all regions.
        name: name and version of the reader.
    """

    def share(prediction: str, reference: str) -> float:
        return len(set(regions(prediction)) & set(known)) / len(known)

    return mean_over_reports(
        "region_completeness", share, f"region_completeness|{len(known)} regions|reader:{name}|mean:reports|v1", True
    )
