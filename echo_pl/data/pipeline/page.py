"""Studies of a shard as an HTML page: small images, both versions of the report, imputed sentences marked.

The page shows images and reports of patients.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from echo_pl.data.loading.request import GENERAL, GENERAL_PROMPT
from echo_pl.data.pipeline.sharding import STATEMENTS
from echo_pl.data.store.study import Study
from echo_pl.pages.document import image_uri, render

THUMBNAIL = 384
"""Longest side of a small image in pixels."""
_SHOWN_ELSEWHERE = (STATEMENTS, "kind", "prompt", "impression")


def corpus_page(title: str, fingerprint: str, studies: Iterable[Study]) -> str:
    """HTML text of the page."""
    return render("corpus.html", title=title, fingerprint=fingerprint, studies=map(_study_view, studies))


def _study_view(study: Study) -> dict[str, Any]:
    is_general = study.meta.get("kind") == GENERAL
    return {
        "key": study.key,
        "images": [image_uri(image, mode="RGB", side=THUMBNAIL, kind="jpeg") for image in study.images],
        "prompt": study.meta.get("prompt", GENERAL_PROMPT) if is_general else None,
        "text": study.normalized.findings,
        "findings": marked_findings(study),
        "impression": _statement("impression", study.normalized.impression, study.meta.get("impression") == "imputed"),
        "raw": study.raw,
        "labels": ", ".join(study.labels) or "none",
        "facts": ", ".join(f"{name} {value}" for name, value in study.meta.items() if name not in _SHOWN_ELSEWHERE),
    }


def marked_findings(study: Study) -> list[dict[str, Any]]:
    """Statements of the normalized findings, each with its region and whether it is imputed.

    Findings without notes on their statements, or with notes that do not fit the text, are one statement without a region.
    """
    findings = study.normalized.findings
    parts = list(_statements(findings, study.meta.get(STATEMENTS, "[]")))
    if "".join(text for _, text, _ in parts) != findings:
        return [_statement("", findings, False)]
    return [_statement(*part) for part in parts]


def _statements(findings: str, notes: str) -> Iterator[tuple[str, str, bool]]:
    """(section, text with the space before it, imputed) of each statement."""
    start = 0
    try:
        for section, length, imputed in json.loads(notes):
            begin = start + (len(findings[start:]) - len(findings[start:].lstrip(" ")))
            end = begin + int(length)
            if end > len(findings):
                return
            yield str(section), findings[start:end], bool(imputed)
            start = end
    except (ValueError, TypeError):
        return


def _statement(section: str, text: str, imputed: bool) -> dict[str, Any]:
    return {"section": section, "text": text.strip(), "space": text.startswith(" "), "imputed": imputed}
