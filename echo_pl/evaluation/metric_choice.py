"""Which metrics an evaluation computes: all that language and machine allow, and for the others a line that says why not.

Knows how metrics are made, and nothing of files of predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.evaluation.radeval_backend import Absent
from echo_pl.evaluation.text_models import load_language_model, load_text_encoder
from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.cider import Cider
from echo_pl.metrics.counted import PairMetric
from echo_pl.metrics.findings import ABSENT, FindingScores, LabelText, plain_status, positive_findings, region_completeness
from echo_pl.metrics.meteor import meteor_metric
from echo_pl.metrics.models import EmbeddingSimilarity, Perplexity
from echo_pl.metrics.rouge import rouge_metrics
from echo_pl.metrics.surface import non_word_rate, surface_metrics
from echo_pl.metrics.words import Words
from echo_pl.reports.report import ParsedReport, ReportJudge
from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class FindingsReader:
    """Whoever reads findings, and perhaps regions, out of texts."""

    name: str
    """With its version."""
    label: LabelText
    reads: Callable[[str], bool] | None = None
    """Whether it understands anything of a text, and be it that all is normal; None: that is what it labels."""
    regions: Callable[[str], Collection[str]] | None = None
    """The regions that a text says something of; None: it does not know."""
    region_names: tuple[str, ...] = ()

    def understands(self, text: str) -> bool:
        """Whether a text is one that it can read."""
        if self.reads is not None:
            return self.reads(text)
        return any(plain_status(label) != ABSENT for label in self.label(text).values())


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words of the training reports."""

    name: str
    words: Collection[str]


@dataclass(frozen=True, kw_only=True)
class MetricChoice:
    """What is to be scored with; None leaves a score out, with a line that says so."""

    words: Words
    with_wordnet: bool = False
    reader: FindingsReader | None = None
    vocabulary: Vocabulary | None = None
    language_model: Path | None = None
    embedding_model: Path | None = None
    device: str = "cpu"
    missing: dict[str, str] = field(default_factory=dict)
    """Why the reader is None, and the like, by figure; where the caller knows better."""

    def __post_init__(self) -> None:
        if self.embedding_model is not None and self.reader is None:
            raise ValueError(
                "an embedding similarity is never reported alone, as it hardly sees a negation: it needs the finding scores "
                "beside it, and there is nobody to read findings (--reader)"
            )


@dataclass(frozen=True)
class _JudgedFinding:
    status: str = "positive"


def judge_reader(judge: ReportJudge, name: str) -> FindingsReader:
    """A corpus's own judge as a reader: it knows its positive findings and nothing of regions."""

    def parse(text: str) -> ParsedReport:
        return judge.parse(ReportText(findings=text, impression=""))

    def label(text: str) -> dict[str, _JudgedFinding]:
        return {finding: _JudgedFinding() for finding in parse(text).findings}

    def reads(text: str) -> bool:
        return any(valid for _, valid in parse(text).sentences)

    return FindingsReader(name=name, label=label, reads=reads)


def build_metrics(choice: MetricChoice, cases: Iterable[Case], sections: Sections) -> tuple[list[PairMetric], list[Absent]]:
    """The metrics of texts, and what is absent.

    Args:
        choice: what there is to score with.
        cases: all that will be scored, of every run: the concepts are those that one of their texts has.
        sections: what of a report is scored.

    Raises:
        ValueError, FileNotFoundError: a model or WordNet was asked for and cannot be had.
    """
    words = choice.words
    metrics: list[PairMetric] = [
        *rouge_metrics(words),
        meteor_metric(words, with_wordnet=choice.with_wordnet),
        Bleu(words),
        Cider(words, clipped=False),
        Cider(words, clipped=True),
        *surface_metrics(words),
    ]
    absent: list[Absent] = []

    def leave_out(name: str, reason: str) -> None:
        absent.append(Absent(name=name, reason=choice.missing.get(name, reason)))

    if not choice.with_wordnet:
        leave_out("WordNet", "not asked for (--wordnet): METEOR matches exact words and stems, no synonyms")
    if choice.vocabulary is None:
        leave_out("non_word_rate", "no vocabulary of training reports (--vocabulary)")
    else:
        metrics.append(non_word_rate(words, choice.vocabulary.words, choice.vocabulary.name))
    _findings(choice.reader, cases, sections, metrics, leave_out)
    if choice.language_model is None:
        leave_out("perplexity", "no language model (--language-model)")
    else:
        model = load_language_model(choice.language_model, choice.device)
        metrics.append(Perplexity(model.score, f"{model.name}, {model.detail}"))
    if choice.embedding_model is None:
        leave_out("embedding similarity", "no sentence encoder (--embedding-model)")
    elif not any(isinstance(metric, FindingScores) for metric in metrics):
        leave_out("embedding similarity", "it is never reported alone, and there are no finding scores")
    else:
        encoder = load_text_encoder(choice.embedding_model, choice.device)
        metrics.append(EmbeddingSimilarity(encoder.encode, encoder.name, encoder.detail))
    return metrics, absent


def _findings(
    reader: FindingsReader | None,
    cases: Iterable[Case],
    sections: Sections,
    metrics: list[PairMetric],
    leave_out: Callable[[str, str], None],
) -> None:
    if reader is None:
        leave_out("findings", "nobody to read findings (--reader)")
        leave_out("region_completeness", "nobody to read regions")
        return
    label = lru_cache(maxsize=None)(reader.label)  # references are read for every run, and worst cases once more
    texts = [[formatted(report, sections) for report in (case.reference, case.prediction.report)] for case in cases]
    if not any(reader.understands(reference) for reference, _ in texts):
        leave_out(
            "findings",
            f"{reader.name} reads nothing in any reference, neither a finding nor that something is normal: these are not reports "
            "that it knows",
        )
    else:
        concepts = sorted({concept for pair in texts for text in pair for concept in label(text)})
        metrics.append(FindingScores(label, concepts, reader.name))
    if reader.regions is None:
        leave_out("region_completeness", f"{reader.name} does not read regions")
    else:
        metrics.append(region_completeness(reader.regions, reader.region_names, reader.name))


def finding_differences(label: LabelText, prediction: str, reference: str) -> dict[str, list[str]]:
    """What a prediction hallucinates and what it omits."""
    ours, theirs = (positive_findings(label(text)) for text in (prediction, reference))
    return {"hallucinated": sorted(ours - theirs), "omitted": sorted(theirs - ours)}
