"""DICOM files for the tests, written by pydicom itself, with a patient whose name must turn up nowhere."""

import io
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from worker.data.images import Pixels

SECRETS = (
    "Hospital^Secret",
    "PID-4711",
    "19300229",
    "Visit for a fall",
)  #: must get into no log and no answer

NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    bits = 8 if pixels.dtype == np.uint8 else 12
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels, lossless=True, predictor=1, bitspersample=bits, colorspace="RGB", outcolorspace="RGB"
        )
        if pixels.ndim == 3
        else imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits)
    )


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


ENCODERS: dict[Any, Callable[[np.ndarray], bytes]] = {
    uid.JPEGLossless: lossless_jpeg,
    uid.JPEGLosslessSV1: lossless_jpeg,
    uid.JPEGLSLossless: imagecodecs.jpegls_encode,
    uid.JPEGLSNearLossless: lambda pixels: imagecodecs.jpegls_encode(pixels, level=2),
    uid.JPEG2000Lossless: lambda pixels: imagecodecs.jpeg2k_encode(
        pixels, codecformat="j2k", reversible=True, level=0
    ),
    uid.JPEG2000: lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=80),
    uid.JPEGExtended12Bit: lambda pixels: imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12),
    uid.JPEGBaseline8Bit: jpeg,
}  #: RLE is pydicom's own


def dicom(
    pixels: np.ndarray,
    *,
    syntax: Any = uid.ExplicitVRLittleEndian,
    frame: bytes | None = None,
    **tags: object,
) -> bytes:
    """One file.

    Args:
        pixels: (rows, columns) or (rows, columns, 3), of whole numbers.
        syntax: The transfer syntax.
        frame: What is stored in the place of the encoded pixels.
        tags: To set beside those that the pixels ask for; None leaves one out.
    """
    bits = 8 * pixels.itemsize
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientComments = SECRETS
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    is_big = syntax == uid.ExplicitVRBigEndian
    native = pixels.astype(pixels.dtype.newbyteorder(">" if is_big else "<")).tobytes()
    encoded = frame if frame is not None else ENCODERS[syntax](pixels) if syntax in ENCODERS else None
    if encoded is None:
        data.PixelData = native + b"\0" * (len(native) % 2)
        data["PixelData"].VR = "OB" if bits == 8 else "OW"
    else:
        data.PixelData = encapsulate([encoded])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    if "BitsStored" in tags:
        data.HighBit = data.BitsStored - 1
    if syntax == uid.RLELossless:
        data.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def table(entries: list[int], bits: int, **more: object) -> Dataset:
    """One item of a modality or VOI LUT sequence, for the values from 0 on."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, bits]
    item.LUTData = np.array(entries, "<u2").tobytes()
    for name, value in more.items():
        setattr(item, name, value)
    return item


def ramp(bits: int = 12) -> Pixels:
    """(16, 20) values of a depth, 0 and the largest among them."""
    return np.linspace(0, 2**bits - 1, 320).round().astype(np.uint16).reshape(16, 20)
