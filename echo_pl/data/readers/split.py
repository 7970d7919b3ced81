"""Which split a patient belongs to, where a dataset has none of its own: a function of seed and patient alone.

So a study that is added later moves nobody else, and no patient is in two splits.
"""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def patient_split(patient: str, *, seed: int = 0, val_share: float = 0.05, test_share: float = 0.1) -> str:
    """Return ``train``, ``val`` or ``test``.

    Args:
        patient: their name in the dataset.
        seed: of the whole split.
        val_share: expected share of the patients in ``val``.
        test_share: expected share of the patients in ``test``.

    Raises:
        ValueError: a share is negative, or nothing is left for ``train``.

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
