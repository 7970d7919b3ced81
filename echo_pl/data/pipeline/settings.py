"""Settings of a corpus: every value that determines its studies and their form."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

MAX_PIXELS = 2_250_000
"""Most pixels of one image."""
CHEST_X_RAY = ("CR", "DX", "DR", "CXR", "RG", "XR")
"""Names of projection radiography in DICOM and in the datasets."""

SplitRule = Literal["auto", "official", "patient"]
DuplicateText = Literal["original", "normalized"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one corpus."""

    seed: int = 0
    """Seed of splits by patient, order in shards, and choice of translated reports and general samples."""
    modalities: tuple[str, ...] = CHEST_X_RAY
    """Modalities to keep; empty: all. A study without a modality is kept."""
    languages: tuple[str, ...] = ("en", "zh")
    """Languages to keep; others are rejected."""
    keep_incomplete: bool = False
    """Keep reports with only one of findings and impression."""
    redact: bool = False
    """Remove dates, names and ids from reports by pattern; replace keys by numbers; drop patients and the dataset's notes."""
    near_duplicates: float | None = None
    """Least cosine of two reports of the training split of which one is left out; None: keep all."""
    duplicate_text: DuplicateText = "original"
    """Report that is compared. Normalized reports of normal chests are equal by design, so comparing them keeps few of these."""
    chinese_share: float = 0.0
    """Share of reports that are translated into Chinese."""
    splits: SplitRule = "auto"
    """``auto``: official if every study has one, by patient if none has, an error otherwise."""
    val_share: float = 0.05
    """Expected share of the patients in ``val``."""
    test_share: float = 0.1
    """Expected share of the patients in ``test``."""
    max_pixels: int = MAX_PIXELS
    """Most pixels of an image; larger ones are reduced."""
    shard_size: int = 500
    """Studies in one shard."""
    work_size: int = 256
    """Entries in one file of the work folder."""
    general_weight: float = 0.0
    """General image-text samples for each training study."""
    vocab_size: int = 8192
    """Most ids of the tokenizer that is trained on the corpus."""
    tokenizer_reports: int = 50_000
    """Most training studies that it is trained on."""

    def __post_init__(self) -> None:
        for name in ("max_pixels", "shard_size", "work_size", "vocab_size", "tokenizer_reports"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "val_share", "test_share", "general_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.val_share + self.test_share >= 1:
            raise ValueError(f"val_share and test_share must sum to less than 1, got {self.val_share} and {self.test_share}")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates must be in (0, 1], got {self.near_duplicates}")
        if not 0 <= self.chinese_share <= 1:
            raise ValueError(f"chinese_share must be in [0, 1], got {self.chinese_share}")
        for name, choice, allowed in (
            ("splits", self.splits, get_args(SplitRule)),
            ("duplicate_text", self.duplicate_text, get_args(DuplicateText)),
        ):
            if choice not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {choice!r}")

    def as_options(self) -> dict[str, str | int | float | bool | None]:
        """Return the settings by name, lists joined by commas."""
        return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
