"""PadChest-GR: grounded reports in Spanish and English, and PNGs of 16 bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

from echo_pl.data.readers.json_stream import objects_of, read_records, text_of, texts_of
from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    SourceStudy,
    find_image,
    non_empty,
    official_split,
    read_studies,
    require,
    text_report,
)
from echo_pl.data.readers.tables import filled, find_file, find_folder, read_csv, readable_rows

REPORTS: Final = "grounded_reports_20240819.json"
SPLITS: Final = {"train": "train", "validation": "val", "test": "test"}
_FOLDERS: Final = ("PadChest_GR", "Padchest_GR_files/PadChest_GR", "Padchest_GR_files", "images")


class PadChestGRReader:
    """PadChest-GR: grounded reports in Spanish and English, sentence by sentence, and PNGs of 16 bit.

    The layout is that of the dataset's page (bimcv.cipf.es/bimcv-projects/padchest-gr; de Castro et al., arXiv 2411.05085):
    ``grounded_reports_20240819.json``, a list of studies with StudyID, ImageID and ``findings``, each with sentence_en,
    sentence_es, abnormal and, if positive, labels and locations; ``master_table.csv`` (unpacked from ``master_table.csv.zip``)
    with StudyID, PatientID and split (train, validation, test); ``PadChest_GR.zip.001`` to ``.037``, one archive in pieces.
    A study has one frontal image and no impression.

    Args:
        source: Folder with the JSON and the table.
        language: Language of the sentences.
        images: Folder of PNGs; None: one of the folders that the dataset's archives unpack to.
    """

    name = "padchest_gr"
    licence = "BIMCV Research Use Agreement for PadChest-GR (bimcv.cipf.es/bimcv-projects/padchest-gr)"
    citation = (
        "de Castro et al.: PadChest-GR: A Bilingual Chest X-ray Dataset for Grounded Radiology Report Generation. arXiv 2411.05085"
    )

    def __init__(self, source: Path | str, *, language: Literal["en", "es"] = "en", images: Path | str | None = None) -> None:
        if language not in ("en", "es"):
            raise ValueError(f"language must be 'en' or 'es', got {language!r}")
        root = Path(source)
        self._language = language
        self._reports = find_file(root, REPORTS, what="reports of PadChest-GR")
        self._table = find_file(root, "master_table.csv", "master_table.csv.gz", what="table of PadChest-GR")
        self._images = find_folder(root, *_FOLDERS, what="images of PadChest-GR", given=images)

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of the JSON, then, as rejects, damaged rows of the table."""
        damaged: list[Reject] = []
        rows = readable_rows(read_csv(self._table, ("StudyID", "PatientID", "split")), damaged)
        known_studies = {row["StudyID"]: (filled(row["PatientID"]), filled(row["split"])) for row in rows}
        entries = chain(read_records(self._reports, "StudyID"), damaged)
        return read_studies(entries, lambda key, record: self._make(key, record, known_studies), skip=skip)

    def _make(self, key: str, record: Mapping[str, Any], known_studies: Mapping[str, tuple[str, str]]) -> SourceStudy:
        patient, split = known_studies.get(text_of(record, "StudyID"), ("", ""))
        require({"PatientID in master_table": patient, "split in master_table": split})
        split = official_split(split, SPLITS)
        findings = objects_of(record, "findings")
        labels = [label for finding in findings if finding.get("abnormal") is True for label in texts_of(finding, "labels")]
        return SourceStudy(
            key=key,
            patient=patient,
            images=(find_image(self._images, NamedImage(text_of(record, "ImageID"))),),
            report=text_report(findings=" ".join(text_of(finding, f"sentence_{self._language}") for finding in findings)),
            split=split,
            language=self._language,
            labels=tuple(dict.fromkeys(labels)),
            meta=non_empty(locations="|".join(dict.fromkeys(loc for one in findings for loc in texts_of(one, "locations")))),
        )
