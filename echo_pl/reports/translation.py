"""Translation of normalized reports into Chinese by a language model (docs/explain/data.md).

A translation is accepted only if numbers and sides survive. Canonical sentences are translated by
the tables and not sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Final

from pydantic import Field, create_model

from echo_pl.llm.chat import AnswerError, ChatRequest
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.llm.json_answer import Answer, Form, parse_answer, response_format
from echo_pl.llm.usage import Usage
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.report import NormalizedReport
from echo_pl.reports.tables import read_table

_PROMPT: Final = read_table("prompts")["translate"]
PROMPT_VERSION: Final[str] = _PROMPT["version"]
_FILLINGS: Final = read_table("prompts")["normalize"]["fillings"]
_CANONICAL: Final = {_FILLINGS["en"][name]: _FILLINGS["zh"][name] for name in REGION_NAMES}
_KEY: Final = "translations"
_HAN = re.compile(r"[\u3400-\u9fff]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS: Final = {
    word: str(number) for number, words in read_table("words")["number_words"].items() for word in words.split()
}
"""Numbers in words: a translation may write them in digits, but need not."""
_LEFT = re.compile(r"\b(?:(?i:left(?:ward|wards|sided)?|levo\w*)|LUL|LLL|LIJ|LV|LA)\b")
_RIGHT = re.compile(r"\b(?:(?i:right(?:ward|wards|sided)?|dextro\w*)|RUL|RML|RLL|RIJ|RV|RA)\b")


def numbers(text: str) -> Counter[str]:
    """Return the numbers in digits, full-width digits included.

    >>> sorted(numbers("2 x 3.5 cm at T8").elements())
    ['2', '3.5', '8']
    """
    return Counter(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def lost(english: str, chinese: str) -> str | None:
    """Return what a translation lost: ``numbers``, ``laterality`` or None.

    Numbers in digits must be the same; a number word may become digits. 左 and 右 must be as frequent
    as left and right with their abbreviations, levo- and dextro-.

    >>> lost("A 4 mm nodule in the left lung.", "左肺4毫米结节。"), lost("Left effusion.", "右侧胸腔积液。")
    (None, 'laterality')
    """
    wanted, found = numbers(english), numbers(chinese)
    words = Counter(_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", english.lower()) if word in _NUMBER_WORDS)
    if wanted - found or found - wanted - words:
        return "numbers"
    sides = (len(_LEFT.findall(english)), len(_RIGHT.findall(english)))
    return None if sides == (chinese.count("左"), chinese.count("右")) else "laterality"


def chosen(key: str, *, seed: int, share: float = 0.5) -> bool:
    """Return True if a study is in the share to translate, by seed and key alone."""
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is translated must be between 0 and 1, got {share}")
    digest = hashlib.sha256(f"translate:{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def filling_in_chinese(text: str) -> str | None:
    """Translate the sentence for a region that was not mentioned; None for any other sentence.

    >>> filling_in_chinese("The hila are unremarkable."), filling_in_chinese("The hila are large.")
    ('肺门未见明显异常。', None)
    """
    return _CANONICAL.get(text)


def translator_name(endpoint: EndpointSpec) -> str:
    """Return model and prompt version: part of a corpus's identity."""
    return f"translate-{endpoint.name}-prompt{PROMPT_VERSION}"


class Translator:
    """Translator of normalized reports from English into Chinese.

    Args:
        endpoint: client of the language model.
        known: translates canonical sentences, which are neither sent nor checked; None for any
            other sentence.
        form: of the request for JSON; see :func:`~echo_pl.llm.json_answer.response_format`.
        max_tokens: of one answer; a truncated answer is requested again with more.

    Raises:
        ValueError: an unknown form.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        *,
        known: Callable[[str], str | None] = filling_in_chinese,
        form: Form = "json_schema",
        max_tokens: int = 2048,
    ) -> None:
        self._endpoint = endpoint
        self._known = known
        self._form: Form = form
        response_format(form, "", _answer_of(1))
        self._max_tokens = max_tokens

    @property
    def usage(self) -> Usage:
        """Requests, tokens and failures so far."""
        return self._endpoint.usage

    def translate(self, report: NormalizedReport) -> NormalizedReport:
        """Translate one report, with one more request if a number or a side is lost.

        Raises:
            AnswerError: a ValueError with a ``reason``: ``numbers`` or ``laterality`` was lost, or
                no answer is usable.
            EndpointError: the endpoint is unusable.
            ValueError: the report is not in English.
        """
        if report.language != "en":
            raise ValueError(f"only English reports are translated, got one in {report.language!r}")
        chinese = {"": ""}
        unknown = []
        for text in dict.fromkeys((*(one.text for one in report.statements), report.impression)):
            if (known := self._known(text)) is not None:
                chinese[text] = known
            elif text.strip():
                unknown.append(text)
        chinese |= zip(unknown, self._translate(unknown) if unknown else (), strict=True)
        return replace(
            report,
            statements=tuple(replace(one, text=chinese[one.text]) for one in report.statements),
            impression=chinese.get(report.impression, ""),
            language="zh",
        )

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | AnswerError]:
        """Translate reports concurrently; yield each one, or its error, in order.

        Raises:
            EndpointError: the endpoint is unusable.
        """
        return self._endpoint.map(self.translate, reports)

    def _translate(self, sentences: Sequence[str]) -> list[str]:
        question = json.dumps(sentences, ensure_ascii=False)
        found = self._ask(question, len(sentences))
        if not (faults := _faults(sentences, found)):
            return found
        places = ", ".join(str(place + 1) for place in faults)
        found = self._ask(f"{question}\n{_PROMPT['again']} {places}.", len(sentences))
        if faults := _faults(sentences, found):
            reason = next(iter(faults.values()))
            raise AnswerError(reason, f"lost in the translation of {len(faults)} of {len(sentences)} sentences, twice")
        return found

    def _ask(self, question: str, count: int) -> list[str]:
        kind = _answer_of(count)
        request = ChatRequest(
            system=_PROMPT["system"],
            user=question,
            response_format=response_format(self._form, "translations", kind),
            prompt_version=f"translate-{PROMPT_VERSION}",
            max_tokens=self._max_tokens,
        )

        def parse(text: str) -> list[str]:
            found = getattr(parse_answer(text, kind), _KEY)
            return [_checked(one, f"{_KEY}[{place}]") for place, one in enumerate(found)]

        return self._endpoint.complete(request, parse)


@cache
def _answer_of(count: int) -> Any:
    """Return the form of an answer with so many translations."""
    texts = Annotated[list[str], Field(min_length=count, max_length=count)]
    return create_model("Translations", __base__=Answer, **{_KEY: (texts, ...)})  # type: ignore[call-overload]


def _checked(text: str, where: str) -> str:
    text = " ".join(text.split())
    if not _HAN.search(text):
        raise AnswerError("wrong_language", f"{where} is not in Chinese", again="at_once")
    return text if text[-1] in "。！？" else text.rstrip(".!?") + "。"


def _faults(sentences: Sequence[str], translations: Sequence[str]) -> dict[int, str]:
    """Return position -> lost property."""
    pairs = enumerate(zip(sentences, translations, strict=True))
    return {place: what for place, (english, chinese) in pairs if (what := lost(english, chinese)) is not None}
