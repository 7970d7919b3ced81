"""Dataset JSON of the official ECHO evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from echo_pl.data.readers.json_stream import read_records, text_of, texts_of
from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    RejectedError,
    SourceStudy,
    find_images,
    read_studies,
    text_report,
)


class ECHOJSONReader:
    """Dataset JSON of the official ECHO evaluation.

    A list of ``{"sample_id", "images": [path, ...], "ground_truth": {"findings", "impression"}}`` in UTF-8. Paths are relative
    to the JSON's folder or to a folder of images; an absolute path must be inside one of the two.

    Args:
        source: Path of the JSON.
        images: Second folder for relative paths.
        split: Split of all studies; None: no official split.
        language: Language of the reports.
        licence: Licence of the data; the format itself has none.
    """

    name = "echo_json"
    citation = "ECHO, arXiv 2604.09450 (the format; cite the data's own source)"

    def __init__(
        self,
        source: Path | str,
        *,
        images: Path | str | None = None,
        split: str | None = "test",
        language: str = "en",
        licence: str = "unknown",
    ) -> None:
        self._source = Path(source)
        if not self._source.is_file():
            raise FileNotFoundError(f"no dataset JSON at {source}")
        self._roots = [self._source.parent] if images is None else [self._source.parent, Path(images)]
        if not self._roots[-1].is_dir():
            raise FileNotFoundError(f"no folder of images at {images}")
        self._split = split
        self._language = language
        self.licence = licence

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of the JSON."""
        return read_studies(read_records(self._source, "sample_id"), self._make, skip=skip)

    def _make(self, key: str, record: Mapping[str, Any]) -> SourceStudy:
        truth = record.get("ground_truth")
        if not isinstance(truth, Mapping):
            raise RejectedError("no_report", "it has no ground_truth")
        images, lost = find_images(map(NamedImage, texts_of(record, "images")), *self._roots)
        return SourceStudy(
            key=key,
            patient=key,
            images=images,
            lost=lost,
            report=text_report(findings=text_of(truth, "findings"), impression=text_of(truth, "impression")),
            split=self._split,
            language=self._language,
        )
