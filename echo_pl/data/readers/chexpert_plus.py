"""CheXpert-Plus: a table with a row per image and the sections of its report, and images as PNG, DICOM or JPEG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    SourceStudy,
    find_images,
    non_empty,
    official_split,
    read_studies,
    require,
    text_report,
)
from echo_pl.data.readers.tables import ImageRows, filled, find_file, find_folder, gather_rows, read_csv

TABLE: Final = "df_chexpert_plus_240401.csv"
SPLITS: Final = {"train": "train", "valid": "val"}
REQUIRED: Final = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "section_clinical_history"),
    *("section_history", "section_comparison", "section_technique", "section_findings", "section_impression", "split"),
)
# The archive of PNGs unpacks to PNG/; DICOM/ has a folder for each of two copies.
_FOLDERS: Final = {
    "png": ("PNG/PNG", "PNG", "PNGs"),
    "dicom": ("DICOM/Uncompressed", "DICOM/Compressed", "DICOM", "DICOMs"),
    "jpg": ("CheXpert-v1.0", "CheXpert-v1.0-small"),
}
_COLUMN: Final = {"png": "path_to_image", "dicom": "path_to_dcm", "jpg": "path_to_image"}


class CheXpertPlusReader:
    """CheXpert-Plus: one table with a row per image and the sections of its report, images as PNG, DICOM or JPEG.

    The columns of ``df_chexpert_plus_240401.csv`` are described at aimi.stanford.edu/datasets/chexpert-plus (Chambon et al.,
    arXiv 2405.19538, section 3). ``path_to_image`` ends in .jpg although the unpacked file is a .png; the JPEGs of the older
    CheXpert (v1.0, v1.0-small) have the same paths. Splits are train and valid; there is no test split. Only a quarter of the
    studies have findings.

    Args:
        source: Folder of the table.
        files: Copy of the images to use.
        images: Folder that contains ``train/`` and ``valid/``; None: ``PNG``, ``DICOM`` (or ``Uncompressed`` in it) or
            ``CheXpert-v1.0`` beside the table.
    """

    name = "chexpert_plus"
    licence = "Stanford University Dataset Research Use Agreement"
    citation = "Chambon et al.: CheXpert Plus: Augmenting a Large Chest X-ray Dataset with Text Radiology Reports. arXiv 2405.19538"

    def __init__(
        self, source: Path | str, *, files: Literal["png", "dicom", "jpg"] = "png", images: Path | str | None = None
    ) -> None:
        if files not in _FOLDERS:
            raise ValueError(f"files must be one of {list(_FOLDERS)}, got {files!r}")
        root = Path(source)
        self._table = find_file(root, TABLE, TABLE + ".gz", what="table of CheXpert-Plus")
        self._images = find_folder(root, *_FOLDERS[files], what="images of CheXpert-Plus", given=images)
        self._files = files

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of their first rows."""
        entries = gather_rows(lambda: read_csv(self._table, REQUIRED), self._study, self._image)
        return read_studies(entries, self._make, skip=skip)

    def _study(self, row: Mapping[str, str]) -> str:
        """``patient1/study2`` of ``train/patient1/study2/view1_frontal.jpg``."""
        parts = PurePosixPath(row[_COLUMN[self._files]]).parts
        return "/".join(parts[-3:-1]) if len(parts) >= 3 else ""

    def _image(self, row: Mapping[str, str]) -> NamedImage:
        file = row[_COLUMN[self._files]]
        if self._files == "png" and file:
            file = str(PurePosixPath(file).with_suffix(".png"))
        return NamedImage(file, filled(row["ap_pa"]) or filled(row["frontal_lateral"]))

    def _make(self, key: str, rows: ImageRows) -> SourceStudy:
        row = {name: filled(cell) for name, cell in rows.first.items()}
        require({name: row[name] for name in ("deid_patient_id", "split")})
        split = official_split(row["split"], SPLITS)
        images, lost = find_images(rows.images, self._images)
        return SourceStudy(
            key=key,
            patient=row["deid_patient_id"],
            images=images,
            lost=lost,
            report=text_report(
                findings=row["section_findings"],
                impression=row["section_impression"],
                indication=row["section_clinical_history"] or row["section_history"],
                comparison=row["section_comparison"],
                technique=row["section_technique"],
            ),
            split=split,
            meta=non_empty(age=row.get("age", ""), sex=row.get("sex", ""), order=row.get("patient_report_date_order", "")),
        )
