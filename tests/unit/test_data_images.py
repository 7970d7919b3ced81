"""Opening images: what comes out of each kind, against independent definitions, and a name for all that must not come out."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from echo_pl.data.images.dicom import window
from echo_pl.data.images.images import ImageError, fit, load_image, open_image
from echo_pl.data.images.pixels import stretch

pydicom = pytest.importorskip("pydicom", reason="DICOM files are made with pydicom: pip install 'echo-pl[dicom]'")
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def dicom(path: Path, stored: np.ndarray, *, compressed: str = "", private: bool = False, **tags: object) -> Path:
    """A DICOM file of 16 (or 8) bit with these tags; several frames where ``stored`` has three axes."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = compressed or pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName = "Nobody^At^All"
    data.Rows, data.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        data.NumberOfFrames = stored.shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = stored.itemsize * 8
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    if not compressed:
        data.PixelData = stored.tobytes()
        data["PixelData"].VR = "OW"
    if private:
        data.private_block(0x0011, "SOMEBODY", create=True).add_new(1, "LO", "a secret")
    for name, value in tags.items():
        setattr(data, name, value)
    data.HighBit = data.BitsStored - 1
    data.save_as(path, enforce_file_format=True)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_image(path))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_eight_bits_are_left_alone(tmp_path, suffix):
    grey = Image.fromarray((RAMP // 16).astype(np.uint8))
    path = save(tmp_path / f"a.{suffix}", grey)
    with Image.open(path) as stored:
        assert np.array_equal(pixels(path), np.asarray(stored))
    colour = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.ROTATE_90), grey))
    path = save(tmp_path / f"b.{suffix}", colour)
    with Image.open(path) as stored:
        assert np.array_equal(pixels(path), np.asarray(stored))


def test_sixteen_bits_fill_the_range(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(RAMP + np.uint16(500)))
    opened = load_image(path)
    assert opened.image.mode == "L"
    assert np.array_equal(np.asarray(opened.image), np.rint(RAMP / 4095 * 255))
    assert opened.meta == {"format": "png", "size": "64x64", "grey": "range"}
    path = save(tmp_path / "b.png", Image.fromarray(np.full((8, 8), 700, dtype=np.uint16)))
    assert not pixels(path).any()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, ("L", 255)),
        ("LA", (200, 255), ("L", 200)),
        ("LA", (200, 0), ("L", 0)),
        ("P", 0, ("RGB", (0, 0, 0))),
        ("RGBA", (10, 20, 30, 255), ("RGB", (10, 20, 30))),
        ("RGBA", (10, 20, 30, 0), ("RGB", (0, 0, 0))),
    ],
)
def test_other_modes(tmp_path, mode, colour, expected):
    image = open_image(save(tmp_path / "a.png", Image.new(mode, (4, 4), colour)))
    assert (image.mode, image.getpixel((1, 1))) == expected


def test_nothing_of_the_files_text_comes_along(tmp_path):
    info = PngInfo()
    info.add_text("Patient", "Nobody At All")
    assert not open_image(save(tmp_path / "a.png", Image.new("L", (4, 4)), pnginfo=info)).info
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Nobody At All"
    path = save(tmp_path / "a.jpg", Image.new("L", (8, 4)), exif=exif)
    image = open_image(path)
    assert not image.info
    assert not dict(image.getexif())
    assert image.size == (4, 8), "the picture was taken turned"
    image = open_image(dicom(tmp_path / "a.dcm", RAMP, private=True))
    assert not image.info


@pytest.mark.parametrize("size", [(300, 200), (201, 299), (1, 5000), (5000, 1), (77, 1001)])
@pytest.mark.parametrize("bound", [1, 7, 1000, 10_000])
def test_never_larger_and_in_proportion(size, bound):
    image = fit(Image.new("L", size), bound)
    width, height = image.size
    assert width * height <= bound
    if bound >= 1000 and min(size) > 50:
        # Both sides are the exact ones, rounded down; the second from the first.
        scale = (bound / (size[0] * size[1])) ** 0.5
        assert 0 <= size[0] * scale - width < 1
        assert 0 <= size[1] * scale - height < 1 + size[1] / size[0]


def test_small_images_keep_their_size(tmp_path):
    assert open_image(save(tmp_path / "a.png", Image.new("L", (30, 20))), 600).size == (30, 20)
    assert open_image(save(tmp_path / "b.png", Image.new("L", (3000, 1000)))).size == (2598, 866)
    with pytest.raises(ValueError, match="max_pixels must be positive, got 0"):
        open_image(tmp_path / "a.png", 0)


def test_dicom_without_window_is_scaled_by_its_range(tmp_path):
    opened = load_image(dicom(tmp_path / "a", RAMP + np.uint16(10)))
    assert np.array_equal(np.asarray(opened.image), np.rint(RAMP / 4095 * 255))
    assert opened.meta == {"format": "dicom", "size": "64x64", "frames": "1", "grey": "range"}


def test_dicom_padding_does_not_count(tmp_path):
    stored = RAMP + np.uint16(1000)
    stored[0] = 0
    path = dicom(tmp_path / "a", stored, PixelPaddingValue=0)
    assert pixels(path)[1, 0] == 0
    assert pixels(path)[-1, -1] == 255


def test_dicom_monochrome1_is_turned_over(tmp_path):
    upright = pixels(dicom(tmp_path / "a", RAMP))
    assert np.array_equal(pixels(dicom(tmp_path / "b", RAMP, PhotometricInterpretation="MONOCHROME1")), 255 - upright)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [2.0, 800.0, 9000.0])
def test_dicom_window_against_pydicom(tmp_path, function, width):
    tags = {"WindowCenter": [-200.0, 5.0], "WindowWidth": [width, 7.0], "VOILUTFunction": function}
    path = dicom(tmp_path / "a", RAMP, RescaleSlope="0.5", RescaleIntercept="-1024", BitsStored=12, **tags)
    # pydicom's own window, whose output range is that of the rescaled stored bits.
    shown = pydicom.pixels.apply_windowing(RAMP.astype(float) * 0.5 - 1024, pydicom.dcmread(path))
    expected = (shown + 1024) / (4095 * 0.5) * 255
    assert np.abs(pixels(path) - expected).max() <= 0.51
    assert load_image(path).meta["grey"] == "window"


def test_dicom_linear_window_of_the_standard():
    # PS3.3 C.11.2.1.2.1, its example: centre 2048, width 4096 is the identity of 12 bits.
    assert np.array_equal(window(RAMP, 2048, 4096), np.rint(RAMP / 4095 * 255))
    assert window(np.array([9, 10, 11]), 10.5, 1).tolist() == [0, 0, 255]
    with pytest.raises(ImageError, match="damaged_image"):
        window(RAMP, 1, 2, "CUBIC")


@pytest.mark.parametrize("width", [None, 0, -5])
def test_dicom_window_that_is_none(tmp_path, width):
    path = dicom(tmp_path / "a", RAMP, WindowCenter=5, **({} if width is None else {"WindowWidth": width}))
    assert load_image(path).meta["grey"] == "range"


def test_dicom_voi_lut_goes_before_the_window(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 100, 8]
    table.LUTData = np.arange(255, -1, -1, dtype=np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    table["LUTDescriptor"].VR = "US"
    path = dicom(tmp_path / "a", RAMP, VOILUTSequence=[table], WindowCenter=5, WindowWidth=3)
    # PS3.3 C.11.2.1.1: below the first value mapped, the first entry; behind the last, the last.
    assert np.array_equal(pixels(path), 255 - np.clip(RAMP.astype(int) - 100, 0, 255))
    assert load_image(path).meta["grey"] == "voi_lut"


def test_dicom_signed_and_eight_bits(tmp_path):
    signed = (RAMP.astype(np.int16) - 2000).astype(np.int16)
    assert np.array_equal(pixels(dicom(tmp_path / "a", signed)), np.rint(RAMP / 4095 * 255))
    assert np.array_equal(pixels(dicom(tmp_path / "b", (RAMP % 256).astype(np.uint8))), RAMP % 256)


def test_dicom_first_of_several_frames(tmp_path):
    path = dicom(tmp_path / "a", np.stack([RAMP, RAMP[::-1], RAMP * 0]))
    opened = load_image(path)
    assert opened.meta["frames"] == "3"
    assert np.array_equal(np.asarray(opened.image), np.rint(RAMP / 4095 * 255))


def test_dicom_colour(tmp_path):
    data = pydicom.dcmread(dicom(tmp_path / "a", (RAMP % 256).astype(np.uint8)))
    colours = np.stack([RAMP % 256, RAMP // 16, RAMP % 7], axis=-1).astype(np.uint8)
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    data.PixelData = colours.tobytes()
    data.save_as(tmp_path / "b")
    assert np.array_equal(pixels(tmp_path / "b"), colours)


def test_dicom_run_length_encoded(tmp_path):
    data = pydicom.dcmread(dicom(tmp_path / "a", RAMP))
    data.compress(pydicom.uid.RLELossless)
    data.save_as(tmp_path / "b")
    assert np.array_equal(pixels(tmp_path / "b"), pixels(tmp_path / "a"))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header says so many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encoded("PNG")[:1000], "truncated"),
        (encoded("PNG")[:30], "truncated"),
        (encoded("JPEG")[:1000], "truncated"),
        (encoded("PNG")[:600] + bytes(500) + encoded("PNG")[1100:], "damaged_image"),
        (bomb(30_000, 30_000), "too_many_pixels"),
        (bomb(9_000, 9_000), "too_many_pixels"),
        (bomb(100_000, 1_000), "too_many_pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "too_many_pixels"),
        (bomb(64, 0), "damaged_image"),
        (b"no picture at all", "not_an_image"),
        (encoded("GIF"), "not_an_image"),
        (encoded("TIFF"), "not_an_image"),
        (b"%PDF-1.4", "not_an_image"),
        (bytes(128) + b"DICM", "dicom_no_pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_have_a_reason(tmp_path, content, reason):
    with pytest.raises(ImageError) as caught:
        open_image(put(tmp_path / "a.png", content))
    assert caught.value.reason == reason


def test_a_bomb_is_rejected_before_it_is_decoded(tmp_path, monkeypatch):
    path = put(tmp_path / "a.png", bomb(8_950, 8_950))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="too_many_pixels: 8950 x 8950, more than 80000000"):
        open_image(path)


def test_bad_dicom_has_a_reason(tmp_path):
    def reason(path: Path) -> str:
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert "Nobody" not in str(caught.value)
        return caught.value.reason

    whole = dicom(tmp_path / "whole", RAMP).read_bytes()
    assert reason(put(tmp_path / "short", whole[:-100])) == "damaged_image"
    assert reason(put(tmp_path / "half", whole[:200])) in ("damaged_image", "dicom_no_pixels")
    data = pydicom.dcmread(tmp_path / "whole")
    del data.PixelData
    data.save_as(tmp_path / "empty")
    assert reason(tmp_path / "empty") == "dicom_no_pixels"
    del data.Rows
    data.save_as(tmp_path / "report")
    assert reason(tmp_path / "report") == "dicom_no_pixels"
    assert reason(dicom(tmp_path / "bomb", RAMP, Rows=30_000, Columns=30_000)) == "too_many_pixels"
    assert reason(dicom(tmp_path / "palette", RAMP, PhotometricInterpretation="PALETTE COLOR")) == "dicom_photometric"
    for syntax in (pydicom.uid.MPEG2MPML, pydicom.uid.JPEGLSLossless):
        packed = pydicom.encaps.encapsulate([b"abcd"])
        assert reason(dicom(tmp_path / "packed", RAMP, compressed=syntax, PixelData=packed)) == "dicom_compressed"
    assert reason(dicom(tmp_path / "deflated", RAMP, compressed=pydicom.uid.DeflatedExplicitVRLittleEndian)) == "dicom_compressed"


def test_values_of_a_dicom_file_reach_no_log_and_no_warning(tmp_path, caplog, recwarn):
    junk = bytes(128) + b"DICM" + b"\x02\x00" * 500 + b"secret" * 100
    with pytest.raises(ImageError):
        open_image(put(tmp_path / "a", junk))
    # A window centre is text; one that is no number is quoted by pydicom wherever it is validated.
    whole = dicom(tmp_path / "b", RAMP, WindowCenter="123456", WindowWidth="100000").read_bytes()
    with pytest.raises(ImageError) as caught:
        open_image(put(tmp_path / "c", whole.replace(b"123456", b"secret")))
    printed = caplog.text + "".join(str(one.message) for one in recwarn) + str(caught.value)
    assert "secret" not in printed
    assert "\\x02" not in printed


def test_without_pydicom(tmp_path, monkeypatch):
    path = dicom(tmp_path / "a", RAMP)
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"needs_pydicom: .*pip install 'echo-pl\[dicom\]'"):
        open_image(path)


def test_links_and_things_that_are_no_files(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    save(inside / "a.png", Image.new("L", (4, 4)))
    save(outside / "secret.png", Image.new("L", (4, 4)))
    (inside / "link.png").symlink_to(inside / "a.png")
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "loop.png").symlink_to(inside / "loop.png")
    os.mkfifo(inside / "pipe.png")
    (tmp_path / "mounted").symlink_to(inside)
    assert open_image(inside / "link.png", root=inside).size == (4, 4)
    assert open_image(tmp_path / "mounted" / "a.png", root=tmp_path / "mounted").size == (4, 4)
    assert open_image(inside / "out.png").size == (4, 4)
    for name, reason in {
        "out.png": "outside_folder",
        "folder/secret.png": "outside_folder",
        "../other/secret.png": "outside_folder",
        "loop.png": "missing",
        "absent.png": "missing",
        "pipe.png": "not_a_file",
        ".": "not_a_file",
    }.items():
        with pytest.raises(ImageError) as caught:
            open_image(inside / name, root=inside)
        assert caught.value.reason == reason, name


def test_stretch_against_its_definition():
    values = np.random.default_rng(1).normal(size=500) * 1000
    expected = np.interp(values, [-700.0, 900.0], [0, 255])
    assert np.abs(stretch(values, -700, 900) - expected).max() <= 0.501


def test_real_images(shared_data):
    paths = sorted((shared_data / "iu_xray_mini" / "images").glob("*.png"))
    for path in paths:
        opened = load_image(path, root=path.parent)
        with Image.open(path) as stored:
            assert opened.meta["size"] == f"{stored.width}x{stored.height}"
            ratio = stored.width / stored.height
        assert opened.image.width * opened.image.height <= 2_250_000
        assert abs(opened.image.width / opened.image.height - ratio) < 0.002
    assert len(paths) == 8
