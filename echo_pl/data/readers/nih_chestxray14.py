"""NIH ChestX-ray14: images with labels, from which reports are written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    RejectedError,
    SourceEntry,
    SourceStudy,
    find_image,
    loggable_name,
    non_empty,
    read_studies,
    require,
)
from echo_pl.data.readers.split import patient_split
from echo_pl.data.readers.tables import filled, find_file, read_csv
from echo_pl.data.readers.text_files import open_text
from echo_pl.data.synthetic.grammar import ReportGrammar
from echo_pl.data.synthetic.nih import MAX_FINDINGS, NIH_FINDINGS, NO_FINDING, drawn
from echo_pl.reports.report import RawReport

REQUIRED = ("Image Index", "Finding Labels", "Patient ID", "View Position")
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")


class NIHChestXray14Reader:
    """NIH ChestX-ray14 as the NIH publishes it: images with up to 14 labels; reports are written from them, as it has none.

    The layout is that of README_CHESTXRAY.pdf and of the files at nihcc.app.box.com/v/ChestXray-NIHCC: ``Data_Entry_2017.csv``
    (or ``Data_Entry_2017_v2020.csv``) with Image Index, Finding Labels (joined by ``|``), Follow-up #, Patient ID, Patient Age,
    Patient Gender (in some copies Patient Sex), View Position ...; ``train_val_list.txt`` and ``test_list.txt``, which share no
    patient; ``images/`` or ``images_001/images`` to ``images_012/images``. The first list is divided into train and val by
    patient. Reports are those of :mod:`echo_pl.data.synthetic.nih`, without side, size or anything else that labels omit.

    Args:
        source: Folder with table, lists and images.
        val_share: Expected share of val among the patients of ``train_val_list.txt``.
        seed: Seed of this choice, and of the words of reports.
        reports: ``labels`` writes a report from an image's labels, and notes it in ``meta``; ``none`` leaves it empty.
    """

    name = "nih_chestxray14"
    licence = "no restriction on use; name the NIH Clinical Center and link nihcc.app.box.com/v/ChestXray-NIHCC"
    citation = "Wang et al.: ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR 2017"

    def __init__(self, source: Path | str, *, val_share: float = 0.1, seed: int = 0, reports: str = "labels") -> None:
        if reports not in ("labels", "none"):
            raise ValueError(f"reports must be labels or none, got {reports!r}: the dataset has none of its own")
        self._root = Path(source)
        self._table = find_file(self._root, *TABLES, what="table of NIH ChestX-ray14")
        self._train_val = find_file(self._root, "train_val_list.txt", what="list of training images")
        self._test = find_file(self._root, "test_list.txt", what="list of test images")
        self._folders = [self._root / "images", *(self._root / f"images_{n:03d}" / "images" for n in range(1, 13))]
        if not any(folder.is_dir() for folder in self._folders):
            raise FileNotFoundError(f"no images in {source}: the folder images or images_001/images is expected there")
        patient_split("", seed=seed, val_share=val_share, test_share=0)  # raises ValueError for a share out of range
        self._val_share = val_share
        self._seed = seed
        self._grammar = ReportGrammar(NIH_FINDINGS, max_findings=MAX_FINDINGS) if reports == "labels" else None

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield one study per image, in the order of the table."""
        folders = {entry.name: folder for folder in self._folders if folder.is_dir() for entry in os.scandir(folder)}
        listed = dict.fromkeys(_lines(self._train_val), "train") | dict.fromkeys(_lines(self._test), "test")
        return read_studies(self._entries(), lambda key, row: self._make(key, row, folders, listed), skip=skip, text_needed=False)

    def _entries(self) -> Iterator[SourceEntry[Mapping[str, str]] | Reject]:
        for row in read_csv(self._table, REQUIRED):
            if isinstance(row, Reject):
                yield row
            else:
                yield SourceEntry(name=Path(filled(row.values["Image Index"])).stem, content=row.values)

    def _make(self, key: str, row: Mapping[str, str], folders: Mapping[str, Path], listed: Mapping[str, str]) -> SourceStudy:
        image, patient = filled(row["Image Index"]), filled(row["Patient ID"])
        labels = tuple(label for label in filled(row["Finding Labels"]).split("|") if label)
        require({"Patient ID": patient, "Finding Labels": "|".join(labels)})
        split = listed.get(image)
        if split is None:
            raise RejectedError("missing_value", "it is in neither list")
        if split == "train":
            split = patient_split(patient, seed=self._seed, val_share=self._val_share, test_share=0)
        view = filled(row["View Position"])
        report, notes = self._report(image, labels)
        sex = row.get("Patient Gender", "") or row.get("Patient Sex", "")
        follow_up = filled(row.get("Follow-up #", ""))
        return SourceStudy(
            key=key,
            patient=patient,
            images=(find_image(folders.get(image, self._folders[0]), NamedImage(image, view)),),
            report=report,
            split=split,
            labels=labels,
            meta=non_empty(age=filled(row.get("Patient Age", "")), sex=filled(sex), follow_up=follow_up, **notes),
        )

    def _report(self, image: str, labels: Sequence[str]) -> tuple[RawReport, dict[str, str]]:
        if self._grammar is None:
            return RawReport(), {}
        names = [label.lower() for label in labels if label != NO_FINDING]
        if unknown := [name for name in names if name not in self._grammar.findings]:
            raise RejectedError("unknown_label", loggable_name(unknown[0]))
        written = self._grammar.normalized(*drawn(image, names, self._seed))
        return RawReport(findings=written.findings, impression=written.impression), {"report": "written from labels"}


def _lines(path: Path) -> list[str]:
    with open_text(path) as stream:
        return [line.strip() for line in stream if line.strip()]
