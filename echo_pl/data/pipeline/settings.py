"""What a user asks of the pipeline: everything that decides which studies come out and how, and nothing else.

Knows values; where files are, how many processes work and who normalizes is said elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

MAX_PIXELS = 2_250_000
"""Of one image (METHOD.md 1)."""
CHEST_X_RAY = ("CR", "DX", "DR", "CXR", "RG", "XR")
"""Names of projection radiography in DICOM and in the datasets; a study that does not say what it is passes."""

SplitRule = Literal["auto", "official", "patient"]
DuplicateText = Literal["original", "normalized"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One corpus to be."""

    seed: int = 0
    """Of splits by patient, of the order in shards, of which reports are translated, of which general samples are taken."""
    modalities: tuple[str, ...] = CHEST_X_RAY
    """Others are filtered out; those that say nothing pass. Empty: all pass."""
    languages: tuple[str, ...] = ("en", "zh")
    """Reports that their dataset says are in another language are rejected."""
    keep_incomplete: bool = False
    """Whether reports with only one of findings and impression are used; otherwise they are filtered out."""
    redact: bool = False
    """Take dates, names and ids out of reports by pattern, number studies anew, drop patients and the dataset's own notes."""
    near_duplicates: float | None = None
    """Cosine from which on one of two reports of the training split is filtered out; None: all stay."""
    duplicate_text: DuplicateText = "original"
    """What is compared. Normalized reports of normal chests are equal by design, so comparing them keeps few of these."""
    chinese_share: float = 0.0
    """Share of the reports that are translated into Chinese."""
    splits: SplitRule = "auto"
    """``auto``: official where every study has one, by patient where none has; a mixture must be decided by the user."""
    val_share: float = 0.05
    """Expected share of the patients in ``val``."""
    test_share: float = 0.1
    """Expected share of the patients in ``test``."""
    max_pixels: int = MAX_PIXELS
    """Larger images are reduced to this many pixels."""
    shard_size: int = 500
    """Studies in one shard."""
    work_size: int = 256
    """Entries in one file of the work folder."""
    general_weight: float = 0.0
    """General image-text samples for each training study."""
    vocab_size: int = 8192
    """Most ids of the tokenizer that is trained on the corpus."""
    tokenizer_reports: int = 50_000
    """Training studies that it is trained on, at most."""

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
        """The settings by name, lists joined by commas."""
        return {name: ",".join(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
