"""Studies of a shard as pieces of a page: small images inlined, both versions of the report, what was imputed marked.

Knows studies and HTML; the page around them is the caller's. What it makes shows patients' images and reports.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Mapping

from PIL import Image

from echo_pl.data.loading.request import GENERAL, GENERAL_PROMPT
from echo_pl.data.pipeline.sharding import STATEMENTS
from echo_pl.data.store.study import Study

THUMBNAIL = 384
"""Longest side of a small image in pixels."""
_SHOWN_ELSEWHERE = (STATEMENTS, "kind", "prompt", "impression")


def study_fragment(study: Study) -> str:
    """One study, with the classes of :mod:`echo_pl.evaluation.document`."""
    images = "".join(f'<img src="{_inlined(image)}" alt="image {place}">' for place, image in enumerate(study.images))
    if study.meta.get("kind") == GENERAL:
        report = _section("General sample", _prompted(study))
    else:
        impression = _statement("impression", study.normalized.impression, study.meta.get("impression") == "imputed")
        report = _section("Normalized", _report(marked_findings(study), impression)) + _original(study)
    labels = ", ".join(study.labels) or "none"
    known = ", ".join(f"{name} {value}" for name, value in _told(study.meta).items())
    foot = f'<p class="soft">Labels: {html.escape(labels)}. {html.escape(known)}</p>'
    head = f"<h2>{html.escape(study.key)}</h2>"
    return f'{head}<div class="study"><aside>{images}</aside><div class="report">{report}{foot}</div></div>'


def marked_findings(study: Study) -> str:
    """The normalized findings as HTML; what the original does not say is in italics and says so on hover.

    Findings without notes of their statements, or with such as do not fit, are shown as they are.
    """
    findings = study.normalized.findings
    parts = list(_statements(findings, study.meta.get(STATEMENTS, "[]")))
    if "".join(text for _, text, _ in parts) != findings:
        return html.escape(findings)
    return "".join(_statement(section, text, imputed) for section, text, imputed in parts)


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


def _statement(section: str, text: str, imputed: bool) -> str:
    shown = html.escape(text.strip())
    space = " " if text.startswith(" ") else ""
    if imputed:
        return f'{space}<i class="soft" title="{html.escape(section)}: imputed, the original does not mention it">{shown}</i>'
    return f'{space}<span title="{html.escape(section)}">{shown}</span>'


def _report(findings: str, impression: str) -> str:
    """Both are HTML already."""
    return f'<p><span class="head">Findings</span>{findings}</p><p><span class="head">Impression</span>{impression}</p>'


def _original(study: Study) -> str:
    if study.raw is None:
        return ""
    return _section("Original", _report(html.escape(study.raw.findings), html.escape(study.raw.impression)))


def _prompted(study: Study) -> str:
    prompt, text = html.escape(study.meta.get("prompt", GENERAL_PROMPT)), html.escape(study.normalized.findings)
    return f'<p><span class="head">Prompt</span>{prompt}</p><p><span class="head">Text</span>{text}</p>'


def _section(title: str, content: str) -> str:
    return f'<div class="report"><h3>{title}</h3>{content}</div>'


def _told(meta: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in meta.items() if name not in _SHOWN_ELSEWHERE}


def _inlined(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
