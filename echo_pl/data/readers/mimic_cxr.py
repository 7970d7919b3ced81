"""MIMIC-CXR-JPG: images and tables from PhysioNet's mimic-cxr-jpg, reports from mimic-cxr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final

from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    RejectedError,
    SourceStudy,
    find_images,
    non_empty,
    official_split,
    read_studies,
    require,
)
from echo_pl.data.readers.sections import split_sections
from echo_pl.data.readers.tables import ImageRows, filled, find_file, gather_rows, read_csv, readable_rows
from echo_pl.data.readers.text_files import decode

Labels = tuple[tuple[str, ...], tuple[str, ...]]
"""Positive, uncertain."""
SPLITS: Final = {"train": "train", "validate": "val", "test": "test"}
MAX_REPORT_BYTES: Final = 1 << 20
_POSITIVE, _UNCERTAIN = "1.0", "-1.0"


class MIMICCXRReader:
    """MIMIC-CXR-JPG: images and their table from PhysioNet's mimic-cxr-jpg, reports from mimic-cxr.

    The layout is described at physionet.org/content/mimic-cxr-jpg/2.1.0 and physionet.org/content/mimic-cxr/2.1.0 (both keep
    the file names of 2.0.0): ``mimic-cxr-2.0.0-metadata.csv.gz`` (one row per image: dicom_id, subject_id, study_id,
    ViewPosition ...), ``-split.csv.gz``, ``-chexpert.csv.gz``, ``files/p10/p10000032/s50414267/{dicom_id}.jpg``, and of
    mimic-cxr-reports.zip ``files/p10/p10000032/s50414267.txt``. Names of images, splits and labels of all studies are kept in
    memory (0.2 GB for the whole dataset), reports are not.

    Args:
        source: Folder of mimic-cxr-jpg, with the tables and ``files/``.
        reports: Folder whose ``files/`` contains the reports; None: they are beside the images.
    """

    name = "mimic_cxr"
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    citation = "Johnson et al.: MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs. arXiv 1901.07042"

    def __init__(self, source: Path | str, *, reports: Path | str | None = None) -> None:
        root = Path(source)
        self._metadata = _table(root, "metadata")
        self._split = _table(root, "split")
        labels = [root / f"mimic-cxr-2.0.0-chexpert.csv{suffix}" for suffix in (".gz", "")]
        self._labels = next((path for path in labels if path.is_file()), None)
        self._images = root / "files"
        self._reports = self._images if reports is None else Path(reports) / "files"
        for folder in (self._images, self._reports):
            if not folder.is_dir():
                raise FileNotFoundError(f"no folder {folder}: the images (and reports) of MIMIC-CXR-JPG are expected there")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of the metadata table, then, as rejects, damaged rows of the other tables."""
        entries = gather_rows(
            lambda: read_csv(self._metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")),
            lambda row: filled(row["study_id"]),
            lambda row: NamedImage(filled(row["dicom_id"]), filled(row["ViewPosition"])),
        )
        damaged: list[Reject] = []
        splits, labels = self._read_splits(damaged), self._read_labels(damaged)
        return read_studies(chain(entries, damaged), lambda key, rows: self._make(key, rows, splits, labels), skip=skip)

    def _make(self, study: str, rows: ImageRows, splits: Mapping[str, str], labels: Mapping[str, Labels]) -> SourceStudy:
        patient = filled(rows.first["subject_id"])
        require({"subject_id": patient})
        split = official_split(splits.get(study, ""), SPLITS)
        positive, uncertain = labels.get(study, ((), ()))
        folder = f"p{patient[:2]}/p{patient}"
        named = [NamedImage(one.file and f"{folder}/s{study}/{one.file}.jpg", one.view) for one in rows.images]
        images, lost = find_images(named, self._images)
        return SourceStudy(
            key=study,
            patient=patient,
            images=images,
            lost=lost,
            report=split_sections(_read_report(self._reports / folder / f"s{study}.txt")),
            split=split,
            labels=positive,
            meta=non_empty(
                uncertain_labels="|".join(uncertain),
                procedure=filled(rows.first.get("PerformedProcedureStepDescription", "")),
            ),
        )

    def _read_splits(self, damaged: list[Reject]) -> dict[str, str]:
        rows = readable_rows(read_csv(self._split, ("study_id", "split")), damaged)
        return {row["study_id"]: sys.intern(row["split"]) for row in rows}

    def _read_labels(self, damaged: list[Reject]) -> dict[str, Labels]:
        """Positive and uncertain findings of each study; equal ones are stored once."""
        if self._labels is None:
            return {}
        shared: dict[Labels, Labels] = {}
        labels: dict[str, Labels] = {}
        for row in readable_rows(read_csv(self._labels, ("subject_id", "study_id")), damaged):
            cells = [(name, value) for name, value in row.items() if not name.endswith("_id")]
            found = tuple(tuple(name for name, value in cells if value == wanted) for wanted in (_POSITIVE, _UNCERTAIN))
            both = (found[0], found[1])
            labels[row["study_id"]] = shared.setdefault(both, both)
        return labels


def _table(root: Path, name: str) -> Path:
    return find_file(root, f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.0.0-{name}.csv", what=f"{name} table of MIMIC-CXR-JPG")


def _read_report(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise RejectedError("too_large", f"{path.name} has more than {MAX_REPORT_BYTES} bytes")
        return decode(path.read_bytes())
    except FileNotFoundError:
        raise RejectedError("no_report", f"{path.name} is missing") from None
    except (OSError, UnicodeError) as error:
        raise RejectedError("undecodable_text", f"{path.name}: {type(error).__name__}") from None
