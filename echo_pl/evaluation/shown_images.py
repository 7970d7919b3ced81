"""Images to show beside reports, asked for by study: only those of reports that are shown are opened. Knows files, no reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from echo_pl.data.images.images import ImageError, open_image

Images = Callable[[Sequence[str]], Mapping[str, Image.Image]]
"""From ids to the images of those that have one that can be opened."""
_PIXELS = 640 * 640


def images_in_files(paths: Mapping[str, Path]) -> Images:
    """Images by the id of their study, from PNG, JPEG or DICOM files."""

    def images(keys: Sequence[str]) -> dict[str, Image.Image]:
        found = {}
        for key in keys:
            try:
                found[key] = open_image(paths[key], _PIXELS)
            except (KeyError, ImageError):
                continue  # whoever shows them counts how many there are
        return found

    return images
