"""Split of a patient, for datasets without official splits: a function of seed and patient alone.

A study that is added later moves no other one, and no patient is in two splits.
"""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def patient_split(patient: str, *, seed: int = 0, val_share: float = 0.05, test_share: float = 0.1) -> str:
    """Return ``train``, ``val`` or ``test``.

    Args:
        patient: Name in the dataset.
        seed: Seed of the whole split.
        val_share: Expected share of the patients in ``val``.
        test_share: Expected share of the patients in ``test``.

    Raises:
        ValueError: If a share is negative, or nothing is left for ``train``.

    >>> [patient_split(f"p{i}", seed=3) for i in range(8)]
    ['train', 'train', 'test', 'train', 'train', 'test', 'val', 'train']
    """
    if val_share < 0 or test_share < 0 or val_share + test_share >= 1:
        raise ValueError(f"val_share and test_share must not be negative and sum to less than 1, got {val_share}, {test_share}")
    digest = hashlib.sha256(f"{seed}\0{patient}".encode("utf-8", errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"
