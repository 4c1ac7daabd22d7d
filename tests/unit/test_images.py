"""Any picture file must become the array that a model takes, or one line that says why not."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from broker.errors import DataError
from worker.data.images import MAX_PIXELS, facts_of, read_image

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


# Deep pixels and TIFF

DEEP = (np.arange(24, dtype=np.uint16) * 178).reshape(4, 6)  # up to 4094: 12 bits
SHADES = np.rint(DEEP * (255 / 4095))
OPAQUE = np.full_like(DEEP, 65535)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def shades_of(data: bytes, channels: int = 1) -> np.ndarray:
    pixels = read_image(data, (4, 6, channels))
    return pixels[..., 0] if channels == 1 else pixels


@pytest.mark.parametrize(
    "channels",
    [
        (DEEP,),
        (DEEP, OPAQUE),
        (DEEP, DEEP, DEEP),
        (DEEP, DEEP, DEEP, OPAQUE),
        (DEEP, DEEP, DEEP, OPAQUE // 16),
    ],
    ids=["L", "LA", "RGB", "RGBA", "RGBA with 12 bits of transparency"],
)
@pytest.mark.parametrize("form", ["png", "tiff", "tiff big-endian", "tiff compressed", "tiff planes"])
def test_twelve_bits_in_sixteen_are_seen_in_every_mode(channels: tuple[np.ndarray, ...], form: str) -> None:
    """12-bit values as 16-bit gray, colour, with transparency or without, are the 8-bit ones times 255/4095."""
    pixels = np.stack(channels, axis=2)
    if form == "png":
        data = imagecodecs.png_encode(pixels.squeeze())
    else:
        options: dict[str, object] = {"photometric": "rgb" if len(channels) > 2 else "minisblack"}
        options |= {"extrasamples": ["unassalpha"]} if len(channels) in (2, 4) else {}
        options |= {"byteorder": ">"} if form == "tiff big-endian" else {}
        options |= {"compression": "lzw", "predictor": True} if form == "tiff compressed" else {}
        if form == "tiff planes" and len(channels) > 1:
            pixels, options["planarconfig"] = np.moveaxis(pixels, 2, 0), "separate"
        data = tiff(np.ascontiguousarray(pixels.squeeze()), **options)
    assert np.array_equal(shades_of(data), SHADES)
    assert facts_of(data).is_colour == (len(channels) > 2)
    assert facts_of(data).bits == 16


def test_deep_colour_keeps_its_balance() -> None:
    """One depth for all three channels: a dark blue stays dark."""
    rgb = np.stack([DEEP, DEEP // 2, DEEP // 8], axis=2)
    assert np.array_equal(shades_of(imagecodecs.png_encode(rgb), 3), np.rint(rgb * (255 / 4095)))
    assert np.array_equal(shades_of(tiff(rgb, photometric="rgb"), 3), np.rint(rgb * (255 / 4095)))


def test_deep_transparency_becomes_black() -> None:
    """Half of 16 bits is half as bright."""
    pixels = np.full((4, 6, 2), 65535, np.uint16)
    pixels[:2, :, 1], pixels[2:, :, 1] = 0, 32768
    shades = shades_of(imagecodecs.png_encode(pixels))
    assert (shades[:2] == 0).all()
    assert (shades[2:] == 128).all()


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (DEEP / 4095, SHADES),
        ((DEEP / 4095).astype(np.float32), SHADES),
        (DEEP.astype(np.float32), SHADES),
        (DEEP.astype(np.uint32) << 12, np.rint((DEEP.astype(float) * 4096) * (255 / (2**24 - 1)))),
        (DEEP.astype(np.int16) - 1024, np.rint(DEEP * (255 / 4094))),
        (DEEP.astype(np.int32), SHADES),
        ((DEEP >> 4).astype(np.uint8), DEEP >> 4),
    ],
    ids=["float64", "float32", "float32 up to 4094", "24 bits", "below zero", "int32", "uint8"],
)
def test_tiff_of_every_number_type_is_scaled(pixels: np.ndarray, expected: np.ndarray) -> None:
    """By the depth that is used, 0 to 1 for fractions, or the range where values lie below zero."""
    assert np.array_equal(shades_of(tiff(pixels, photometric="minisblack")), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_tiff_is_inverted(dtype: type) -> None:
    """Pillow does it for 8 bits alone."""
    pixels = DEEP if dtype is np.uint16 else (DEEP >> 4).astype(np.uint8)
    expected = 255 - (SHADES if dtype is np.uint16 else pixels.astype(float))
    assert np.array_equal(shades_of(tiff(pixels, photometric="miniswhite")), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_deep_picture_is_turned_upright(form: str) -> None:
    """Orientation 6, as for any other picture, and the facts tell its size as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(DEEP), form, exif=exif)
    assert np.array_equal(read_image(data, (6, 4, 1))[..., 0], np.rot90(SHADES, -1))
    assert (facts_of(data).width, facts_of(data).height) == (4, 6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_every_colour_mode_of_tiff_is_taken(mode: str, compression: str) -> None:
    """White stays white."""
    image = Image.new("RGBA", (12, 9), "white").convert(mode)
    data = encoded(image, "TIFF", compression=compression)
    assert (read_image(data, (5, 5, 3)) == 255).all()


def test_of_a_tiff_with_pages_the_first_is_read_and_the_facts_tell() -> None:
    """Fax archives and microscopes write several."""
    data = tiff(np.stack([DEEP, DEEP // 2]), photometric="minisblack")
    assert np.array_equal(shades_of(data), SHADES)
    assert facts_of(data).pages == 2


def test_not_a_number_in_a_tiff_is_refused() -> None:
    """Nothing is made up for it."""
    with pytest.raises(DataError, match="NaN"):
        shades_of(tiff(np.full((4, 6), np.nan, np.float32), photometric="minisblack"))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_deep_picture_too_large_for_memory_is_refused_unread(form: str) -> None:
    """The size is judged by the header."""
    if form == "png":
        data = bytearray(imagecodecs.png_encode(DEEP))
        data[16:24] = struct.pack(">II", 60_000, 60_000)
    else:
        data = bytearray(tiff(DEEP, photometric="minisblack"))
        for name, old in ((256, 6), (257, 4)):  # ImageWidth and ImageLength, as LONG
            at = data.index(struct.pack("<HHI", name, 4, 1))
            assert struct.unpack("<I", data[at + 8 : at + 12]) == (old,)
            data[at + 8 : at + 12] = struct.pack("<I", 60_000)
    with pytest.raises(DataError, match="pixels"):
        shades_of(bytes(data))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("form", ["png", "tiff", "tiff compressed", "tiff of 8 bits"])
def test_damaged_deep_files_never_end_in_a_traceback(form: str) -> None:
    """Each of 200 files with random damage gives pixels or a DataError, nothing else."""
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 4096, (24, 24, 3)).astype(np.uint16)
    good = np.frombuffer(
        {
            "png": lambda: bytes(imagecodecs.png_encode(rgb)),
            "tiff": lambda: tiff(rgb, photometric="rgb"),
            "tiff compressed": lambda: tiff(rgb, photometric="rgb", compression="zlib"),
            "tiff of 8 bits": lambda: tiff((rgb >> 4).astype(np.uint8), photometric="rgb"),
        }[form](),
        np.uint8,
    )
    for i in range(200):
        bad = good.copy()
        bad[rng.integers(4, 250 if i % 2 else len(bad), 3)] = rng.integers(0, 255, 3)
        with contextlib.suppress(DataError):
            assert read_image(bad.tobytes(), (8, 8, 3)).shape == (8, 8, 3)
        with contextlib.suppress(DataError):
            facts_of(bad.tobytes())
