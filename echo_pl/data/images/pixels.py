"""Helpers for images of all formats: the error with its reason, the limit of pixels, grey values to 8 bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SOURCE_PIXELS = 80_000_000
"""Limit of the pixels in a header. The largest detectors for the chest have under 20 million pixels."""


class ImageError(ValueError):
    """An image cannot be opened, or must not be.

    Args:
        reason: a short name that is counted: ``truncated``, ``too_many_pixels`` ...
        detail: what is wrong; nothing of a file's own text.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_size(width: int, height: int) -> None:
    """Check the size in a header against decompression bombs.

    Raises:
        ImageError: ``too_many_pixels`` or, without any, ``damaged_image``.
    """
    if width < 1 or height < 1:
        raise ImageError("damaged_image", f"its header says {width} x {height} pixels")
    if width * height > MAX_SOURCE_PIXELS:
        raise ImageError("too_many_pixels", f"{width} x {height}, more than {MAX_SOURCE_PIXELS}")


def stretch(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, linearly, and cut off what is beyond. Without a range everything above ``low`` is 255.

    >>> stretch(np.array([0, 100, 200, 4095]), 0, 200).tolist()
    [0, 128, 255, 255]
    """
    shifted = values.astype(np.float32) - np.float32(low)
    if high <= low:
        return np.where(shifted > 0, np.uint8(255), np.uint8(0))
    scaled = shifted * np.float32(255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
