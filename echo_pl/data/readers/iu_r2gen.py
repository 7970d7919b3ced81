"""IU X-Ray as the R2Gen project (Chen et al., EMNLP 2020) prepared it: ``annotation.json`` and ``images/``.

The layout is described in that project's README (github.com/cuhksz-nlp/R2Gen, "Datasets"): an object of the lists train, val
and test, each of {"id": "CXR2384_IM-0942", "report", "image_path": ["CXR2384_IM-0942/0.png", ...], "split"}. ``report`` is the
findings section; there is no impression. The report's number in Open-i stands before the ``_`` of the id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from echo_pl.data.readers.iu_openi import CITATION, LICENCE
from echo_pl.data.readers.json_stream import read_entries
from echo_pl.data.readers.reader import Reject, SourceStudy
from echo_pl.data.readers.reading import Entry, View, find_image, find_images, read_studies, text_report
from echo_pl.data.readers.records import text_of, texts_of
from echo_pl.data.readers.tables import find_file, find_folder

SPLITS: Final = ("train", "val", "test")


class R2GenReader:
    """Reads R2Gen's copy of IU X-Ray.

    Args:
        source: the folder with ``annotation.json`` and ``images/``.

    Raises:
        FileNotFoundError: one of them is not there.
    """

    name = "iu_r2gen"
    licence = LICENCE
    citation = CITATION

    def __init__(self, source: Path | str) -> None:
        root = Path(source)
        self._annotation = find_file(root, "annotation.json", what="annotation of R2Gen")
        self._images = find_folder(root, "images", what="images of R2Gen")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies of train, val and test.

        Raises:
            ValueError: the JSON has none of these lists.
        """
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[Entry[tuple[str, Mapping[str, Any]]] | Reject]:
        found: list[str] = []
        for item in read_entries(self._annotation):
            if isinstance(item, Reject):
                yield item
                return
            split, records = item
            found.append(split)
            if split not in SPLITS or not isinstance(records, list):
                continue
            for place, record in enumerate(records):
                if isinstance(record, Mapping):
                    yield Entry(name=str(record.get("id") or ""), content=(split, record))
                else:
                    yield Reject(key=f"{split} {place}", reason="damaged_row", detail="the entry is no object")
        if not set(SPLITS) & set(found):
            raise ValueError(f"{self._annotation} lacks the lists {list(SPLITS)}; it has {found[:10]}")

    def _make(self, key: str, content: tuple[str, Mapping[str, Any]]) -> SourceStudy:
        split, record = content
        images, lost = find_images(map(View, texts_of(record, "image_path")), lambda one: find_image(self._images, one.file))
        return SourceStudy(
            key=key,
            patient=key.partition("_")[0],
            images=images,
            lost=lost,
            report=text_report(findings=text_of(record, "report")),
            split=split,
        )
