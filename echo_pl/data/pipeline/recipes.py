"""How the project's own parts are made in any process: rule engine, language model, translator, check, search for duplicates.

The only file of the pipeline that knows them by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from echo_pl.data.pipeline.parts import Parts, RefusedError, built
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
from echo_pl.reports.llm_normalizer import LLMNormalizer
from echo_pl.reports.near_duplicates import Duplicate, critical_words, find_near_duplicates
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.response import Language
from echo_pl.reports.rules import RuleNormalizer
from echo_pl.reports.translation import Translator, filling_in_chinese


class RuleEngine:
    """The rule engine, one report after the other."""

    def __init__(self) -> None:
        self._rules = RuleNormalizer()

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or why it cannot be, in their order."""
        for report in reports:
            try:
                yield self._rules.normalize(report)
            except OtherLanguageError as error:
                yield RefusedError("other_language", str(error))
            except ValueError as error:
                yield RefusedError("not_normalized", str(error))


@dataclass(frozen=True, kw_only=True)
class RuleRecipe:
    """Makes the rule engine."""

    @property
    def name(self) -> str:
        """That of the rules."""
        return RuleNormalizer.name

    def build(self) -> RuleEngine:
        """Make it."""
        return RuleEngine()


@dataclass(frozen=True, kw_only=True)
class CheckRecipe:
    """Makes the completeness check."""

    verbatim: bool
    """Whether what is there must have kept its words, as the rule engine promises."""

    @property
    def name(self) -> str:
        """The check reads with the tables of the rules, so it has their version."""
        return f"completeness-{RuleNormalizer.name}{'-verbatim' if self.verbatim else ''}"

    def build(self) -> CompletenessCheck:
        """Make it."""
        return CompletenessCheck(verbatim=self.verbatim)


class LLMEngine:
    """A language model that normalizes, several reports at once."""

    def __init__(self, normalizer: LLMNormalizer) -> None:
        self._normalizer = normalizer

    @property
    def usage(self) -> Usage:
        """What was asked so far, and what it cost."""
        return self._normalizer.usage

    @property
    def name(self) -> str:
        """Model, version of the prompt, language."""
        return self._normalizer.name

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or why it cannot be, in their order."""
        return _refusals(self._normalizer.normalize_many(reports))


@dataclass(frozen=True, kw_only=True)
class LLMRecipe:
    """Makes a language model that normalizes."""

    name: str
    endpoint: EndpointSpec
    language: Language = "en"

    @classmethod
    def of(cls, endpoint: EndpointSpec, language: Language) -> LLMRecipe:
        """The recipe with the name that its engine will have.

        Raises:
            ValueError: the endpoint is none.
        """
        recipe = cls(name="", endpoint=endpoint, language=language)
        return cls(name=recipe.build().name, endpoint=endpoint, language=language)

    def build(self) -> LLMEngine:
        """Make it."""
        return LLMEngine(LLMNormalizer(ChatEndpoint(self.endpoint), language=self.language))


class LLMTranslator:
    """A language model that translates, several reports at once."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    @property
    def usage(self) -> Usage:
        """What was asked so far, and what it cost."""
        return self._translator.usage

    @property
    def name(self) -> str:
        """Model, version of the prompt, and of the tables that translate what is canonical."""
        return f"{self._translator.name}-{RuleNormalizer.name}"

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report translated, or why it cannot be, in their order."""
        return _refusals(self._translator.translate_many(reports))


@dataclass(frozen=True, kw_only=True)
class TranslatorRecipe:
    """Makes a language model that translates."""

    name: str
    endpoint: EndpointSpec

    @classmethod
    def of(cls, endpoint: EndpointSpec) -> TranslatorRecipe:
        """The recipe with the name that its translator will have.

        Raises:
            ValueError: the endpoint is none.
        """
        return cls(name=cls(name="", endpoint=endpoint).build().name, endpoint=endpoint)

    def build(self) -> LLMTranslator:
        """Make it; sentences of either engine's tables are not sent."""
        return LLMTranslator(Translator(ChatEndpoint(self.endpoint), known=_canonical))


def _canonical(text: str) -> str | None:
    return canonical_in_chinese(text) or filling_in_chinese(text)


class EmbeddingSearch:
    """Near-duplicates by the cosine of embeddings, where findings, negations, sides and numbers are equal.

    Findings are what the labeller reads, with their certainty, sides and zones: "left effusion, no nodule" has the denials and
    sides of "no effusion, left nodule", and is no duplicate of it.

    Args:
        embedder: makes the vectors.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder, self._labeller = embedder, Labeller()

    @property
    def name(self) -> str:
        """That of the embedder and of the labeller."""
        return f"{self._embedder.name}-{self._labeller.version}"

    @property
    def threshold(self) -> float:
        """Cosine from which on two texts say the same, as the embedder has it."""
        return self._embedder.threshold

    def find(
        self, train: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], threshold: float, kept: Path
    ) -> Iterable[Duplicate]:
        """Return which (key, text) of the training split are to go."""
        vectors = KeptVectors(self._embedder, kept)
        return find_near_duplicates(train, held_out, vectors, threshold=threshold, signature=self.signature)

    def signature(self, text: str) -> str:
        """What two duplicates have in common: findings that are there or in doubt, and denials, sides and numbers as they stand."""
        readable = clean(text).text
        found = (
            " ".join((name, label.status.value, *sorted(label.sides), *sorted(label.zones)))
            for name, label in self._labeller.label(readable).items()
            if label.present
        )
        return "; ".join((critical_words(readable), *found))


def usages(parts: Parts) -> dict[str, Usage]:
    """What each language model was asked in this process, where models are always asked; those that were not are not there."""
    models = [one for one in (parts.engine, parts.translator) if isinstance(one, LLMRecipe | TranslatorRecipe)]
    found = {one.name: built(one).usage for one in models}
    return {name: usage for name, usage in found.items() if usage.requests or usage.cached}


class KeptVectors:
    """An embedder whose vectors are kept in files: a search that was killed reads again what it had, and embeds the rest.

    Args:
        embedder: makes the vectors.
        folder: for the files, one for each call; nobody else's.
    """

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self.name, self.width, self.threshold = embedder.name, embedder.width, embedder.threshold
        self._embedder = embedder
        self._folder = folder

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors (texts, E)."""
        check_stop()
        path = self._folder / f"{hashlib.sha256(json.dumps([self.name, *texts]).encode()).hexdigest()}.npy"
        if not path.is_file():
            with atomic_file(path, private=True) as file:
                np.save(file, self._embedder.embed(texts))
        vectors: Vectors = np.load(path, allow_pickle=False)
        return vectors


def folder_digest(folder: Path) -> str:
    """Hash of the files in a folder, for the name of what is copied from it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _refusals(found: Iterable[NormalizedReport | AnswerError]) -> Iterator[NormalizedReport | RefusedError]:
    for one in found:
        yield RefusedError(one.reason, str(one)) if isinstance(one, AnswerError) else one
