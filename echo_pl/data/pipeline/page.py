"""Studies of a shard as an HTML page: small images, both versions of the report, imputed sentences marked.

The page shows images and reports of patients.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from echo_pl.data.loading.request import GENERAL, GENERAL_PROMPT
from echo_pl.data.pipeline.shards import STATEMENTS
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study
from echo_pl.io.atomic import atomic_file
from echo_pl.pages.document import image_uri, render

THUMBNAIL = 384
"""Longest side of a small image in pixels."""
_SHOWN_ELSEWHERE = (STATEMENTS, "kind", "prompt", "impression")


def view_shard(path: Path, out: Path, *, studies: int = 20, keys: Sequence[str] = ()) -> int:
    """Write the page, and return the number of studies on it.

    Args:
        path: Shard in its corpus folder.
        out: Page to write, readable by its owner alone.
        studies: Most studies from the start of the shard.
        keys: Keys of studies to show instead.

    Raises:
        FileNotFoundError: If the shard is in no corpus folder.
        ValueError: If the corpus has no such shard, or the shard is damaged or has no such study.
    """
    index = CorpusIndex.load(path.parent)
    found = list(_chosen(path.parent, _named(index, path.name), studies, keys))
    if missing := sorted(set(keys) - {study.key for study in found}):
        raise ValueError(f"{path.name} has no study {missing[0]!r} ({len(missing)} missing in all)")
    title = f"{index.corpus}, {path.name}"
    with atomic_file(out, private=True) as file:
        file.write(corpus_page(title, index.fingerprint, found).encode())
    return len(found)


def _named(index: CorpusIndex, name: str) -> Shard:
    names = [shard for shards in index.splits.values() for shard in shards if shard.name == name]
    if not names:
        raise ValueError(f"the index has no shard {name!r}")
    return names[0]


def _chosen(folder: Path, shard: Shard, studies: int, keys: Sequence[str]) -> Iterator[Study]:
    samples = (raw for _, raw in read_samples(folder, shard, range(shard.samples)))
    chosen = (raw for raw in samples if raw.key in keys) if keys else islice(samples, studies)
    return (decode_study(raw) for raw in chosen)


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
    found = list(_statements(findings, study.meta.get(STATEMENTS, "[]")))
    if "".join(text for _, text, _ in found) != findings:
        return [_statement("", findings, False)]
    return [_statement(*one) for one in found]


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
