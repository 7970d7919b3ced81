"""Translation of normalized reports into Chinese by a language model, and which ones are translated (METHOD.md 1, step 4).

A sentence is accepted only if its numbers and sides are still there. Canonical sentences are not sent: their translation is known.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from echo_pl.llm.chat import AnswerError, ChatRequest
from echo_pl.llm.endpoint import ChatEndpoint
from echo_pl.llm.json_answer import Form, load_json, response_format, take, take_object, wrong
from echo_pl.llm.usage import Usage
from echo_pl.reports.llm_prompt import CANONICAL
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.report import NormalizedReport
from echo_pl.reports.survival import lost

PROMPT_VERSION: Final = "1"
"""To be raised with every change of what a model is sent."""

_CANONICAL: Final = {CANONICAL["en"][name]: CANONICAL["zh"][name] for name in REGION_NAMES}
_KEY: Final = "translations"
_HAN = re.compile(r"[\u3400-\u9fff]")

_SYSTEM: Final = f"""\
You translate sentences of chest X-ray reports from English into Simplified Chinese, in the words of a Chinese radiologist.

You get a JSON list of sentences. Answer with one JSON object {{"{_KEY}": [...]}} and nothing else: one translation for each
sentence, in the same order.

Rules
1. Say all that the sentence says and nothing more; a doubtful finding stays doubtful, an absent one absent.
2. Left is 左 and right is 右, each as often as in the English; bilateral and both are 双侧. Never write 左右.
3. Numbers in digits stay in the same digits, with their units; numbers in words become Chinese words.
4. Abbreviations of devices and of vertebrae (PICC, T8) stay as they are.
5. End each translation with 。

Example: ["A 4 mm nodule in the left upper lobe.", "There is no pleural effusion."]
Answer: {{"{_KEY}": ["左肺上叶4 mm结节。", "未见胸腔积液。"]}}
"""
_AGAIN: Final = """
A translation of these was wrong. Look at numbers and sides (left 左, right 右) of the sentences in these places, from 1: """


def chosen(key: str, *, seed: int, share: float = 0.5) -> bool:
    """Whether a study is among the random share that is translated: a function of seed and key alone.

    Neither order nor number of studies changes it.

    Raises:
        ValueError: a share that is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is translated must be between 0 and 1, got {share}")
    digest = hashlib.sha256(f"translate:{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def filling_in_chinese(text: str) -> str | None:
    """The Chinese for a sentence that fills in for a region that was not mentioned; None for any other sentence.

    >>> filling_in_chinese("The hila are unremarkable."), filling_in_chinese("The hila are large.")
    ('肺门未见明显异常。', None)
    """
    return _CANONICAL.get(text)


class Translator:
    """Translates normalized reports from English into Chinese.

    Args:
        endpoint: whom to ask.
        known: the Chinese for a sentence, or None where it has none; what it knows is not sent, and is not checked.
        form: how the endpoint is told of the answer's form.
        max_tokens: of one answer; one that is cut off is asked for again with more.

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
        response_format(form, "", {})
        self._max_tokens = max_tokens

    @property
    def usage(self) -> Usage:
        """What the endpoint was asked so far, and what it cost."""
        return self._endpoint.usage

    @property
    def name(self) -> str:
        """Model and version of the prompt."""
        return f"translate-{self._endpoint.model}-prompt{PROMPT_VERSION}"

    def translate(self, report: NormalizedReport) -> NormalizedReport:
        """Translate one report. Where a number or a side got lost it is asked once more, told where to look.

        Raises:
            AnswerError: a ValueError with a ``reason``: ``numbers`` or ``laterality`` did not survive, or there was no answer that
                can be used.
            EndpointError: nothing more can be asked.
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
        """Translate reports, several at once; yield them, or why they could not be, in their order.

        Raises:
            EndpointError: nothing more can be asked.
        """
        return self._endpoint.map(self.translate, reports)

    def _translate(self, sentences: Sequence[str]) -> list[str]:
        question = json.dumps(sentences, ensure_ascii=False)
        found = self._ask(question, len(sentences))
        if not (faults := _faults(sentences, found)):
            return found
        places = ", ".join(str(place + 1) for place in faults)
        found = self._ask(f"{question}\n{_AGAIN.strip()} {places}.", len(sentences))
        if faults := _faults(sentences, found):
            reason = next(iter(faults.values()))
            raise AnswerError(reason, f"lost in the translation of {len(faults)} of {len(sentences)} sentences, twice")
        return found

    def _ask(self, question: str, count: int) -> list[str]:
        request = ChatRequest(
            system=_SYSTEM,
            user=question,
            response_format=response_format(self._form, "translations", _schema(count)),
            prompt_version=f"translate-{PROMPT_VERSION}",
            max_tokens=self._max_tokens,
        )
        return self._endpoint.complete(request, _reader(count))


def _schema(count: int) -> dict[str, Any]:
    texts = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
    return {"type": "object", "additionalProperties": False, "required": [_KEY], "properties": {_KEY: texts}}


def _reader(count: int) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = take(take_object(load_json(text), (_KEY,), "the answer")[_KEY], list, _KEY)
        if len(found) != count:
            raise wrong(f"{len(found)} translations of {count} sentences")
        return [_checked(one, f"{_KEY}[{place}]") for place, one in enumerate(found)]

    return read


def _checked(value: Any, where: str) -> str:
    text = " ".join(take(value, str, where).split())
    if not _HAN.search(text):
        raise AnswerError("wrong_language", f"{where} is not in Chinese", again="at_once")
    return text if text[-1] in "。！？" else text.rstrip(".!?") + "。"


def _faults(sentences: Sequence[str], translations: Sequence[str]) -> dict[int, str]:
    """Place -> what got lost there."""
    pairs = enumerate(zip(sentences, translations, strict=True))
    return {place: what for place, (english, chinese) in pairs if (what := lost(english, chinese)) is not None}
