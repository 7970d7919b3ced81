"""One study as a corpus makes it and a shard keeps it: images, the report in two versions, labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from torch import Tensor

from echo_pl.structs import ReportText

_KEY = re.compile(r"[A-Za-z0-9_-]+")
Version = Literal["normalized", "raw"]
VERSIONS: tuple[Version, ...] = ("normalized", "raw")


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """One study's images, as a vision tower sees them."""

    features: Tensor
    """(image tokens of all images, E)."""
    grid_thw: Tensor
    """(images, 3)."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One chest X-ray study."""

    key: str
    """Unique in its corpus; letters, digits, ``-`` and ``_`` only (it names members of a tar file)."""
    images: tuple[Image.Image, ...]
    normalized: ReportText
    """Normalized report, which mentions every region in order (docs/explain/method.md)."""
    raw: ReportText | None = None
    """By exception, as a radiologist writes; where the corpus has it."""
    labels: tuple[str, ...] = ()
    """Positive finding labels."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Anything else worth keeping, as text: sizes of findings, view, age."""
    stored: StoredImages | None = None
    """In the place of images: what a frozen vision tower made of them."""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"key must be made of letters, digits, '-' and '_', got {self.key!r}")
        if not self.images and self.stored is None:
            raise ValueError(f"study {self.key} has no image")

    def report(self, version: Version) -> ReportText:
        """Return the report in one version.

        Raises:
            ValueError: If the study has no such version, or its findings are empty.
        """
        report = self.normalized if version == "normalized" else self.raw
        if report is None:
            raise ValueError(f"study {self.key} has no {version} report")
        if not report.findings.strip():
            raise ValueError(f"study {self.key} has a {version} report without findings")
        return report
