"""IU X-Ray as the Kaggle set ``raddar/chest-xrays-indiana-university`` has it: two tables and a folder of PNGs.

The layout is that of the set's page (kaggle.com/datasets/raddar/chest-xrays-indiana-university): ``indiana_reports.csv`` with
uid, MeSH, Problems, image, indication, comparison, findings, impression; ``indiana_projections.csv`` with uid, filename,
projection (Frontal, Lateral); ``images/images_normalized/``. Keys are those of Open-i (``CXR`` and the uid).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from echo_pl.data.readers.iu_openi import CITATION, LICENCE
from echo_pl.data.readers.reader import Reject, SourceStudy
from echo_pl.data.readers.reading import Entry, View, find_image, find_images, read_studies, text_report
from echo_pl.data.readers.tables import filled, find_file, find_folder, read_csv

REPORTS = ("uid", "MeSH", "indication", "comparison", "findings", "impression")
PROJECTIONS = ("uid", "filename", "projection")


class KaggleIUReader:
    """Reads the two tables.

    Args:
        source: the folder with them.
        images: the folder of PNGs; None: ``images/images_normalized`` or ``images`` beside the tables.

    Raises:
        FileNotFoundError: a table or the folder is not there.
    """

    name = "iu_kaggle"
    licence = LICENCE
    citation = CITATION

    def __init__(self, source: Path | str, *, images: Path | str | None = None) -> None:
        root = Path(source)
        self._reports = find_file(root, "indiana_reports.csv", what="reports of IU X-Ray")
        self._projections = find_file(root, "indiana_projections.csv", what="projections of IU X-Ray")
        names = ("images/images_normalized", "images") if images is None else (str(Path(images).absolute()),)
        self._images = find_folder(root, *names, what="images of IU X-Ray")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of the reports; behind them, as rejects, images that have no report."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[Entry[tuple[Mapping[str, str], tuple[View, ...]]] | Reject]:
        views: dict[str, tuple[View, ...]] = {}
        damaged: list[Reject] = []
        for row in read_csv(self._projections, PROJECTIONS):
            if isinstance(row, Reject):
                damaged.append(row)
                continue
            uid = filled(row.values["uid"])
            views[uid] = (*views.get(uid, ()), View(filled(row.values["filename"]), filled(row.values["projection"])))
        without = dict.fromkeys(views)
        for row in read_csv(self._reports, REPORTS):
            if isinstance(row, Reject):
                yield row
                continue
            uid = filled(row.values["uid"])
            without.pop(uid, None)
            yield Entry(name=f"CXR{uid}" if uid else "", content=(row.values, views.get(uid, ())))
        yield from damaged
        for uid in without:
            yield Reject(key=f"CXR{uid}", reason="no_report", detail=f"{len(views[uid])} images, no row of reports")

    def _make(self, key: str, content: tuple[Mapping[str, str], tuple[View, ...]]) -> SourceStudy:
        row, views = content
        images, lost = find_images(views, lambda one: find_image(self._images, one.file, view=one.view))
        return SourceStudy(
            key=key,
            patient=key,
            images=images,
            lost=lost,
            report=text_report(**{name: filled(row[name]) for name in ("findings", "impression", "indication", "comparison")}),
            labels=tuple(term for term in row["MeSH"].split(";") if term),
        )
