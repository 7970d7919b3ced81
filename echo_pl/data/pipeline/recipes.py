"""Recipes of the pipeline's components: rule engine, language model, translator, check, near-duplicates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echo_pl.data.pipeline.components import Components, RefusedError, built
from echo_pl.io.atomic import atomic_file
from echo_pl.io.stop_signals import check_stop
from echo_pl.llm.chat import AnswerError
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.llm.usage import Usage
from echo_pl.reports.canonical import canonical_in_chinese
from echo_pl.reports.cleaning import OtherLanguageError, clean
from echo_pl.reports.completeness import CompletenessCheck
from echo_pl.reports.embeddings import Embedder, Vectors
from echo_pl.reports.labeller import Labeller
from echo_pl.reports.llm_normalizer import LLMNormalizer, normalizer_name
from echo_pl.reports.near_duplicates import Duplicate, critical_words, find_near_duplicates
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.response import Language
from echo_pl.reports.rules import RuleNormalizer
from echo_pl.reports.translation import Translator, filling_in_chinese, translator_name


class RuleEngine:
    """Rule engine, one report at a time."""

    def __init__(self) -> None:
        self._rules = RuleNormalizer()

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or its error, in order."""
        for report in reports:
            try:
                yield self._rules.normalize(report)
            except OtherLanguageError as error:
                yield RefusedError("other_language", str(error))
            except ValueError as error:
                yield RefusedError("not_normalized", str(error))


@dataclass(frozen=True, kw_only=True)
class RuleRecipe:
    """Recipe of the rule engine."""

    @property
    def name(self) -> str:
        """Name of the rules."""
        return RuleNormalizer.name

    def build(self) -> RuleEngine:
        """Build it."""
        return RuleEngine()


@dataclass(frozen=True, kw_only=True)
class CheckRecipe:
    """Recipe of the completeness check."""

    verbatim: bool
    """Require the words of positive statements, which the rule engine keeps."""

    @property
    def name(self) -> str:
        """Name with the version of the rules, whose tables the check uses."""
        return f"completeness-{RuleNormalizer.name}{'-verbatim' if self.verbatim else ''}"

    def build(self) -> CompletenessCheck:
        """Build it."""
        return CompletenessCheck(verbatim=self.verbatim)


@dataclass(frozen=True)
class LLMEngine:
    """Language model that normalizes several reports at once."""

    normalizer: LLMNormalizer

    @property
    def usage(self) -> Usage:
        """Requests, tokens and failures so far."""
        return self.normalizer.usage

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or its error, in order."""
        return _refusals(self.normalizer.normalize_many(reports))


@dataclass(frozen=True, kw_only=True)
class LLMRecipe:
    """Recipe of a language model that normalizes."""

    endpoint: EndpointSpec
    language: Language = "en"

    @property
    def name(self) -> str:
        """Model, prompt version, language."""
        return normalizer_name(self.endpoint, self.language)

    def build(self) -> LLMEngine:
        """Build it."""
        return LLMEngine(LLMNormalizer(ChatEndpoint(self.endpoint), language=self.language))


@dataclass(frozen=True)
class LLMTranslator:
    """Language model that translates several reports at once."""

    translator: Translator

    @property
    def usage(self) -> Usage:
        """Requests, tokens and failures so far."""
        return self.translator.usage

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report translated, or its error, in order."""
        return _refusals(self.translator.translate_many(reports))


@dataclass(frozen=True, kw_only=True)
class TranslatorRecipe:
    """Recipe of a language model that translates."""

    endpoint: EndpointSpec

    @property
    def name(self) -> str:
        """Model, and versions of the prompt and of the tables for canonical sentences."""
        return f"{translator_name(self.endpoint)}-{RuleNormalizer.name}"

    def build(self) -> LLMTranslator:
        """Build it; canonical sentences of both engines are not sent."""
        return LLMTranslator(Translator(ChatEndpoint(self.endpoint), known=_canonical))


def _canonical(text: str) -> str | None:
    return canonical_in_chinese(text) or filling_in_chinese(text)


class EmbeddingSearch:
    """Near-duplicates by the cosine of embeddings, with equal findings, negations, sides and numbers.

    Findings are labels with status, sides and zones, so that "left effusion, no nodule" and "no effusion, left nodule" differ.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder, self._labeller = embedder, Labeller()

    @property
    def name(self) -> str:
        """Names of the embedder and of the labeller."""
        return f"{self._embedder.name}-{self._labeller.version}"

    @property
    def threshold(self) -> float:
        """The embedder's smallest cosine of duplicates."""
        return self._embedder.threshold

    def find(
        self, train: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], threshold: float, kept: Path
    ) -> Iterable[Duplicate]:
        """Return the studies (key, text) to omit from the training split."""
        vectors = KeptVectors(self._embedder, kept)
        return find_near_duplicates(train, held_out, vectors, threshold=threshold, signature=self.signature)

    def signature(self, text: str) -> str:
        """Return what duplicates share: positive and uncertain findings, negations, sides, numbers."""
        readable = clean(text).text
        found = (
            " ".join((name, label.status.value, *sorted(label.sides), *sorted(label.zones)))
            for name, label in self._labeller.label(readable).items()
            if label.present
        )
        return "; ".join((critical_words(readable), *found))


def usages(components: Components) -> dict[str, Usage]:
    """Return the usage of each language model that this process has used."""
    models = [one for one in (components.engine, components.translator) if isinstance(one, LLMRecipe | TranslatorRecipe)]
    found = {one.name: built(one).usage for one in models}
    return {name: usage for name, usage in found.items() if usage.requests or usage.cached}


class KeptVectors:
    """Embedder that stores its vectors in a folder, one file per call, so that a killed search resumes."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.name, self.width, self.threshold = embedder.name, embedder.width, embedder.threshold
        self._embedder = embedder
        self._folder = folder

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors (texts, E)."""
        check_stop()
        path = self._folder / f"{hashlib.sha256(json.dumps([self.name, *texts]).encode()).hexdigest()}.npy"
        if not path.is_file():
            with atomic_file(path, private=True) as file:
                np.save(file, self._embedder.embed(texts))
        vectors: Vectors = np.load(path, allow_pickle=False)
        return vectors


def folder_digest(folder: Path) -> str:
    """Return a hash of the files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _refusals(found: Iterable[NormalizedReport | AnswerError]) -> Iterator[NormalizedReport | RefusedError]:
    for one in found:
        yield RefusedError(one.reason, str(one)) if isinstance(one, AnswerError) else one
