"""Metrics of an evaluation: all that language and machine allow; a score that is left out comes with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tqdm.auto import tqdm

from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import IMAGE_SUFFIXES, read_samples
from echo_pl.data.store.study import Version
from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.evaluation.options import Options
from echo_pl.evaluation.scoring import Absent
from echo_pl.evaluation.text_models import load_language_model, load_text_encoder
from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.cider import Cider
from echo_pl.metrics.counted import PairMetric, PairRatio
from echo_pl.metrics.findings import ABSENT, FindingScores, TextLabeller, plain_status, positive_findings, region_completeness
from echo_pl.metrics.meteor import meteor_metric
from echo_pl.metrics.rouge import rouge_metrics
from echo_pl.metrics.surface import non_word_rate, surface_metrics
from echo_pl.metrics.words import Words, words_of
from echo_pl.reports.report import ParsedReport, ReportJudge
from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class FindingsReader:
    """Reader of findings, and optionally of regions, in a text."""

    name: str
    """With its version."""
    label: TextLabeller
    reads: Callable[[str], bool] | None = None
    """True if the reader can parse anything of a text, also that all is normal; None: a text with a label."""
    regions: Callable[[str], Collection[str]] | None = None
    """Regions that a text mentions; None: the reader has no regions."""
    region_names: tuple[str, ...] = ()

    def understands(self, text: str) -> bool:
        """Return True if the reader can parse a text."""
        if self.reads is not None:
            return self.reads(text)
        return any(plain_status(label) != ABSENT for label in self.label(text).values())


@dataclass(frozen=True)
class _JudgedFinding:
    status: str = "positive"


def judge_reader(judge: ReportJudge, name: str) -> FindingsReader:
    """Judge of a corpus as a reader: positive findings only, no regions."""

    def parse(text: str) -> ParsedReport:
        return judge.parse(ReportText(findings=text, impression=""))

    def label(text: str) -> dict[str, _JudgedFinding]:
        return {finding: _JudgedFinding() for finding in parse(text).findings}

    def reads(text: str) -> bool:
        return any(valid for _, valid in parse(text).sentences)

    return FindingsReader(name=name, label=label, reads=reads)


def build_metrics(options: Options, reader: FindingsReader, cases: Iterable[Case]) -> tuple[list[PairMetric], list[Absent]]:
    """The metrics of texts, and what is absent.

    Args:
        options: language, sections and models.
        reader: reader of findings.
        cases: cases of all runs; the concepts are those of their texts.

    Raises:
        ValueError, FileNotFoundError: a requested model, or WordNet, is missing.
    """
    words, device = words_of(options.language), options.device or "cpu"
    metrics: list[PairMetric] = [
        *rouge_metrics(words),
        meteor_metric(words, with_wordnet=options.wordnet),
        Bleu(words),
        Cider(words, clipped=False),
        Cider(words, clipped=True),
        *surface_metrics(words),
    ]
    absent: dict[str, str] = {}
    if not options.wordnet:
        absent["WordNet"] = "not requested (--wordnet): METEOR matches exact words and stems, no synonyms"
    if options.vocabulary is None:
        absent["non_word_rate"] = "no vocabulary of training reports (--vocabulary)"
    else:
        metrics.append(vocabulary_metric(options.vocabulary, words, options.version or "normalized"))
    findings = _finding_scores(reader, cases, options.sections)
    if findings is None:
        absent["findings"] = (
            f"{reader.name} reads nothing in any reference, neither a finding nor that something is normal: these are not reports "
            "that it can read"
        )
    else:
        metrics.append(findings)
    if reader.regions is None:
        absent["region_completeness"] = f"{reader.name} does not read regions"
    else:
        metrics.append(region_completeness(reader.regions, reader.region_names, reader.name))
    if options.language_model is None:
        absent["perplexity"] = "no language model (--language-model)"
    else:
        metrics.append(load_language_model(options.language_model, device))
    if options.embedding_model is None:
        absent["embedding similarity"] = "no sentence encoder (--embedding-model)"
    elif findings is None:  # it hardly sees a negation
        absent["embedding similarity"] = "it is never reported alone, and there are no finding scores"
    else:
        metrics.append(load_text_encoder(options.embedding_model, device))
    return metrics, [Absent(name=name, reason=reason) for name, reason in absent.items()]


def _finding_scores(reader: FindingsReader, cases: Iterable[Case], sections: Sections) -> FindingScores | None:
    """Scores over all concepts of the texts; None if the reader understands no reference."""
    label = lru_cache(maxsize=None)(reader.label)  # every run reads the references, and the page reads the worst cases again
    texts = [[formatted(report, sections) for report in (case.reference, case.prediction.report)] for case in cases]
    if not any(reader.understands(reference) for reference, _ in texts):
        return None
    concepts = sorted({concept for pair in texts for text in pair for concept in label(text)})
    return FindingScores(label, concepts, reader.name)


def finding_differences(label: TextLabeller, prediction: str, reference: str) -> dict[str, list[str]]:
    """Findings that a prediction hallucinates and findings that it omits."""
    ours, theirs = (positive_findings(label(text)) for text in (prediction, reference))
    return {"hallucinated": sorted(ours - theirs), "omitted": sorted(theirs - ours)}


def vocabulary_metric(path: Path, words: Words, version: Version) -> PairRatio:
    """Non-word rate against every word of the training split of a corpus, or of a UTF-8 text file.

    Raises:
        ValueError: a corpus without training reports of this version, or a file that is not UTF-8 text.
    """
    if path.is_dir():
        index = CorpusIndex.load(path)
        name = f"{version} training reports of corpus {index.fingerprint}"
        return non_word_rate(words, _words_of_corpus(path, index, words, version), name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return non_word_rate(words, frozenset(words.split(text)), path.name)


def _words_of_corpus(folder: Path, index: CorpusIndex, words: Words, version: Version) -> frozenset[str]:
    found: set[str] = set()
    with tqdm(total=index.count("train"), desc="training words", unit="study") as bar:
        for shard in index.shards("train"):
            for _, sample in read_samples(folder, shard, range(shard.samples), passed_over=IMAGE_SUFFIXES):
                record = json.loads(sample.fields["json"])
                fields = record if version == "normalized" else record["raw"]
                if fields is None:
                    raise ValueError(f"sample {sample.key} of {folder} has no {version} report: give --version")
                report = ReportText(findings=fields["findings"], impression=fields["impression"])
                found.update(words.split(formatted(report)))
                bar.update()
    return frozenset(found)
