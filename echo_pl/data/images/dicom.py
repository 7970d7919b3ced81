"""The pixels of a DICOM file as a radiologist's screen would show them, in 8 bit. Needs pydicom (extra ``dicom``).

In the order of PS3.4 N.2: stored values -> modality LUT or rescale -> VOI LUT, or window (linear, linear exact or sigmoid,
PS3.3 C.11.2.1) -> 8 bit -> turned over for MONOCHROME1, whose lowest value is white. A file with several VOI LUTs or
windows is shown with the first, one with neither by the range of its values, padding left out. Of several frames the first is
taken, and how many there are is said. Only the tags that this takes are read at all: no private tag, no name, no date ever
leaves the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from echo_pl.data.images.pixels import ImageError, check_size, stretch

MAX_FILE_BYTES: Final = 1 << 29
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_SHAPE: Final = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)
_PIXELS: Final = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_DISPLAY: Final = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
)
_DAMAGE: Final = (OSError, ValueError, AttributeError, KeyError, IndexError, TypeError, EOFError, RuntimeError, struct.error)
"""Errors of pydicom for damaged files; NotImplementedError is a RuntimeError."""


def is_dicom(head: bytes) -> bool:
    """Return True if the first 132 bytes are those of a DICOM file."""
    return head[128:132] == b"DICM"


def read_dicom(path: Path) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Read a DICOM file.

    Returns:
        Grey values (rows, columns) or colours (rows, columns, 3); and ``format``, ``size``, ``frames``, ``grey``.

    Raises:
        ImageError: reason ``needs_pydicom``, ``dicom_no_pixels``, ``dicom_compressed`` (nothing installed decodes its syntax),
            ``dicom_photometric``, ``too_many_pixels``, ``too_large`` or ``damaged_image``.
    """
    pydicom = _pydicom()
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ImageError("too_large", f"more than {MAX_FILE_BYTES} bytes")
    try:
        dataset = _read(pydicom, path)
        _check_decoder(pydicom, dataset)
        stored = pydicom.pixels.pixel_array(dataset, index=0)
        meta = {
            "format": "dicom",
            "size": f"{dataset.Columns}x{dataset.Rows}",
            "frames": str(int(dataset.get("NumberOfFrames") or 1)),
        }
        if dataset.PhotometricInterpretation in _COLOUR:
            return stretch(stored, 0, 2 ** int(dataset.BitsStored) - 1), meta | {"grey": "colour"}
        grey, meta["grey"] = _shown(pydicom, stored, dataset)
    except ImageError:
        raise
    except _DAMAGE as error:
        # pydicom's messages may quote values of the file.
        raise ImageError("damaged_image", f"a DICOM file that cannot be decoded: {type(error).__name__}") from None
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey, meta


def _pydicom() -> ModuleType:
    # At the place of use: who has no DICOM needs no pydicom.
    try:
        import pydicom
        import pydicom.pixels
    except ModuleNotFoundError:
        raise ImageError("needs_pydicom", "DICOM is read by pydicom: pip install 'echo-pl[dicom]'") from None
    # For the whole process: pydicom's warnings quote odd values, which would then be in a log.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _read(pydicom: ModuleType, path: Path) -> Any:
    """The dataset with the tags that are needed, once its header has been found harmless."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DEFLATED:
        # Unpacked as a whole before anything of it can be looked at.
        raise ImageError("dicom_compressed", "deflated files are not read")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_SHAPE))
    if header.get("Rows") is None or header.get("Columns") is None:
        raise ImageError("dicom_no_pixels", "it has no rows and columns")
    check_size(int(header.Columns), int(header.Rows))
    photometric = header.get("PhotometricInterpretation")
    if photometric not in (*_GREY, *_COLOUR):
        raise ImageError("dicom_photometric", f"only {', '.join((*_GREY, *_COLOUR))} are read")
    dataset = pydicom.dcmread(path, specific_tags=[*_SHAPE, *_PIXELS, *_DISPLAY])
    if not dataset.get("PixelData"):
        raise ImageError("dicom_no_pixels", "it has no pixel data")
    return dataset


def _check_decoder(pydicom: ModuleType, dataset: Any) -> None:
    """Raise ImageError for a compression that no installed library decodes."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ImageError("dicom_compressed", f"nothing installed decodes {syntax.name}; pylibjpeg or gdcm may")


def _shown(pydicom: ModuleType, stored: NDArray[np.generic], dataset: Any) -> tuple[NDArray[np.uint8], str]:
    """Grey values of a screen, and what made them: ``voi_lut``, ``window`` or ``range``."""
    values = pydicom.pixels.apply_modality_lut(stored, dataset)
    if tables := dataset.get("VOILUTSequence"):
        entries, first, bits = (int(number) for number in tables[0].LUTDescriptor)
        # Values outside the table get its first or last entry; pydicom 3.0 wraps around after 8-bit tables.
        within = np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int64)
        return stretch(pydicom.pixels.apply_voi(within, dataset, index=0), 0, 2**bits - 1), "voi_lut"
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None and width > 0:
        return window(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR")), "window"
    padding = dataset.get("PixelPaddingValue")
    counted = values if padding is None else values[stored != padding]
    if counted.size == 0:
        counted = values
    return stretch(values, float(counted.min()), float(counted.max())), "range"


def window(values: NDArray[np.generic], centre: float, width: float, function: str = "LINEAR") -> NDArray[np.uint8]:
    """Apply a window (PS3.3 C.11.2.1.2, C.11.2.1.3).

    Args:
        values: after rescaling.
        centre: of the window.
        width: of the window, positive.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.

    Raises:
        ImageError: ``damaged_image``, the function is another.
    """
    if function == "LINEAR":
        return stretch(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    if function == "SIGMOID":
        bent = 1 / (1 + np.exp(np.clip(-4 * (values.astype(np.float64) - centre) / width, -700, 700)))
        return np.rint(255 * bent).astype(np.uint8)
    raise ImageError("damaged_image", "its VOI LUT function is none of the standard's")


def _first(value: Any) -> float | None:
    """Value of a tag that may have several, or be there and empty."""
    if value is None or value == "" or value == []:
        return None
    return float(value[0] if isinstance(value, Sequence) else value)
