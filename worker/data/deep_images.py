"""Pixels of more than 8 bits: Pillow drops the low bits of deep colour, so they are read and scaled here."""

import io
import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Array = npt.NDArray[Any]

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  #: the EXIF and TIFF tag
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF

_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits a pixel, as scanners write them into deeper files

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE = 0, 1, 2, 3  # TIFF's PhotometricInterpretation
_MOST_CHANNELS = 8  # colours, transparency, and what a scanner may add
_ALPHA = 2  # TIFF's ExtraSamples: transparency that the colours aren't multiplied with yet


def to_8_bits(pixels: Array) -> npt.NDArray[np.uint8]:
    """Scale by the depth that is used: 12-bit X-rays in 16-bit files would be all but black.

    White is the largest value of the least depth that holds all pixels (1, for fractions). With values below
    zero, which no depth tells anything about, the range from the least to the largest is spread.

    Args:
        pixels: Numbers of any type and shape.

    Raises:
        ValueError: There are NaN or infinity among them.
    """
    low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinity")
    if pixels.dtype == np.uint8:
        return pixels
    white = high - low if low < 0 else _white_of(high, is_fraction=pixels.dtype.kind == "f")
    if pixels.dtype == np.uint16:  # through a table: no copy in floats
        table = np.rint(np.arange(1 << 16) * (255 / white)).clip(0, 255).astype(np.uint8)
        return np.asarray(table[pixels])
    return np.rint((pixels.astype(np.float64) - low) * (255 / white)).clip(0, 255).astype(np.uint8)


def white_of(largest: float) -> float:
    """The largest value of the least depth that holds this one."""
    return float(next((2**bits - 1 for bits in _DEPTHS if largest < 2**bits), largest))


def _white_of(largest: float, *, is_fraction: bool) -> float:
    return 1.0 if is_fraction and largest <= 1 else white_of(largest)


def read_png(data: bytes) -> Image.Image:
    """Decode a PNG of 16 bits a channel.

    Returns:
        An image of mode L, LA, RGB or RGBA, upright.
    """
    import imagecodecs  # late, as all of this file's: few data sets need it

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
    pixels = np.atleast_3d(imagecodecs.png_decode(data))
    return _picture(pixels, has_alpha=pixels.shape[2] in (2, 4), orientation=orientation)


def png_depth(head: bytes) -> int:
    """Bits a channel, from a PNG's first 26 bytes."""
    return head[24]


def png_is_gray(head: bytes) -> bool:
    """Whether its channels are gray, or gray and transparency, likewise."""
    return head[25] in (0, 4)


def png_size(head: bytes) -> tuple[int, int]:
    """(width, height), likewise."""
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


class Tiff:
    """The first page of a TIFF, looked at and not decoded yet; whoever opened the file closes it.

    Attributes:
        width: Pixels.
        height: Pixels.
        tile_pixels: Of one tile, which may be larger than the picture; 0 where there are none.
        bits: Of a channel.
        is_deep: Whether Pillow would lose some of it.
        pages: How many there are.
        is_colour: Whether it has more channels than gray and transparency, or a palette.
        orientation: As in EXIF.
    """

    def __init__(self, file: BinaryIO) -> None:
        import tifffile

        pages: Any = tifffile.TiffFile(file).pages
        page = self._page = pages[0]
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.tile_pixels = int(page.tilewidth) * int(page.tilelength)
        self.bits = int(np.max(page.bitspersample))
        self.is_deep = self.bits > 8
        self.pages = len(pages)
        channels = page.samplesperpixel - len(page.extrasamples)
        self.is_colour = channels > 1 or page.photometric == _PALETTE
        tag = page.tags.get(ORIENTATION)
        self.orientation = int(tag.value) if tag else 1

    def read(self) -> Image.Image:
        """Decode a deep page: an image of mode L, LA, RGB or RGBA, upright.

        Raises:
            ValueError: It has other channels.
        """
        page = self._page
        channels = page.samplesperpixel - len(page.extrasamples)
        if page.samplesperpixel > _MOST_CHANNELS:
            raise ValueError(f"it has {page.samplesperpixel} channels")
        if (page.photometric, channels) not in ((_MINISWHITE, 1), (_MINISBLACK, 1), (_RGB, 3)):
            raise ValueError(f"it has {channels} channels of {self.bits} bits that are neither gray nor RGB")
        pixels = page.asarray(maxworkers=1).reshape(self._shape())
        if page.planarconfig == 2:  # one plane after the other
            pixels = np.moveaxis(pixels, 0, -1)
        has_alpha = bool(page.extrasamples) and page.extrasamples[0] == _ALPHA
        pixels = pixels[..., : channels + has_alpha]
        if page.photometric == _MINISWHITE:
            return ImageOps.invert(_picture(pixels[..., :1], has_alpha=False, orientation=self.orientation))
        return _picture(pixels, has_alpha=has_alpha, orientation=self.orientation)

    def _shape(self) -> tuple[int, ...]:
        samples = self._page.samplesperpixel
        if self._page.planarconfig == 2:
            return samples, self.height, self.width
        return self.height, self.width, samples


def _picture(pixels: Array, *, has_alpha: bool, orientation: int) -> Image.Image:
    """An 8-bit image of (height, width, channels); transparency is scaled by a depth of its own."""
    colours = pixels.shape[2] - has_alpha
    channels = [to_8_bits(each) for each in (pixels[..., :colours], pixels[..., colours:]) if each.size]
    flat = np.concatenate(channels, axis=2)
    image = Image.fromarray(np.ascontiguousarray(flat.squeeze(2) if flat.shape[2] == 1 else flat))
    image = image if image.mode == _MODES[flat.shape[2]] else image.convert(_MODES[flat.shape[2]])
    image.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)
