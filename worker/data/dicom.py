"""DICOM, what a hospital's archive gives out: its pixels become a gray or colour picture, its tags stay inside.

Only the tags in `_TAGS` are ever read, and PatientID, of which a digest is kept in memory. What pydicom says
about a file may quote any of its tags, so no text of its errors, warnings and log goes any further.
"""

import hashlib
import io
import logging
import math
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from broker.errors import DataError
from worker.data.deep_images import to_8_bits, white_of

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Result = TypeVar("Result")

HEAD_BYTES = 132  #: so much of a file tells whether it is DICOM

_HEADER = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
_TAGS = (
    *_HEADER, "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelPaddingValue", "PixelPaddingRangeLimit",
    *(f"{colour}PaletteColorLookupTable{kind}" for colour in ("Red", "Green", "Blue")
      for kind in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)  # fmt: skip
_GRAY, _INVERTED, _PALETTE = "MONOCHROME2", "MONOCHROME1", "PALETTE COLOR"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 1 << 16  # within so many lies the transfer syntax
_MAX_TABLE = 1 << 17  # values that are worked out once each, rather than pixel by pixel

_JPEG_SIZES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # markers that tell the size
_JPEG2000 = b"\xff\x4f\xff\x51"

_ready = threading.Lock()


class _Refusal(Exception):
    """Why a file isn't taken, in words of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFacts:
    """What a file's header says about its picture.

    Attributes:
        width: Pixels.
        height: Pixels.
        bits: Of a channel.
        is_colour: Whether it has three channels, or a palette.
    """

    width: int
    height: int
    bits: int
    is_colour: bool


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these bytes is DICOM, whatever its name."""
    return head[128:HEAD_BYTES] == b"DICM"


def facts_of(source: Path | bytes, name: str) -> DicomFacts:
    """What the header says; the pixels aren't decoded.

    Raises:
        DataError: It can't be read.
    """
    return _guarded(lambda: _facts(_open(source, _HEADER)), name)


def read_dicom(source: Path | bytes, name: str, max_pixels: int) -> Pixels:
    """Decode a file with one frame.

    Gray goes through what the file says about it, in the standard's order (PS3.3, C.11): the modality LUT or
    rescale; the VOI LUT or else the window, the first if there are several; MONOCHROME1 is inverted. Without a
    usable window, 8 bits or fewer are shown as they are, and deeper ones from the darkest pixel to the brightest,
    for the stored bits are often declared wider than they are used, and the picture would be all but black.
    Padding around the picture becomes black.

    Args:
        source: A file, or the bytes of one.
        name: How an error calls it.
        max_pixels: A larger picture is refused before it is decoded.

    Returns:
        (height, width) gray or (height, width, 3) colour, 0 black to 255 white.

    Raises:
        DataError: It can't be read, has more than one frame, or is too large.
    """
    return _guarded(lambda: _render(_open(source, _TAGS), max_pixels), name)


def patient_of_dicom(path: Path) -> str | None:
    """A digest of the patient's number, which tells patients apart and no more; None if the file has none."""
    try:
        header = _guarded(lambda: _open(path, ("PatientID",)), "it")
    except DataError:
        return None  # it will be told when its pixels can't be read
    number = str(header.get("PatientID") or "").strip()
    return hashlib.sha256(number.encode()).hexdigest()[:32] if number else None


def _guarded(work: Callable[[], Result], name: str) -> Result:
    """Do what may fail in any way on a foreign file; the error says nothing of what is in it."""
    try:
        return work()
    except _Refusal as exc:
        reason = str(exc)
    except Exception as exc:  # noqa: BLE001 - damaged files make pydicom and the decoders raise anything
        reason = f"it is damaged, or not as the standard says ({type(exc).__name__})"
    # Raised out here, so that the error has no cause whose text would quote the file.
    raise DataError(f"Can't read {name}: {reason}. Expected a whole DICOM file with one picture.")


def _open(source: Path | bytes, tags: tuple[str, ...]) -> Any:
    """Read these tags and no others; the pixels only if they are among them."""
    pydicom = _load_pydicom()
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        head = file.read(_META_BYTES)
        if not is_dicom(head):
            raise _Refusal("it is not DICOM")
        if _DEFLATED in head:  # it would be inflated as a whole, without any bound
            raise _Refusal("it is deflated as a whole. Export it uncompressed")
        file.seek(0)
        return pydicom.dcmread(file, specific_tags=list(tags), stop_before_pixels="PixelData" not in tags)


def _load_pydicom() -> Any:
    """Import pydicom, which takes 0.3 s, and keep its chatter out: it may quote tags."""
    with _ready:
        import pydicom
        from pydicom.pixels import get_decoder

        from worker.data import dicom_codecs

        logging.getLogger("pydicom").disabled = True
        warnings.filterwarnings("ignore", module=r"pydicom\b")
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        for syntax in dicom_codecs.DECODER_DEPENDENCIES:
            decoder = get_decoder(syntax)
            if "imagecodecs" not in decoder.available_plugins:
                decoder.add_plugin("imagecodecs", (dicom_codecs.__name__, "decode_frame"))
    return pydicom


def _facts(data: Any) -> DicomFacts:
    if not data.get("Rows") or not data.get("Columns"):
        raise _Refusal("it holds no picture")
    is_colour = int(data.get("SamplesPerPixel") or 1) > 1 or data.get("PhotometricInterpretation") == _PALETTE
    bits = int(data.get("BitsStored") or data.get("BitsAllocated") or 0)
    return DicomFacts(width=int(data.Columns), height=int(data.Rows), bits=bits, is_colour=is_colour)


def _render(data: Any, max_pixels: int) -> Pixels:
    _check_size(data, max_pixels)
    stored, colours, bits = _decode(data)
    if colours in (_GRAY, _INVERTED):
        return _render_gray(stored, data, bits, is_inverted=colours == _INVERTED)
    if colours == _PALETTE:
        from pydicom.pixels import apply_color_lut

        stored, colours = apply_color_lut(stored, data), "RGB"
    if colours == "RGB":
        return np.asarray(to_8_bits(stored))
    raise _Refusal("its colours are none of MONOCHROME1, MONOCHROME2, PALETTE COLOR, RGB and YBR_FULL")


def _check_size(data: Any, max_pixels: int) -> None:
    facts = _facts(data)
    frames = int(data.get("NumberOfFrames") or 1)
    if facts.width * facts.height * frames > max_pixels:
        raise _Refusal(
            f"it has {facts.width} × {facts.height} pixels{f' in each of {frames} frames' if frames > 1 else ''}, "
            f"more than the {max_pixels:,} that are taken. Export it smaller"
        )
    if frames > 1:
        raise _Refusal(
            f"it has {frames} frames (a film or a volume), and nobody says which of them shows the class. "
            "Export single frames"
        )
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise _Refusal("it holds no picture")


def _decode(data: Any) -> tuple[Array, str, int]:
    """The stored values, (rows, columns) or (rows, columns, 3); what they are; and their bits."""
    syntax = data.file_meta.TransferSyntaxUID
    decoder, plugin = _decoder_for(syntax)
    if plugin:
        _check_coded_size(data)
    stored, facts = decoder.as_array(data, index=0, raw=False, decoding_plugin=plugin)
    return stored, str(facts["photometric_interpretation"]), int(facts.get("bits_stored", 32))


def _decoder_for(syntax: Any) -> tuple[Any, str]:
    """Pydicom's decoder, and who decodes within it; "" for pixels that aren't compressed."""
    from pydicom.pixels import get_decoder

    is_known = syntax.is_transfer_syntax and not syntax.is_private
    try:
        decoder = get_decoder(syntax)
        plugin = _plugin_for(syntax)
        if not syntax.is_compressed or plugin in decoder.available_plugins:
            return decoder, plugin
    except NotImplementedError:
        pass
    raise _Refusal(
        f"its pixels are compressed in a way that isn't read ({syntax.name if is_known else 'an unknown one'}). "
        "Export it uncompressed, or as JPEG, JPEG-LS, JPEG 2000 or RLE"
    )


def _plugin_for(syntax: Any) -> str:
    """Who decodes: said for each, for pydicom would take whatever is installed, GDCM first."""
    from pydicom import uid

    from worker.data.dicom_codecs import DECODER_DEPENDENCIES

    if syntax in DECODER_DEPENDENCIES:
        return "imagecodecs"
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEG2000, uid.JPEG2000Lossless):
        return "pillow"
    return "pydicom" if syntax == uid.RLELossless else ""


def _check_coded_size(data: Any) -> None:
    """A compressed picture tells its size once more: a small file could claim a huge one there."""
    from pydicom.encaps import get_frame

    size = coded_size(get_frame(data.PixelData, 0, number_of_frames=1))
    if size is not None and size != (int(data.Columns), int(data.Rows)):
        raise _Refusal("its compressed picture has another size than its header says")


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) as a JPEG, JPEG-LS or JPEG 2000 stream says; None if it doesn't, as RLE."""
    if frame.startswith(_JPEG2000):
        right, bottom, left, top = struct.unpack(">4I", frame[8:24])
        return right - left, bottom - top
    at = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] in _JPEG_SIZES:
            height, width = struct.unpack(">HH", frame[at + 5 : at + 9])
            return width, height
        # 0xFF may be repeated before a marker; any other segment tells its length.
        at += 1 if frame[at + 1] == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


# From stored values to shades


def _render_gray(stored: Array, data: Any, bits: int, *, is_inverted: bool) -> Pixels:
    is_padding = _find_padding(stored, data)
    seen = stored if is_padding is None else stored[~is_padding]
    low, high = seen.min().item(), seen.max().item()
    if stored.dtype.kind in "iu" and high - low < _MAX_TABLE:
        levels = np.arange(low, high + 1).astype(stored.dtype)
        used = levels[np.bincount((seen - low).ravel(), minlength=len(levels)) > 0]
        table = _shades(levels, used, data, bits, is_inverted=is_inverted)
        shades: Pixels = table[stored.clip(low, high).astype(np.int32) - low]
    else:
        shades = _shades(stored, seen.ravel(), data, bits, is_inverted=is_inverted)
    if is_padding is not None:
        shades[is_padding] = 0
    return np.asarray(shades)


def _find_padding(stored: Array, data: Any) -> npt.NDArray[np.bool_] | None:
    """Where a scanner filled up what it did not see; None if nowhere, or everywhere."""
    first = data.get("PixelPaddingValue")
    if first is None or isinstance(first, bytes):
        return None
    last = data.get("PixelPaddingRangeLimit")
    ends = (int(first), int(first if last is None else last))
    is_padding = (stored >= min(ends)) & (stored <= max(ends))
    return None if is_padding.all() or not is_padding.any() else is_padding


def _shades(values: Array, used: Array, data: Any, bits: int, *, is_inverted: bool) -> Pixels:
    """0 to 255 for each stored value; `used` are those of the picture, any order, repeats allowed."""
    tone = _tone_curve(used, data, bits)
    shares = tone(_apply_modality(values, data)).clip(0, 1)
    return np.asarray(np.rint(255 * (1 - shares if is_inverted else shares)).astype(np.uint8))


def _apply_modality(values: Array, data: Any) -> Floats:
    from pydicom.pixels import apply_modality_lut

    return np.asarray(apply_modality_lut(values, data), np.float64)


def _tone_curve(used: Array, data: Any, bits: int) -> Callable[[Floats], Floats]:
    """What makes shares of white, 0 to 1, of values behind the modality LUT."""
    real = _apply_modality(used, data)
    if not np.isfinite(real).all() or (np.ptp(used) > 0 and np.ptp(real) == 0):
        raise _Refusal("its rescale makes all pixels alike, or no numbers")
    for curve in (_voi_lut(data), _window(data)):
        # One that shows nothing of a picture that has something to show is a wrong tag.
        if curve is not None and (np.ptp(real) == 0 or np.ptp(curve(real).clip(0, 1)) > 0):
            return curve
    return _whole_range(real, data, used.dtype, bits)


def _voi_lut(data: Any) -> Callable[[Floats], Floats] | None:
    sequence = data.get("VOILUTSequence")
    if not sequence:
        return None
    from pydicom.pixels import apply_voi

    largest = white_of(float(np.max(apply_voi(_lut_ends(sequence[0]), data))))
    return lambda real: np.asarray(apply_voi(np.rint(real).astype(np.int64), data), np.float64) / largest


def _lut_ends(item: Any) -> npt.NDArray[np.int64]:
    """All values that the table knows."""
    count, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    return np.arange(first, first + count)


def _window(data: Any) -> Callable[[Floats], Floats] | None:
    """The first window by its function's formula (PS3.3, C.11.2.1.2 and C.11.2.1.3)."""
    center, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    function = str(data.get("VOILUTFunction") or "LINEAR")
    if not math.isfinite(center + width) or width <= 0:
        return None
    if function == "SIGMOID":
        return lambda real: 1 / (1 + np.exp((-4 * (real - center) / width).clip(-500, 500)))
    if function == "LINEAR_EXACT":
        return lambda real: (real - center) / width + 0.5
    if width <= 1:
        return lambda real: (real > center - 0.5).astype(np.float64)
    return lambda real: (real - (center - 0.5)) / (width - 1) + 0.5


def _first(value: Any) -> float:
    """The first of one or more numbers; NaN if there is none."""
    if value is None or isinstance(value, str):
        return math.nan
    return float(value[0] if hasattr(value, "__len__") and len(value) else value) if value != "" else math.nan


def _whole_range(real: Floats, data: Any, dtype: Any, bits: int) -> Callable[[Floats], Floats]:
    low, high = float(real.min()), float(real.max())
    if bits <= 8:
        is_signed = np.dtype(dtype).kind == "i"
        stored = np.array([-(1 << bits - 1), (1 << bits - 1) - 1] if is_signed else [0, (1 << bits) - 1])
        low, high = sorted(_apply_modality(stored.astype(dtype), data).tolist())
    return lambda values: (values - low) / ((high - low) or 1.0)
