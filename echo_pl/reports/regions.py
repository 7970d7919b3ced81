"""The seven regions of a normalized report (METHOD.md 1), in the order in which every report visits them.

One table, read by every corpus writer and by its judge. It knows nothing of findings: only what is said of a region
in which there is none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Region:
    """One region of the chest and the explicit negatives a report may use for it."""

    name: str
    """Short identifier, used by findings to say where they belong."""
    title: str
    """The region as METHOD.md 1 calls it."""
    normal: tuple[str, ...]
    """Whole sentences saying that the region is normal, the most frequent first."""


REGIONS: tuple[Region, ...] = (
    Region(
        name="thorax",
        title="thorax",
        normal=(
            "the thorax is symmetric.",
            "there is no chest wall abnormality.",
            "symmetric chest without deformity.",
            "chest wall is unremarkable.",
            "normal contour of the thorax.",
        ),
    ),
    Region(
        name="mediastinum",
        title="mediastinum and trachea",
        normal=(
            "the mediastinum and trachea are midline.",
            "there is no mediastinal widening.",
            "midline trachea with normal mediastinum.",
            "trachea is central.",
            "mediastinal contours are normal.",
        ),
    ),
    Region(
        name="lungs",
        title="lung fields",
        normal=(
            "the lungs are clear.",
            "there is no focal consolidation.",
            "clear lungs on both sides.",
            "both lungs are well aerated.",
            "no focal lung lesion is seen.",
        ),
    ),
    Region(
        name="heart",
        title="cardiac silhouette",
        normal=(
            "the heart is normal in size.",
            "there is no cardiomegaly.",
            "normal cardiac silhouette.",
            "heart size is within normal limits.",
            "cardiac size is unremarkable.",
        ),
    ),
    Region(
        name="hila",
        title="hila",
        normal=(
            "the hila are unremarkable.",
            "there is no hilar enlargement.",
            "normal hilar shadows.",
            "both hila are of normal size.",
            "hilar contours are normal.",
        ),
    ),
    Region(
        name="diaphragm",
        title="diaphragm and costophrenic angles",
        normal=(
            "the costophrenic angles are sharp.",
            "there is no pleural effusion.",
            "sharp costophrenic angles on both sides.",
            "no pleural fluid is seen.",
            "diaphragm is smooth with clear angles.",
        ),
    ),
    Region(
        name="bones",
        title="bony structures",
        normal=(
            "the bony structures are intact.",
            "there is no fracture.",
            "intact bony structures.",
            "bones are unremarkable.",
            "no osseous abnormality is seen.",
        ),
    ),
)

REGION_NAMES: tuple[str, ...] = tuple(region.name for region in REGIONS)
