"""Any X-ray file becomes the array that a model takes: this is the one way in, for training and for use."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from broker.errors import DataError

Shape = tuple[int, ...]
Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = (
    80_000_000  #: a larger picture is refused before it is decoded (a small file can hold a huge one)
)
SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".gif", ".bmp", ".webp"})

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # and no more: some of Pillow's others start programs
_MODES = {1: "L", 3: "RGB"}
_DEPTHS = (8, 10, 12, 14, 16)  # bits a pixel, as scanners write them into 16-bit files
_BROKEN_FILE = (  # what Pillow raises on files that are cut, damaged, or made to harm
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# MAX_PIXELS is stricter, and ends in an error; and a damaged EXIF tag is no news to whoever owns the picture.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_image(source: Path | bytes, shape: Shape) -> Pixels:
    """Decode one picture and stretch it to the model's shape.

    Grayscale, 16-bit, RGB, RGBA, palette and CMYK are all taken; the EXIF orientation is applied; what is
    transparent becomes black, as the surround of an X-ray is. A picture that has the size already keeps
    its pixels as they are.

    Args:
        source: A file, or the bytes of one.
        shape: (height, width, channels) with 1 or 3 channels.

    Returns:
        uint8 pixels of that shape, 0 black to 255 white.

    Raises:
        DataError: There is no such file, it isn't a picture, it is cut, or it has more than MAX_PIXELS.
    """
    height, width, mode = _target(shape)
    name = f"the image {str(source)!r}" if isinstance(source, Path) else "the uploaded image"
    try:
        with Image.open(
            source if isinstance(source, Path) else io.BytesIO(source), formats=_FORMATS
        ) as image:
            _check_size(image, name)
            # A large JPEG is decoded at a half, quarter or eighth of its size, never below twice the target.
            image.draft(mode, (2 * max(height, width),) * 2)
            flat = _flatten(ImageOps.exif_transpose(image), mode)
    except _BROKEN_FILE as exc:
        raise DataError(
            f"Can't read {name}: {_reason(exc)}. Expected a whole JPEG, PNG, GIF, BMP or WebP file."
        ) from exc
    if flat.size != (width, height):
        flat = flat.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(flat, dtype=np.uint8).reshape(shape)


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


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"Can't read {name}: it has {image.width} × {image.height} pixels, "
            f"more than the {MAX_PIXELS:,} that are taken. Save it smaller."
        )


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Bring any colour mode to L or RGB, transparency over black."""
    if image.mode.startswith("I"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale deep grays by the depth that they use: 12-bit X-rays in 16-bit files would be all but black."""
    pixels = np.asarray(image).astype(np.float32)
    largest = float(pixels.max(initial=0))
    depth = next((bits for bits in _DEPTHS if largest < 2**bits), 16)
    scaled = pixels * (255 / (2**depth - 1))
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


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
