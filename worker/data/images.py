"""Any X-ray file becomes the array that a model takes: this is the one way in, for training and for use."""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from broker.errors import DataError
from worker.data.deep_images import (
    ORIENTATION,
    PNG_HEAD,
    TIFF_HEADS,
    Tiff,
    png_depth,
    png_is_gray,
    png_size,
    read_png,
)
from worker.data.dicom import HEAD_BYTES, is_dicom, read_dicom
from worker.data.dicom import facts_of as facts_of_dicom

Result = TypeVar("Result")
Shape = tuple[int, ...]
Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = (
    80_000_000  #: a larger picture is refused before it is decoded (a small file can hold a huge one)
)
SUFFIXES = frozenset(
    {".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".dcm", ".dicom"}
)
KINDS = "JPEG, PNG, GIF, BMP, WebP, TIFF or DICOM"  #: what is read, for a person

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # no more: some of Pillow's others start programs
_MODES = {1: "L", 3: "RGB"}
_BROKEN_FILE = (  # what Pillow and the other decoders raise on files that are cut, damaged, or made to harm
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# MAX_PIXELS is stricter, and ends in an error; and a damaged EXIF tag is no news to whoever owns the picture.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the same of a damaged TIFF's


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """How a picture is in its file.

    Attributes:
        width: Pixels, as it is shown.
        height: Pixels, as it is shown.
        bits: Of a channel.
        is_colour: Whether it has more than gray.
        pages: How many pictures the file holds; the first is read.
    """

    width: int
    height: int
    bits: int = 8
    is_colour: bool = True
    pages: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSize:
    """What a picture takes once it is decoded.

    Attributes:
        width: Pixels, as stored.
        height: Pixels, as stored.
        is_deep_colour: Whether it has colours of more than 8 bits.
    """

    width: int
    height: int
    is_deep_colour: bool

    @property
    def pixels(self) -> int:
        """How many."""
        return self.width * self.height


def read_image(source: Path | bytes, shape: Shape) -> Pixels:
    """Decode one picture and stretch it to the model's shape.

    Grayscale, RGB, RGBA, palette and CMYK of 1 to 32 bits are all taken, and DICOM; the EXIF orientation is
    applied; what is transparent becomes black, as the surround of an X-ray is. A picture that has the size
    already keeps its pixels as they are. Of a TIFF with several pages the first is taken (`facts_of` tells
    how many there are).

    Args:
        source: A file, or the bytes of one.
        shape: (height, width, channels) with 1 or 3 channels.

    Returns:
        uint8 pixels of that shape, 0 black to 255 white.

    Raises:
        DataError: There is no such file, it isn't a picture, it is cut, or it has more than MAX_PIXELS.
    """
    height, width, mode = _target(shape)
    flat = _guarded(lambda head: _decode(source, head, shape, _name_of(source)), source)
    flat = flat if flat.mode == mode else flat.convert(mode)
    if flat.size != (width, height):
        flat = flat.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(flat, dtype=np.uint8).reshape(shape)


def facts_of(source: Path | bytes) -> ImageFacts:
    """How a picture is in its file; its pixels aren't decoded.

    Raises:
        DataError: There is no such file, or it isn't a picture.
    """
    return _guarded(lambda head: _look(source, head, _name_of(source)), source)


def size_of(source: Path | bytes) -> StoredSize:
    """How large a picture is, from its file's header alone: nothing of it is decoded, not even to find its EXIF tags.

    Raises:
        DataError: There is no such file, or it isn't a picture.
    """
    return _guarded(lambda head: _measure(source, head, _name_of(source)), source)


def _measure(source: Path | bytes, head: bytes, name: str) -> StoredSize:
    if is_dicom(head):
        facts = facts_of_dicom(source, name)
        is_deep_colour = facts.is_colour and facts.bits > 8
        return StoredSize(width=facts.width, height=facts.height, is_deep_colour=is_deep_colour)
    if head.startswith(TIFF_HEADS):
        with _stream(source) as file:
            tiff = Tiff(file)
            return StoredSize(
                width=tiff.width, height=tiff.height, is_deep_colour=tiff.is_colour and tiff.is_deep
            )
    if _is_deep_png(head):
        width, height = png_size(head)
        return StoredSize(width=width, height=height, is_deep_colour=not png_is_gray(head))
    with _open(source) as image:
        return StoredSize(width=image.width, height=image.height, is_deep_colour=False)


def is_image_file(path: Path) -> bool:
    """Whether a file is a picture by its name, or DICOM by its content: archives name those as they like."""
    if path.suffix.lower() in SUFFIXES:
        return True
    return is_dicom(_head_of(path))


def check_image_shape(shape: Shape) -> None:
    """Refuse a model that takes no pictures.

    Raises:
        DataError: The shape isn't (height, width, 1) or (height, width, 3).
    """
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in _MODES:
        raise DataError(
            f"The data are images, of shape (height, width, 1 or 3); the model takes {shape}. "
            "Use a model for images, or an .npz with arrays of that shape."
        )


def _target(shape: Shape) -> tuple[int, int, str]:
    check_image_shape(shape)
    return shape[0], shape[1], _MODES[shape[2]]


def _name_of(source: Path | bytes) -> str:
    return f"the image {str(source)!r}" if isinstance(source, Path) else "the uploaded image"


def _head_of(source: Path | bytes) -> bytes:
    with _stream(source) as file:
        return file.read(HEAD_BYTES)


def _stream(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _guarded(work: Callable[[bytes], Result], source: Path | bytes) -> Result:
    """Do what may fail on a file that isn't what it should be, given its first bytes."""
    try:
        return work(_head_of(source))
    except _BROKEN_FILE as exc:
        raise DataError(
            f"Can't read {_name_of(source)}: {_reason(exc)}. Expected a whole {KINDS} file."
        ) from exc


def _decode(source: Path | bytes, head: bytes, shape: Shape, name: str) -> Image.Image:
    """An upright picture of mode L or RGB, as large as in its file or smaller."""
    if is_dicom(head):
        return Image.fromarray(read_dicom(source, name, MAX_PIXELS))
    if _is_deep_png(head):
        _check_size(*png_size(head), name)
        return _flatten(read_png(source if isinstance(source, bytes) else source.read_bytes()))
    if head.startswith(TIFF_HEADS):
        with _stream(source) as file:
            tiff = Tiff(file)
            _check_size(tiff.width, tiff.height, name)
            _check_size(tiff.tile_pixels, 1, name)
            if tiff.is_deep:
                return _flatten(tiff.read())
    with _open(source) as image:
        _check_size(image.width, image.height, name)
        # A large JPEG is decoded at a half, quarter or eighth of its size, never below twice the target.
        image.draft(_MODES[shape[2]], (2 * max(shape[:2]),) * 2)
        return _flatten(ImageOps.exif_transpose(image))


def _look(source: Path | bytes, head: bytes, name: str) -> ImageFacts:
    if is_dicom(head):
        dicom = facts_of_dicom(source, name)
        return ImageFacts(width=dicom.width, height=dicom.height, bits=dicom.bits, is_colour=dicom.is_colour)
    if head.startswith(TIFF_HEADS):
        with _stream(source) as file:
            tiff = Tiff(file)
            width, height = _upright_size(tiff.width, tiff.height, tiff.orientation)
            return ImageFacts(
                width=width, height=height, bits=tiff.bits, is_colour=tiff.is_colour, pages=tiff.pages
            )
    with _open(source) as image:
        width, height = _upright_size(image.width, image.height, image.getexif().get(ORIENTATION, 1))
        is_gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        is_deep = _is_deep_png(head)
        if is_deep:  # Pillow calls gray with transparency RGBA
            is_gray = png_is_gray(head)
        return ImageFacts(width=width, height=height, bits=16 if is_deep else 8, is_colour=not is_gray)


def _open(source: Path | bytes) -> Image.Image:
    return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=_FORMATS)


def _is_deep_png(head: bytes) -> bool:
    return head.startswith(PNG_HEAD) and len(head) > 26 and png_depth(head) == 16


def _upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation >= 5 else (width, height)  # those of EXIF that turn it by 90°


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"Can't read {name}: it has {width} × {height} pixels, "
            f"more than the {MAX_PIXELS:,} that are taken. Save it smaller."
        )


def _flatten(image: Image.Image) -> Image.Image:
    """Bring any 8-bit colour mode to L or RGB, transparency over black."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode in ("1", "L"):
        return image.convert("L")
    return image.convert("RGB")


def _reason(exc: BaseException) -> str:
    if isinstance(exc, FileNotFoundError):
        return "there is no such file"
    if isinstance(exc, IsADirectoryError):
        return "it is a folder"
    if isinstance(exc, PermissionError):
        return "no permission to read it"
    if isinstance(exc, UnidentifiedImageError):
        return "it is not an image"
    return str(exc).split("\n")[0].rstrip(".") or type(exc).__name__
