"""ReXGradient-160K: one JSON of metadata per split, and PNGs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from echo_pl.data.readers.json_stream import read_entries, text_of, texts_of
from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    RejectedError,
    SourceEntry,
    SourceStudy,
    find_images,
    non_empty,
    read_studies,
    require,
    text_report,
)

logger = logging.getLogger(__name__)
SPLITS: Final = {"train": "train", "valid": "val", "test": "test"}
_IMAGES: Final = "deid_png"


class ReXGradientReader:
    """ReXGradient-160K: one JSON of metadata per split and the PNGs of ``deid_png.tar``.

    The layout is that of the dataset's card (huggingface.co/datasets/rajpurkarlab/ReXGradient-160K; Zhang et al., arXiv
    2505.00228): ``metadata/{train,valid,test}_metadata_view_position.json``, an object with one entry per study: PatientID,
    PatientSex, PatientAge, Indication, Comparison, Findings, Impression and the lists ImagePath ("../deid_png/...", relative to
    ``metadata/``), ImageModality and ImageViewPosition (null in places). The CSVs beside them have no image paths, and
    ``metadata/*_metadata.json`` no view positions; neither is read.

    Args:
        source: Folder with ``metadata/`` and ``deid_png/``. Splits without a JSON are omitted, with a warning.
        images: Unpacked ``deid_png``; None: that beside ``metadata/``.
    """

    name = "rexgradient"
    licence = "ReXGradient-160K Non-Commercial Data Access and Use Agreement"
    citation = "Zhang et al.: ReXGradient-160K: A Large-Scale Publicly Available Dataset of Chest Radiographs. arXiv 2505.00228"

    def __init__(self, source: Path | str, *, images: Path | str | None = None) -> None:
        root = Path(source)
        named = {split: root / "metadata" / f"{split}_metadata_view_position.json" for split in SPLITS}
        self._files = {split: path for split, path in named.items() if path.is_file()}
        if not self._files:
            raise FileNotFoundError(f"no metadata of ReXGradient-160K: {' or '.join(str(path) for path in named.values())}")
        if absent := sorted(set(SPLITS) - set(self._files)):
            logger.warning("%s has no metadata of %s: its studies are omitted", root / "metadata", " and ".join(absent))
        self._images = root / _IMAGES if images is None else Path(images)
        if not self._images.is_dir():
            raise FileNotFoundError(f"no folder {self._images}: unpack deid_png.tar there, or give images=FOLDER")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies of train, valid and test, as the files have them."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[SourceEntry[tuple[str, Any]] | Reject]:
        for split, path in self._files.items():
            for item in read_entries(path):
                yield item if isinstance(item, Reject) else SourceEntry(name=item[0], content=(split, item[1]))

    def _make(self, key: str, content: tuple[str, Any]) -> SourceStudy:
        split, record = content
        if not isinstance(record, Mapping):
            raise RejectedError("damaged_row", "the entry is no object")
        paths = texts_of(record, "ImagePath")
        views = texts_of(record, "ImageViewPosition")[: len(paths)]
        patient = text_of(record, "PatientID")
        require({"PatientID": patient})
        relative = (path.removeprefix(f"../{_IMAGES}/") for path in paths)
        named = [NamedImage(*one) for one in zip_longest(relative, views, fillvalue="")]
        images, lost = find_images(named, self._images)
        modalities = texts_of(record, "ImageModality")
        return SourceStudy(
            key=key,
            patient=patient,
            images=images,
            lost=lost,
            report=text_report(
                **{name: text_of(record, name.title()) for name in ("findings", "impression", "indication", "comparison")}
            ),
            split=SPLITS[split],
            modality=modalities[0] if modalities else "",
            meta=non_empty(age=text_of(record, "PatientAge"), sex=text_of(record, "PatientSex")),
        )
