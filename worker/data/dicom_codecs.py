"""The compressions of DICOM that Pillow doesn't read, as a plugin of pydicom: its module names what it needs.

imagecodecs rather than GDCM, which ends the whole process on damaged files (seen on each of its JPEG codecs,
within 300 files with random damage), and rather than pylibjpeg-libjpeg, which is under the GPL.
"""

from typing import Any

from pydicom import uid

JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
DECODER_DEPENDENCIES = dict.fromkeys(
    (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1, *JPEG_LS), ("imagecodecs",)
)  #: asked for by pydicom


def is_available(syntax: str) -> bool:
    """Asked by pydicom."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(data: bytes, runner: Any) -> bytes:
    """Decode one compressed frame; colours stay as they are stored, for pydicom knows what they are."""
    import imagecodecs

    if runner.transfer_syntax in JPEG_LS:
        pixels = imagecodecs.jpegls_decode(data)
    else:
        as_stored = {1: None, 3: "RGB"}[runner.samples_per_pixel]
        pixels = imagecodecs.jpeg8_decode(data, colorspace=as_stored, outcolorspace=as_stored)
    expected = (runner.rows, runner.columns)
    is_by_plane = pixels.ndim == 3 and pixels.shape[1:] == expected
    if pixels.shape[:2] != expected and not is_by_plane:
        raise ValueError("the compressed picture has another size")
    runner.set_option("bits_allocated", 8 * pixels.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", int(is_by_plane))
    return bytes(pixels.tobytes())
