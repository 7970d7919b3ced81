"""Opens an image of a dataset that may be anything: PNG, JPEG, DICOM, damaged, too large, a link to somewhere else.

What comes out has 8 bit, grey or RGB, at most so many pixels, and nothing of the file's own text (EXIF, PNG text, DICOM tags
may name a patient). What cannot be opened is an :class:`ImageError` whose reason can be counted. The format is recognized
by the content, never by the name.

Grey values of 16 bit without a window (PNG) are scaled by their own range: the lowest value becomes 0, the highest 255. For
those of DICOM see :mod:`echo_pl.data.images.dicom`. Colour of 16 bit keeps its upper 8 bits.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from echo_pl.data.images.dicom import is_dicom, read_dicom
from echo_pl.data.images.pixels import ImageError, check_size, stretch

__all__ = ["MAX_PIXELS", "ImageError", "OpenedImage", "fit", "load_image", "open_image"]

MAX_PIXELS: Final = 2_250_000
"""Limit of the method (docs/explain/method.md, "Stage 1: NormalizedPretrain")."""
_HEAD_BYTES: Final = 132
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_LAST_BYTES: Final = {_PNG: b"IEND", _JPEG: b"\xff\xd9"}
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError, KeyError)
"""Errors of the parts of Pillow for damaged files."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """An image, and what was done to it."""

    image: Image.Image
    """Mode ``L`` or ``RGB``."""
    meta: Mapping[str, str]
    """``format``, ``size`` (of the source, "2048x2500"), ``grey`` (how values became 8 bit); DICOM: ``frames``."""


def open_image(path: Path | str, max_pixels: int = MAX_PIXELS, *, root: Path | None = None) -> Image.Image:
    """Open an image; :func:`load_image` without its notes.

    Raises:
        ImageError: it cannot be opened, or must not be.
        ValueError: ``max_pixels`` is not positive.
    """
    return load_image(path, max_pixels, root=root).image


def load_image(path: Path | str, max_pixels: int = MAX_PIXELS, *, root: Path | None = None) -> OpenedImage:
    """Open an image.

    Args:
        path: of a PNG, JPEG or DICOM file.
        max_pixels: a larger image is made smaller, its sides in proportion; none is made larger.
        root: the folder that the file must lie in when all links are followed; None: anywhere.

    Raises:
        ImageError: reason ``missing``, ``not_a_file``, ``not_readable``, ``outside_folder``, ``empty_file``, ``not_an_image``,
            ``truncated``, ``damaged_image``, ``too_many_pixels``, or one of :func:`echo_pl.data.images.dicom.read_dicom`.
        ValueError: ``max_pixels`` is not positive.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be positive, got {max_pixels}")
    real = _follow(Path(path), root)
    try:
        with real.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0)
            if not head:
                raise ImageError("empty_file", "it has 0 bytes")
            if is_dicom(head):
                pixels, meta = read_dicom(real)
                image = Image.fromarray(pixels)
            else:
                image, meta = _read_picture(file, head)
    except OSError as error:
        raise ImageError("not_readable", type(error).__name__) from None
    return OpenedImage(image=fit(image, max_pixels), meta=meta)


def fit(image: Image.Image, max_pixels: int) -> Image.Image:
    """Make an image smaller, by Lanczos' filter, until it has at most so many pixels; sides in proportion, rounded down."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    narrow = min(max(1, isqrt(max_pixels * width // height)), max_pixels)
    low = max(1, min(narrow * height // width, max_pixels // narrow))
    return image.resize((narrow, low), Image.Resampling.LANCZOS)


def _follow(path: Path, root: Path | None) -> Path:
    """Resolve links to a regular file; reading a pipe or a device could block."""
    try:
        real = path.resolve(strict=True)
        mode = os.stat(real).st_mode
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError("missing", f"no such file, or links without end ({type(error).__name__})") from None
    if root is not None and not real.is_relative_to(root.resolve()):
        raise ImageError("outside_folder", "a link leads out of the dataset's folder")
    if not stat.S_ISREG(mode):
        raise ImageError("not_a_file", "it is a folder, a pipe or a device")
    return real


def _read_picture(file: BinaryIO, head: bytes) -> tuple[Image.Image, dict[str, str]]:
    magic = next((magic for magic in _LAST_BYTES if head.startswith(magic)), None)
    if magic is None:
        raise ImageError("not_an_image", "it is neither PNG, JPEG nor DICOM")
    try:
        # Only the header is read here.
        with Image.open(file, formats=("PNG", "JPEG")) as picture:
            check_size(*picture.size)
            meta = {"format": "png" if magic == _PNG else "jpeg", "size": f"{picture.width}x{picture.height}"}
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            image, meta["grey"] = _to_eight_bits(upright)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels", "its header says more than Pillow opens") from None
    except ImageError:
        raise
    except _DAMAGE as error:
        reason = "damaged_image" if _is_whole(file, magic) else "truncated"
        said = "unknown format" if isinstance(error, UnidentifiedImageError) else type(error).__name__
        raise ImageError(reason, f"a {'PNG' if magic == _PNG else 'JPEG'} that cannot be decoded: {said}") from None
    image.info.clear()  # EXIF and texts
    return image, meta


def _is_whole(file: BinaryIO, magic: bytes) -> bool:
    """Return True if the file ends as its format requires, apart from padding."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 64))
    return _LAST_BYTES[magic] in file.read()


def _to_eight_bits(picture: Image.Image) -> tuple[Image.Image, str]:
    """The picture as ``L`` or ``RGB``, and how its values became 8 bit. What is transparent becomes black."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        return Image.fromarray(stretch(values, float(values.min()), float(values.max()))), "range"
    if picture.has_transparency_data:
        grey = picture.mode in ("1", "L", "LA", "La")
        cover = picture.convert("RGBA")
        black = Image.new("RGBA", cover.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, cover).convert("L" if grey else "RGB"), "8 bit"
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB"), "8 bit"
