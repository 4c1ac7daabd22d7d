"""Any picture file must become the array that a model takes, or one line that says why not."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from broker.errors import DataError
from worker.images import MAX_PIXELS, read_image

GRAY = (4, 6, 1)
RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    """What was resized when the data set was made is not resized again."""
    pixels = read_image(encoded(Image.fromarray(RAMP)), GRAY)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[..., 0], RAMP)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_colour_mode_of_png_is_taken(mode: str, channels: int) -> None:
    """White stays white in every mode, at any size, for gray and colour models."""
    white = {"I;16": 65535, "1": 1, "L": 255, "P": 255}.get(mode, tuple([255] * len(mode)))
    image = Image.new(mode, (50, 31), white)
    if mode == "P":
        image = Image.new("RGB", (50, 31), "white").convert("P")
    assert read_image(encoded(image), (8, 9, channels)).shape == (8, 9, channels)
    assert (read_image(encoded(image), (8, 9, channels)) == 255).all()


def test_a_cmyk_jpeg_is_taken() -> None:
    """Printers' JPEGs have four channels."""
    image = Image.new("RGB", (16, 16), "white").convert("CMYK")
    assert read_image(encoded(image, "JPEG"), (16, 16, 3)).min() >= 254


def test_transparency_becomes_black() -> None:
    """The surround of an X-ray is black; half transparent white is half as bright."""
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (255, 255, 255, 128))
    assert read_image(encoded(image), (1, 2, 1)).tolist() == [[[0], [128]]]


def test_a_transparent_palette_colour_becomes_black() -> None:
    """PNG's tRNS chunk names a colour of the palette as transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 255, 255, 200, 200, 200])
    image.putpixel((1, 0), 1)
    assert read_image(encoded(image, transparency=0), (1, 2, 1)).tolist() == [[[0], [200]]]


@pytest.mark.parametrize("depth", [12, 16])
def test_deep_grays_are_scaled_by_the_depth_they_use(depth: int) -> None:
    """A 12-bit X-ray in a 16-bit file shows the same picture as a 16-bit one."""
    deep = np.array([[0, 2 ** (depth - 1), 2**depth - 1]], dtype=np.uint16)
    assert read_image(encoded(Image.fromarray(deep)), (1, 3, 1)).ravel().tolist() == [0, 128, 255]


def test_the_exif_orientation_is_applied() -> None:
    """Orientation 6: the camera was held on its side; the stored left column is the shown top row."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encoded(Image.fromarray(RAMP), exif=exif)
    assert np.array_equal(read_image(stored, (6, 4, 1))[..., 0], np.rot90(RAMP, -1))


def test_a_large_jpeg_decoded_small_looks_like_one_decoded_whole() -> None:
    """Decoding at a fraction of the size is for speed alone: 3 of 255 gray levels at most in the mean."""
    y, x = np.mgrid[0:900, 0:1200]
    whole = Image.fromarray((127 + 60 * np.sin(x / 90) + 60 * np.cos(y / 70)).astype(np.uint8))
    expected = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR), float)
    pixels = read_image(encoded(whole, "JPEG", quality=90), (64, 64, 1))[..., 0]
    assert np.abs(pixels - expected).mean() < 3


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_cut_file_is_named(tmp_path: Path, form: str) -> None:
    """A file that an interrupted copy left behind must not become a half gray picture."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(noise, form)[:-900])
    with pytest.raises(DataError, match=r"cut\.png.*Expected a whole JPEG"):
        read_image(path, GRAY)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an image"), (b"hello", "not an image"), (b"%!PS-Adobe", "not an image")],
)
def test_other_files_are_refused(content: bytes, reason: str) -> None:
    """Text, nothing at all, and formats for which Pillow would start a program."""
    with pytest.raises(DataError, match=reason):
        read_image(content, GRAY)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    """The line says what to look at."""
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.png", GRAY)
    with pytest.raises(DataError, match="a folder"):
        read_image(tmp_path, GRAY)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_a_picture_too_large_for_memory_is_refused_unread(side: int) -> None:
    """A few bytes can claim billions of pixels; the size is judged before anything is decoded."""
    assert side * side > MAX_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    with pytest.raises(DataError, match="pixels"):
        read_image(bomb, GRAY)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 4), (0, 5, 1), (30,)])
def test_a_model_that_takes_no_pictures_is_refused(shape: tuple[int, ...]) -> None:
    """Both shapes are in the message."""
    with pytest.raises(DataError, match="height, width"):
        read_image(encoded(Image.fromarray(RAMP)), shape)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow's on damaged EXIF; pytest resets our filter
def test_damaged_files_never_end_in_a_traceback() -> None:
    """Each of 300 files with random damage gives pixels or a DataError, nothing else."""
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("PNG", "JPEG", "GIF"):
        good = np.frombuffer(encoded(noise, form, exif=exif), np.uint8)
        for _ in range(100):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 255, 4)
            with contextlib.suppress(DataError):
                assert read_image(bad.tobytes(), (8, 8, 3)).shape == (8, 8, 3)
