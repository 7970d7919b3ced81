"""Predictions and references from files: two formats in, one list of pairs out, and every way in which they do not fit said by id.

The official evaluation JSON (METHOD.md 6): a list of ``{"sample_id", "images", "ground_truth": {"findings", "impression"}}``. Ours:
JSON lines of ``{"sample_id", "prediction", "reference"}`` with what decoding knew beside it. Knows files and strings; scores
nothing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from echo_pl.data.response import FORMS, parse_response
from echo_pl.structs import ReportText

Sections = Literal["both", "findings", "impression"]
RECORDS = "reports.jsonl"
"""Name of the records in a folder that an evaluation wrote."""
EMPTY = ReportText(findings="", impression="")
_SHOWN = 10
_IDEOGRAPH = re.compile(r"[\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_\u4e00-\u9fff]")


class UnmatchedIdsError(ValueError):
    """Predictions and references are not of the same studies."""

    def __init__(self, message: str, only_first: Sequence[str], only_second: Sequence[str]) -> None:
        super().__init__(message)
        self.only_first = tuple(only_first)
        self.only_second = tuple(only_second)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model wrote for a study, and what is known of how."""

    report: ReportText
    parsed: bool = True
    """False: it had no headings, or was no text at all; it is scored as an empty report."""
    stopped: bool | None = None
    """Whether it ended with eos; None: not known."""
    looped: bool | None = None
    eos_confidence: float | None = None
    """Probability of the first eos token when it was committed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study with what a model wrote and what should stand there."""

    key: str
    prediction: Prediction
    reference: ReportText


def read_records(path: Path | str) -> dict[str, dict[str, Any]]:
    """Records by ``sample_id`` from JSON (a list, or an object by id), JSON lines, or a folder of an evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a file, a record has no id, or ids stand twice (all of them are named).
    """
    file = Path(path)
    if file.is_dir():
        file = file / RECORDS
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}: give a JSON or JSON lines file, or a folder that an evaluation wrote")
    records = list(_records(file))
    counts = Counter(key for key, _ in records)
    doubles = [key for key, count in counts.items() if count > 1]
    if doubles:
        raise ValueError(
            f"{file} has {len(doubles)} sample_ids more than once: {shown(doubles)}; which of them counts is not clear"
        )
    if not records:
        raise ValueError(f"{file} has no records")
    return dict(records)


def read_predictions(path: Path | str, *, free_text: bool = False) -> dict[str, Prediction]:
    """The predictions of a file, by id.

    A prediction is a response with its headings, or an object with ``findings`` and ``impression``. Whatever else it is, it is
    kept as an empty report that is not ``parsed``.

    Args:
        path: see :func:`read_records`.
        free_text: responses have no headings; all of their text counts as findings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_records`, or a record without a prediction.
    """
    records = read_records(path)
    without = [key for key, record in records.items() if "prediction" not in record]
    if without:
        raise ValueError(
            f"{len(without)} of {len(records)} records of {path} have no 'prediction': {shown(without)}; if these are references, "
            "give them as --references and the predictions as --predictions"
        )
    return {key: _prediction(record, free_text) for key, record in records.items()}


def read_references(path: Path | str) -> dict[str, ReportText]:
    """The references of a file, by id: ``ground_truth`` (official) or ``reference`` (ours).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_records`, or references that are missing or empty (they are named).
    """
    found = {key: _reference(record) for key, record in read_records(path).items()}
    without = [key for key, report in found.items() if report is None or report == EMPTY]
    if without:
        raise ValueError(
            f"{len(without)} of {len(found)} records of {path} have no 'ground_truth' or 'reference' with findings or impression: "
            f"{shown(without)}; a study without a reference cannot be scored"
        )
    return {key: report for key, report in found.items() if report is not None}


def join(predictions: Mapping[str, Prediction], references: Mapping[str, ReportText]) -> list[Case]:
    """Pair by id, in the order of the references.

    Raises:
        UnmatchedIdsError: an id is on one side only; nothing is left out in silence.
    """
    require_same_ids(predictions, references, "predictions", "references")
    return [Case(key=key, prediction=predictions[key], reference=reference) for key, reference in references.items()]


def require_same_ids(first: Mapping[str, Any], second: Mapping[str, Any], name: str, other: str) -> None:
    """Refuse two sets of ids that differ, naming the odd ones of both.

    Raises:
        UnmatchedIdsError: with both lists in full.
    """
    only_first = [key for key in first if key not in second]
    only_second = [key for key in second if key not in first]
    if only_first or only_second:
        raise UnmatchedIdsError(
            f"{name} and {other} are not of the same studies ({len(first)} and {len(second)}): {len(only_first)} ids only in the "
            f"{name} ({shown(only_first)}), {len(only_second)} only in the {other} ({shown(only_second)})",
            only_first,
            only_second,
        )


def formatted(report: ReportText, sections: Sections = "both") -> str:
    """A report as the one text that is scored; predictions and references pass through here alike.

    Headings are left out and white space is made one space. Splitting into words and lower-casing is a metric's own.

    >>> formatted(ReportText(findings="Clear  lungs.", impression="Normal."))
    'Clear lungs. Normal.'
    """
    chosen = {"both": f"{report.findings} {report.impression}", "findings": report.findings, "impression": report.impression}
    return " ".join(chosen[sections].split())


def language_of(text: str) -> str | None:
    """``zh`` if at least three in ten letters are ideographs, else ``en``; None for a text without letters.

    >>> language_of("心影正常"), language_of("clear lungs"), language_of("...")
    ('zh', 'en', None)
    """
    ideographs, letters = len(_IDEOGRAPH.findall(text)), len(_LETTER.findall(text))
    if not ideographs + letters:
        return None
    return "zh" if 10 * ideographs >= 3 * (ideographs + letters) else "en"


def check_language(cases: Sequence[Case], language: str) -> list[str]:
    """The ids whose prediction is written in another language; they are scored as they are.

    Raises:
        ValueError: references, or most predictions, are in another language than the scores are for.
    """

    def others(texts: Mapping[str, str]) -> list[str]:
        return [key for key, text in texts.items() if language_of(text) not in (None, language)]

    wrong = others({case.key: formatted(case.reference) for case in cases})
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(cases)} references are not in language {language!r}: {shown(wrong)}; give --language, or "
            "score each language by itself"
        )
    strange = others({case.key: formatted(case.prediction.report) for case in cases})
    if 2 * len(strange) > len(cases):
        raise ValueError(
            f"{len(strange)} of {len(cases)} predictions are not in language {language!r}, the references are: {shown(strange)}; "
            "are these the predictions for these references?"
        )
    return strange


def case_record(case: Case) -> dict[str, Any]:
    """A case as a line of our own format, which :func:`read_predictions` and :func:`read_references` read."""
    known = {name: getattr(case.prediction, name) for name in ("stopped", "looped", "eos_confidence")}
    return {
        "sample_id": case.key,
        "prediction": _fields(case.prediction.report) if case.prediction.parsed else None,
        "reference": _fields(case.reference),
        **{name: value for name, value in known.items() if value is not None},
    }


def shown(keys: Sequence[str]) -> str:
    """The first few of a list of ids, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more if keys else "none"


def parsed_prediction(text: str, *, free_text: bool = False) -> Prediction:
    """A response as a prediction.

    >>> parsed_prediction("the lungs are").parsed
    False
    """
    if free_text:
        return Prediction(report=ReportText(findings=text.strip(), impression=""))
    headed = any(form.impression in text or text.lstrip().startswith(form.findings) for form in FORMS.values())
    return Prediction(report=parse_response(text)) if headed else Prediction(report=EMPTY, parsed=False)


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, record in enumerate(_content(file), 1):
        if not isinstance(record, dict) or not isinstance(record.get("sample_id"), str | int):
            raise ValueError(f"record {place} of {file} is not an object with a 'sample_id'")
        yield str(record["sample_id"]), record


def _content(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON{' lines' if file.suffix == '.jsonl' else ''} ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        return [
            {"sample_id": key, **(value if isinstance(value, dict) else {"prediction": value})} for key, value in content.items()
        ]
    raise ValueError(f"{file} holds neither a list of records nor an object by sample_id")


def _prediction(record: Mapping[str, Any], free_text: bool) -> Prediction:
    value = record["prediction"]
    report = _fields_report(value)
    found = Prediction(report=EMPTY, parsed=False)
    if report is not None:
        found = Prediction(report=report)
    elif isinstance(value, str):
        found = parsed_prediction(value, free_text=free_text)
    confidence = record.get("eos_confidence")
    return replace(
        found,
        stopped=record["stopped"] if isinstance(record.get("stopped"), bool) else None,
        looped=record["looped"] if isinstance(record.get("looped"), bool) else None,
        eos_confidence=float(confidence) if isinstance(confidence, int | float) else None,
    )


def _reference(record: Mapping[str, Any]) -> ReportText | None:
    value = record.get("ground_truth", record.get("reference"))
    return parse_response(value) if isinstance(value, str) else _fields_report(value)


def _fields_report(value: Any) -> ReportText | None:
    if not isinstance(value, dict) or not {"findings", "impression"} & value.keys():
        return None
    findings, impression = (value.get(name) or "" for name in ("findings", "impression"))
    if not isinstance(findings, str) or not isinstance(impression, str):
        return None
    return ReportText(findings=findings.strip(), impression=impression.strip())


def _fields(report: ReportText) -> dict[str, str]:
    return {"findings": report.findings, "impression": report.impression}
