"""Normalizer that asks a language model and validates its answers (docs/explain/data.md).

The report is sent as numbered pieces, and each sentence of the answer names its pieces, so that no
piece is lost and no sentence invented. The model leaves regions that the report does not mention
empty; their canonical sentences are added here. Findings, numbers and sides are compared by
:mod:`echo_pl.reports.completeness`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, create_model

from echo_pl.llm.chat import AnswerError, ChatRequest
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.llm.json_answer import Answer, Form, parse_answer, response_format, wrong
from echo_pl.llm.usage import Usage
from echo_pl.reports.regions import OTHER, REGION_NAMES, REGIONS
from echo_pl.reports.report import NormalizedReport, RawReport, Statement
from echo_pl.reports.response import Language
from echo_pl.reports.sentences import split_lossless
from echo_pl.reports.tables import check_names, read_table

IMPRESSION: Final = "impression"
DROPPED: Final = "dropped"
DROP_REASONS: Final = ("technique", "comparison", "communication", "duplicate", "empty")
_PROMPT: Final = read_table("prompts")["normalize"]
PROMPT_VERSION: Final[str] = _PROMPT["version"]
CANONICAL: Final[Mapping[Language, Mapping[str, str]]] = _PROMPT["fillings"]
"""Sentences for the regions that the original does not mention."""
for _language in CANONICAL:
    check_names(f"prompts.yaml, {_language}", REGION_NAMES, CANONICAL[_language])
_REMOVED = re.compile(r"X{3,}|_{3,}|\[\*\*.*?\*\*\]")
"""Marks in place of names and dates."""
_HAN = re.compile(r"[\u3400-\u9fff]")
_END: Final[Mapping[Language, str]] = {"en": ".", "zh": "。"}


_Piece = Annotated[str, Field(pattern="^[FI][0-9]+$")]


class _Sentence(Answer):
    text: str
    sources: list[_Piece] = Field(alias="from")


class _Region(Answer):
    mentioned: bool
    sentences: list[_Sentence]


class _Dropped(Answer):
    source: _Piece = Field(alias="from")
    reason: Literal[DROP_REASONS]  # type: ignore[valid-type]


ReportAnswer: Final[Any] = create_model(
    "ReportAnswer",
    __base__=Answer,
    **dict.fromkeys(REGION_NAMES, (_Region, ...)),  # type: ignore[call-overload]
    **{OTHER: (list[_Sentence], ...), IMPRESSION: (list[_Sentence], ...), DROPPED: (list[_Dropped], ...)},
)
"""Form of an answer: the regions, what belongs to none, the impression, and the pieces left out."""


def normalizer_name(endpoint: EndpointSpec, language: Language) -> str:
    """Return model, prompt version and language: part of a corpus's identity."""
    return f"llm-{endpoint.name}-prompt{PROMPT_VERSION}-{language}"


class LLMNormalizer:
    """Normalizer of reports by a language model.

    Args:
        endpoint: client of the language model.
        language: of the normalized reports.
        negatives: a sentence for each region, for reports that do not mention it; default:
            :data:`CANONICAL`.
        form: of the request for JSON; see :func:`~echo_pl.llm.json_answer.response_format`.
        max_tokens: of one answer; a truncated answer is requested again with more.

    Raises:
        ValueError: an unknown language or form, or a region without its sentence.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        language: Language = "en",
        negatives: Mapping[str, str] | None = None,
        form: Form = "json_schema",
        max_tokens: int = 2048,
    ) -> None:
        if language not in CANONICAL:
            raise ValueError(f"language must be one of {sorted(CANONICAL)}, got {language!r}")
        self._endpoint = endpoint
        self._language: Language = language
        self._negatives = checked_negatives(CANONICAL[language] if negatives is None else negatives)
        self._format = response_format(form, "normalized_report", ReportAnswer)
        self._max_tokens = max_tokens
        self._system = system_message(language)

    @property
    def usage(self) -> Usage:
        """Requests, tokens and failures so far."""
        return self._endpoint.usage

    def normalize(self, report: RawReport) -> NormalizedReport:
        """Normalize one report.

        Raises:
            AnswerError: a ValueError with a ``reason``: the report is empty, or no answer is
                usable.
            EndpointError: the endpoint is unusable.
        """
        pieces = pieces_of(report)
        if not pieces:
            raise AnswerError("no_report", "neither findings nor impression")
        request = ChatRequest(
            system=self._system,
            user=user_message(pieces),
            response_format=self._format,
            prompt_version=f"normalize-{PROMPT_VERSION}-{self._language}",
            max_tokens=self._max_tokens,
        )
        unsent = {"indication": report.indication, "comparison": report.comparison, "technique": report.technique}
        left_out = Counter(section for section, text in unsent.items() if text.strip())
        left_out["deidentification"] = sum(len(_REMOVED.findall(text)) for text in pieces.values())
        parser = _AnswerParser(pieces, self._language, self._negatives, left_out)
        return self._endpoint.complete(request, parser.parse)

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | AnswerError]:
        """Normalize reports concurrently; yield each one, or its error, in order.

        With a cache, a repeated run sends no request for an answered report.

        Raises:
            EndpointError: the endpoint is unusable.
        """
        return self._endpoint.map(self.normalize, reports)


def checked_negatives(negatives: Mapping[str, str]) -> dict[str, str]:
    """Return the negatives in the order of the regions; raise ValueError if one is missing."""
    if missing := [name for name in REGION_NAMES if not negatives.get(name, "").strip()]:
        raise ValueError(f"there is no negative sentence for {', '.join(missing)}")
    return {name: negatives[name] for name in REGION_NAMES}


class _AnswerParser:
    """Parser of the answer to one report."""

    def __init__(
        self, pieces: Mapping[str, str], language: Language, negatives: Mapping[str, str], left_out: Mapping[str, int]
    ) -> None:
        self._pieces = pieces
        self._language: Language = language
        self._negatives = negatives
        self._left_out = left_out

    def parse(self, text: str) -> NormalizedReport:
        answer = parse_answer(text, ReportAnswer)
        used: set[str] = set()
        statements = [one for name in REGION_NAMES for one in self._region(name, getattr(answer, name), used)]
        statements += self._sentences(answer.other, OTHER, OTHER, used)
        of_impression: set[str] = set()
        impression = self._sentences(answer.impression, OTHER, IMPRESSION, of_impression)
        used |= of_impression
        for place, one in enumerate(answer.dropped):
            used.add(self._known(one.source, f"{DROPPED}[{place}]"))
        if not impression:
            raise wrong("there is no impression")
        if unused := [name for name in self._pieces if name not in used]:
            raise AnswerError("piece_lost", f"{len(unused)} pieces of the report are nowhere: {', '.join(unused)}", again="at_once")
        dropped = Counter(one.reason for one in answer.dropped) + Counter(self._left_out)
        return NormalizedReport(
            statements=tuple(statements),
            impression=("" if self._language == "zh" else " ").join(one.text for one in impression),
            language=self._language,
            dropped={name: count for name, count in dropped.items() if count},
            impression_imputed=not any(name.startswith("I") for name in of_impression),
        )

    def _region(self, name: str, region: _Region, used: set[str]) -> list[Statement]:
        found = self._sentences(region.sentences, name, f"{name}.sentences", used)
        if region.mentioned != bool(found):
            raise wrong(f"{name} is {'mentioned' if region.mentioned else 'not mentioned'} and has {len(found)} sentences")
        return found or [Statement(section=name, text=self._negatives[name], imputed=True)]

    def _sentences(self, sentences: list[_Sentence], section: str, where: str, used: set[str]) -> list[Statement]:
        found = []
        for place, one in enumerate(sentences):
            here = f"{where}[{place}]"
            if not one.sources:
                raise wrong(f"{here} comes from no piece")
            names = [self._known(name, here) for name in one.sources]
            used.update(names)
            source = " ".join(self._pieces[name] for name in dict.fromkeys(names))
            found.append(Statement(section=section, text=self._text(one.text, here), source=source))
        return found

    def _known(self, name: str, where: str) -> str:
        if name not in self._pieces:
            raise wrong(f"{where} comes from an unknown piece")
        return name

    def _text(self, text: str, where: str) -> str:
        text = " ".join(text.split())
        if not text:
            raise wrong(f"{where} has no words")
        if _REMOVED.search(text):
            raise AnswerError("deidentification_mark", f"{where} holds the mark of a removed name", again="at_once")
        if bool(_HAN.search(text)) != (self._language == "zh"):
            raise AnswerError("wrong_language", f"{where} is not in {self._language}", again="at_once")
        return text if text[-1] in ".!?。！？" else text + _END[self._language]


def pieces_of(report: RawReport) -> dict[str, str]:
    """Split findings and impression into numbered pieces, which hold all of their words.

    >>> pieces_of(RawReport(findings="Clear lungs. No effusion.", impression="Normal."))
    {'F1': 'Clear lungs.', 'F2': 'No effusion.', 'I1': 'Normal.'}
    """
    sections = (("F", report.findings), ("I", report.impression))
    return {f"{letter}{i}": piece for letter, text in sections for i, piece in enumerate(split_lossless(text), start=1)}


def system_message(language: Language) -> str:
    """Return the system message."""
    titles = {region.name: region.title for region in REGIONS}
    regions = "\n".join(f'- "{name}": {titles.get(name, "other")}: {belongs}.' for name, belongs in _PROMPT["belongs"].items())
    rules: str = _PROMPT["rules"].format(regions=regions, reasons=", ".join(DROP_REASONS), language=_PROMPT["languages"][language])
    return rules + str(_PROMPT["example"])


def user_message(pieces: Mapping[str, str]) -> str:
    """Return the message with the pieces of one report."""
    return "Pieces:\n" + "\n".join(f"{name}: {text}" for name, text in pieces.items()) + "\nAnswer:"
