"""The normalizer that asks a language model (METHOD.md 1). It trusts no answer: form, completeness and language are checked here.

Knows the answer's form and what a normalized report is. Whether findings, numbers and sides are still there is the completeness
check's to say, not this file's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from echo_pl.llm.chat import AnswerError, ChatRequest
from echo_pl.llm.endpoint import ChatEndpoint
from echo_pl.llm.json_answer import Form, load_json, response_format, take, take_object, wrong
from echo_pl.llm.usage import Usage
from echo_pl.reports.llm_prompt import (
    CANONICAL,
    DROP_REASONS,
    DROPPED,
    IMPRESSION,
    PROMPT_VERSION,
    answer_schema,
    is_impression,
    pieces_of,
    system_message,
    user_message,
)
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.report import OTHER, NormalizedReport, RawReport, Statement
from echo_pl.reports.response import Language

_REMOVED = re.compile(r"X{3,}|_{3,}|\[\*\*.*?\*\*\]")
"""Marks in the place of names and dates."""
_HAN = re.compile(r"[\u3400-\u9fff]")
_END: Final[Mapping[Language, str]] = {"en": ".", "zh": "。"}


class LLMNormalizer:
    """Normalizes reports by a language model.

    Args:
        endpoint: whom to ask.
        language: to write in.
        negatives: a sentence for each of the seven regions, for those that a report does not mention; the default is
            :data:`~echo_pl.reports.llm_prompt.CANONICAL`.
        form: how the endpoint is told of the answer's form.
        max_tokens: of one answer; one that is cut off is asked for again with more.

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
        self._format = response_format(form, "normalized_report", answer_schema())
        self._max_tokens = max_tokens
        self._system = system_message(language)

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked so far, and what it cost."""
        return self._endpoint.usage

    @property
    def name(self) -> str:
        """Model, version of the prompt, language."""
        return f"llm-{self._endpoint.model}-prompt{PROMPT_VERSION}-{self._language}"

    def normalize(self, report: RawReport) -> NormalizedReport:
        """Normalize one report.

        Raises:
            AnswerError: a ValueError with a ``reason``: there is nothing to normalize, or no answer that can be used.
            EndpointError: nothing more can be asked.
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
        reader = _AnswerReader(pieces, self._language, self._negatives, left_out)
        return self._endpoint.complete(request, reader.read)

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | AnswerError]:
        """Normalize reports, several at once; yield them, or why they could not be, in their order.

        With a cache, a run that was ended at any moment asks nothing again when it is repeated.

        Raises:
            EndpointError: nothing more can be asked.
        """
        return self._endpoint.map(self.normalize, reports)


def checked_negatives(negatives: Mapping[str, str]) -> dict[str, str]:
    """The negatives, if every region has one.

    Raises:
        ValueError: one has none.
    """
    if missing := [name for name in REGION_NAMES if not negatives.get(name, "").strip()]:
        raise ValueError(f"there is no negative sentence for {', '.join(missing)}")
    return {name: negatives[name] for name in REGION_NAMES}


class _AnswerReader:
    """Makes a normalized report of one answer, or says what is wrong with it."""

    def __init__(
        self, pieces: Mapping[str, str], language: Language, negatives: Mapping[str, str], left_out: Mapping[str, int]
    ) -> None:
        self._pieces = pieces
        self._language: Language = language
        self._negatives = negatives
        self._left_out = left_out

    def read(self, text: str) -> NormalizedReport:
        used: set[str] = set()
        answer = take_object(load_json(text), (*REGION_NAMES, OTHER, IMPRESSION, DROPPED), "the answer")
        statements = [one for name in REGION_NAMES for one in self._region(name, answer[name], used)]
        statements += self._sentences(answer[OTHER], OTHER, OTHER, used)
        of_impression: set[str] = set()
        impression = self._sentences(answer[IMPRESSION], OTHER, IMPRESSION, of_impression)
        used |= of_impression
        dropped = self._dropped(answer[DROPPED], used)
        if not impression:
            raise wrong("there is no impression")
        if unused := [name for name in self._pieces if name not in used]:
            raise AnswerError("piece_lost", f"{len(unused)} pieces of the report are nowhere: {', '.join(unused)}", again="at_once")
        return NormalizedReport(
            statements=tuple(statements),
            impression=("" if self._language == "zh" else " ").join(one.text for one in impression),
            language=self._language,
            dropped={name: count for name, count in (dropped + Counter(self._left_out)).items() if count},
            impression_imputed=not any(is_impression(name) for name in of_impression),
        )

    def _region(self, name: str, value: Any, used: set[str]) -> list[Statement]:
        region = take_object(value, ("mentioned", "sentences"), name)
        mentioned = take(region["mentioned"], bool, f"{name}.mentioned")
        found = self._sentences(region["sentences"], name, f"{name}.sentences", used)
        if mentioned != bool(found):
            raise wrong(f"{name} is {'mentioned' if mentioned else 'not mentioned'} and has {len(found)} sentences")
        return found or [Statement(section=name, text=self._negatives[name], imputed=True)]

    def _sentences(self, value: Any, section: str, where: str, used: set[str]) -> list[Statement]:
        found = []
        for place, one in enumerate(take(value, list, where)):
            here = f"{where}[{place}]"
            sentence = take_object(one, ("text", "from"), here)
            names = [self._name(name, here) for name in take(sentence["from"], list, f"{here}.from")]
            if not names:
                raise wrong(f"{here} comes from no piece")
            used.update(names)
            source = " ".join(self._pieces[name] for name in dict.fromkeys(names))
            found.append(Statement(section=section, text=self._text(sentence["text"], here), source=source))
        return found

    def _name(self, value: Any, where: str) -> str:
        if (name := take(value, str, f"{where}.from")) not in self._pieces:
            raise wrong(f"{where} comes from a piece that there is not")
        return name

    def _text(self, value: Any, where: str) -> str:
        text = " ".join(take(value, str, f"{where}.text").split())
        if not text:
            raise wrong(f"{where} has no words")
        if _REMOVED.search(text):
            raise AnswerError("deidentification_mark", f"{where} holds the mark of a removed name", again="at_once")
        if bool(_HAN.search(text)) != (self._language == "zh"):
            raise AnswerError("wrong_language", f"{where} is not in {self._language}", again="at_once")
        return text if text[-1] in ".!?。！？" else text + _END[self._language]

    def _dropped(self, value: Any, used: set[str]) -> Counter[str]:
        counts: Counter[str] = Counter()
        for place, one in enumerate(take(value, list, DROPPED)):
            here = f"{DROPPED}[{place}]"
            entry = take_object(one, ("from", "reason"), here)
            if (reason := take(entry["reason"], str, f"{here}.reason")) not in DROP_REASONS:
                raise wrong(f"{here} has an unknown reason")
            used.add(self._name(entry["from"], here))
            counts[reason] += 1
        return counts
