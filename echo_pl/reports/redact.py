"""Removal of dates, times, names and identifiers from report text, by pattern.

Patterns find the usual forms only: a redacted text may still hold others.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Final

from echo_pl.reports.report import RawReport

MARK: Final = "___"
"""Replacement, which :func:`echo_pl.reports.cleaning.clean` removes."""

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_NAME = r"[A-Z][A-Za-z'’-]+"
_PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("id", re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b")),
    (
        "id",
        re.compile(
            r"\b(?:MRN|medical record|accession|acc(?:ession)?|patient id|study id|ssn|case|episode|account|encounter)"
            r"\s*(?:number|no|num|id|#)?\s*[.:#]*\s*[A-Z]{0,4}[-/]?\d[\w-]{2,}",
            re.IGNORECASE,
        ),
    ),
    ("id", re.compile(r"(?:病历号|住院号|门诊号|检查号|影像号|身份证号?|登记号|电话)\s*[:：]?\s*[\w-]{3,}")),
    (
        "date",
        re.compile(
            rf"\b(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[-/]\d{{1,2}}[-/](?:\d{{4}}|\d{{2}})|\d{{1,2}}\.\d{{1,2}}\.\d{{4}}"
            rf"|{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}\.?,?(?:\s+\d{{4}})?"
            rf"|{_MONTH}\.?,?\s+\d{{4}})\b",
            re.IGNORECASE,
        ),
    ),
    ("date", re.compile(r"\d{4}\s*年(?:\s*\d{1,2}\s*月)?(?:\s*\d{1,2}\s*[日号])?|\d{1,2}\s*月\s*\d{1,2}\s*[日号]")),
    (
        "time",
        re.compile(
            r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*(?:[ap]\.m\.|[ap]m\b))?|\b\d{3,4}\s*(?:hours|hrs)\b|\b\d{1,2}\s*(?:[ap]\.m\.|[ap]m\b)",
            re.IGNORECASE,
        ),
    ),
    ("id", re.compile(r"\+?\(?\b\d{3}\)?[-. ]\d{3}[-. ]\d{4}\b|\b\d{3}-\d{2}-\d{4}\b|(?<![\d.])\d{6,}(?![\d.])")),
    (
        "name",
        re.compile(
            rf"\b(?:Drs?|Mr|Mrs|Ms|Prof)\b\.?\s+{_NAME}(?:\s+{_NAME}){{0,2}}|\b(?:Doctor|Nurse|Professor)\s+{_NAME}(?:\s+{_NAME}){{0,2}}"
        ),
    ),
    ("name", re.compile(rf"\b{_NAME}(?:\s+{_NAME}){{0,2}},?\s+(?:M\.?D|D\.?O|R\.?N|Ph\.?D)\b\.?")),
    ("name", re.compile(rf"(?<=\b[Nn]ame:)\s*{_NAME}(?:[ ,]+{_NAME}){{0,2}}")),
    ("name", re.compile(r"(?:姓名|患者|医师|医生|签名)\s*[:：]\s*[\u4e00-\u9fff]{2,4}")),
)


@dataclass(frozen=True, kw_only=True)
class Redacted:
    """A redacted text and the number of replacements."""

    text: str
    counts: Counter[str]
    """By kind: date, time, name, id."""


def redact(text: str, mark: str = MARK) -> Redacted:
    """Replace dates, times, names and identifiers by a mark.

    >>> redact("Compared to 03/04/2019. Discussed with Dr. Jane Roe at 10:15 am.").text
    'Compared to ___. Discussed with ___ at ___.'
    """
    counts: Counter[str] = Counter()
    for kind, pattern in _PATTERNS:
        text, found = pattern.subn(mark, text)
        counts[kind] += found
    return Redacted(text=text, counts=+counts)


def redact_report(report: RawReport, mark: str = MARK) -> tuple[RawReport, Counter[str]]:
    """Redact every section of a report; return it with the number of replacements by kind."""
    done = {one.name: redact(getattr(report, one.name), mark) for one in fields(report)}
    total: Counter[str] = Counter()
    for one in done.values():
        total.update(one.counts)
    return replace(report, **{name: one.text for name, one in done.items()}), total
