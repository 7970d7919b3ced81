"""Which split a study belongs to: the dataset's own, or one by patient.

Knows studies; a split by patient is a function of seed and patient alone, so no patient is in two of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from echo_pl.data.pipeline.listing import Listing
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import SourceStudy
from echo_pl.data.readers.split import patient_split

logger = logging.getLogger(__name__)
SPLITS: Final = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Puts studies into splits."""

    official: bool
    seed: int = 0
    val_share: float = 0.0
    test_share: float = 0.0

    def split_of(self, study: SourceStudy) -> str | None:
        """One of :data:`SPLITS`; None where the dataset, which was to say, does not."""
        if self.official:
            return study.split if study.split in SPLITS else None
        return patient_split(study.patient, seed=self.seed, val_share=self.val_share, test_share=self.test_share)


def choose_splitter(settings: Settings, listing: Listing) -> Splitter:
    """The dataset's own splits or those by patient, as the settings and the listing say.

    Raises:
        ValueError: some studies have an official split and some have none, and the settings leave it open; or none has one.
    """
    if settings.splits == "auto" and 0 < listing.official < listing.studies:
        raise ValueError(
            f"{listing.official} of {listing.studies} studies have an official split, the others none: say splits=official (the "
            "others are left out) or splits=patient (all are split anew, by patient)"
        )
    if settings.splits == "official" and not listing.official:
        raise ValueError("splits=official, but no study of this dataset has an official split; say splits=patient")
    if settings.splits == "official" or (settings.splits == "auto" and listing.official):
        if (settings.val_share, settings.test_share) != (Settings.val_share, Settings.test_share):
            logger.warning(
                "val_share and test_share are not used: the splits are the dataset's own; say splits=patient to have others"
            )
        return Splitter(official=True)
    return Splitter(official=False, seed=settings.seed, val_share=settings.val_share, test_share=settings.test_share)
