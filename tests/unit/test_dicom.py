"""DICOM: the right values by the standard's formulas, worked out here in float64, and no tag gets out."""

import io
import logging
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

from broker.errors import DataError
from tests.dicoms import ENCODERS, NATIVE, SECRETS, dicom, ramp, table
from worker.data.dicom import coded_size, patient_of_dicom
from worker.data.images import MAX_PIXELS, ImageFacts, facts_of, read_image

SHAPE = (16, 20, 1)
RAMP = ramp(12)
SPREAD = RAMP * (255 / 4095)  # as float64, before it is rounded
LOSSY = (uid.JPEGLSNearLossless, uid.JPEG2000, uid.JPEGExtended12Bit, uid.JPEGBaseline8Bit)

# Pydicom warns of its own encoding in these tests, and pytest resets the filter that keeps that from a worker's log.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def shown(data: bytes, channels: int = 1) -> np.ndarray:
    pixels = read_image(data, (*SHAPE[:2], channels)).astype(int)
    return pixels[..., 0] if channels == 1 else pixels


def rounded(shares: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(shares, 0, 1))


# Transfer syntaxes


@pytest.mark.parametrize("syntax", [*NATIVE, uid.RLELossless, *ENCODERS], ids=lambda syntax: syntax.keyword)
def test_every_compression_that_hospitals_have_is_read(syntax: Any) -> None:
    """Lossless ones to the value; lossy ones within what they lose of a smooth 12-bit ramp."""
    if syntax == uid.JPEGBaseline8Bit:
        data, expected = dicom((RAMP >> 4).astype(np.uint8), syntax=syntax), (RAMP >> 4).astype(float)
    else:
        data, expected = dicom(RAMP, syntax=syntax, BitsStored=12), np.rint(SPREAD)

    lost = np.abs(shown(data) - expected)

    assert lost.mean() < (6 if syntax == uid.JPEG2000 else 1)
    assert syntax in LOSSY or lost.max() == 0


@pytest.mark.parametrize(
    ("syntax", "colours"),
    [
        (uid.ExplicitVRLittleEndian, "RGB"), (uid.RLELossless, "RGB"), (uid.JPEGLosslessSV1, "RGB"),
        (uid.JPEGLSLossless, "RGB"), (uid.JPEG2000Lossless, "YBR_RCT"), (uid.JPEGBaseline8Bit, "YBR_FULL_422"),
    ],
)  # fmt: skip
def test_colour_stays_colour(syntax: Any, colours: str) -> None:
    """Red, green and blue stay in their order; a JPEG's YBR becomes RGB."""
    level = np.linspace(0, 255, 20).round().astype(np.uint8) + np.zeros((16, 1), np.uint8)
    rgb = np.stack([level, 255 - level, level // 2], axis=2)

    pixels = shown(dicom(rgb, syntax=syntax, PhotometricInterpretation=colours), 3)

    assert np.abs(pixels - rgb).max() <= (12 if syntax == uid.JPEGBaseline8Bit else 0)


def test_uncompressed_ybr_becomes_rgb() -> None:
    """BT.601 at full range (PS3.3, C.7.6.3.1.2): Y 150, Cb 100, Cr 180 is RGB (223, 123, 100)."""
    y, cb, cr = 150, 100, 180
    ybr = np.full((16, 20, 3), (y, cb, cr), np.uint8)
    expected = (
        y + 1.402 * (cr - 128),
        y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128),
        y + 1.772 * (cb - 128),
    )

    pixels = shown(dicom(ybr, PhotometricInterpretation="YBR_FULL"), 3)

    assert np.abs(pixels - np.array(expected)).max() <= 1


def test_a_palette_gives_its_colours() -> None:
    """Index 1 is (255, 128, 0), in a table of 16 bits an entry."""
    index = np.zeros((16, 20), np.uint8)
    index[:, 10:] = 1
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, entries in (("Red", [0, 0xFFFF]), ("Green", [0, 0x8080]), ("Blue", [0, 0]))
        for part, value in (("Descriptor", [2, 0, 16]), ("Data", struct.pack("<2H", *entries)))
    }

    pixels = shown(dicom(index, PhotometricInterpretation="PALETTE COLOR", **tables), 3)

    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 19].tolist() == [255, 128, 0]
    assert facts_of(dicom(index, PhotometricInterpretation="PALETTE COLOR", **tables)).is_colour


@pytest.mark.parametrize("known", [uid.HTJ2KLossless, uid.MPEG2MPML])
def test_a_compression_that_is_not_read_is_named(known: Any) -> None:
    """The line says what to export instead; a number that is nobody's isn't repeated."""
    data = dicom(RAMP, syntax=known, frame=b"abcd")
    with pytest.raises(DataError, match=r"compressed in a way that isn't read \((High|MPEG2).*JPEG-LS"):
        read_image(data, SHAPE)
    with pytest.raises(DataError, match=r"isn't read \(an unknown one\)"):
        read_image(data.replace(b"1.2.840.10008.1.2.4", b"1.2.840.99999.1.2.4"), SHAPE)


def test_a_deflated_file_is_refused_uninflated() -> None:
    """A few kilobytes could become gigabytes before any size is known."""
    with pytest.raises(DataError, match="deflated"):
        read_image(dicom(RAMP, syntax=uid.DeflatedExplicitVRLittleEndian), SHAPE)


# Values


def test_monochrome1_is_inverted() -> None:
    """Its 0 is white."""
    data = dicom(RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(data), rounded(1 - SPREAD / 255))


def test_without_a_window_the_range_of_the_image_is_spread() -> None:
    """12 bits declared as 16 would be all but black; the least value becomes black, the largest white."""
    assert np.array_equal(shown(dicom(RAMP)), np.rint(SPREAD))
    assert np.array_equal(shown(dicom(RAMP // 4 + 100)), rounded((RAMP // 4) / (4095 // 4)))


def test_eight_bits_without_a_window_are_shown_as_they_are() -> None:
    """A dark picture of 8 bits is dark, as it is in a PNG."""
    dark = (RAMP >> 6).astype(np.uint8)
    assert np.array_equal(shown(dicom(dark)), dark)
    assert np.array_equal(shown(dicom(dark, RescaleSlope=2, RescaleIntercept=-50)), dark)
    assert np.array_equal(shown(dicom(dark, BitsStored=6)), rounded(dark / 63))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_rescale_comes_first_and_then_the_window(dtype: type, function: str | None) -> None:
    """CT: Hounsfield units, then PS3.3 C.11.2.1.2 and C.11.2.1.3 with centre 40.5 and width 400."""
    center, width = 40.5, 400.0
    stored = RAMP.astype(dtype) - (dtype(1024) if dtype is np.int16 else dtype(0))
    units = stored.astype(np.float64) * 1.5 - 900
    expected = {
        "SIGMOID": 1 / (1 + np.exp(-4 * (units - center) / width)),
        "LINEAR_EXACT": (units - center) / width + 0.5,
    }.get(function or "", (units - (center - 0.5)) / (width - 1) + 0.5)
    window = {"WindowCenter": [center, 9], "WindowWidth": [width, 9]}
    tags = window if function is None else {**window, "VOILUTFunction": function}

    pixels = shown(dicom(stored, RescaleSlope=1.5, RescaleIntercept=-900, **tags))

    assert np.array_equal(pixels, rounded(expected))


def test_a_modality_table_comes_before_the_window() -> None:
    """Values 0 to 4095 go to 4095 to 0 by the table; the window 2048 wide shows the middle."""
    sequence = [table(list(range(4095, -1, -1)), 16, ModalityLUTType="US")]
    data = dicom(RAMP, ModalityLUTSequence=sequence, WindowCenter=2048, WindowWidth=2049)
    assert np.array_equal(shown(data), rounded((4095.0 - RAMP - 2047.5) / 2048 + 0.5))


def test_a_voi_table_is_applied_and_beats_the_window() -> None:
    """A square root of 10 bits: the table's largest entry is white."""
    curve = np.sqrt(np.arange(4096) / 4095)
    entries = np.rint(1023 * curve).astype(int).tolist()
    data = dicom(RAMP, BitsStored=12, VOILUTSequence=[table(entries, 16)], WindowCenter=1, WindowWidth=2)
    assert np.array_equal(shown(data), rounded(np.array(entries)[RAMP] / 1023))


@pytest.mark.parametrize(
    ("center", "width"), [(2000, 0), (2000, -5), (90_000, 10), (-500, 3), (2000, None), (None, 100)]
)
def test_a_window_that_shows_nothing_is_passed_over(center: float | None, width: float | None) -> None:
    """A wrong tag doesn't make a black picture."""
    tags = {
        name: value for name, value in (("WindowCenter", center), ("WindowWidth", width)) if value is not None
    }
    assert np.array_equal(shown(dicom(RAMP, **tags)), np.rint(SPREAD))


@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_widens_no_range(colours: str) -> None:
    """The surround that a scanner fills up with a value of its own."""
    stored = RAMP.astype(np.int16)
    stored[0] = -2000
    seen = stored[1:].astype(float)
    shares = (seen - seen.min()) / (seen.max() - seen.min())

    pixels = shown(dicom(stored, PixelPaddingValue=-2000, PhotometricInterpretation=colours))

    assert (pixels[0] == 0).all()
    assert np.array_equal(pixels[1:], rounded(1 - shares if colours == "MONOCHROME1" else shares))


def test_unused_high_bits_say_nothing() -> None:
    """Old files keep overlays there; 12 bits are stored, and the four above them are not the picture's."""
    marked = RAMP.copy()
    marked[::2] |= 0x1000
    assert np.array_equal(shown(dicom(marked, BitsStored=12)), np.rint(SPREAD))


def test_a_flat_picture_is_no_error() -> None:
    """A blank exposure has no range."""
    assert (shown(dicom(np.full((16, 20), 700, np.uint16))) == 0).all()


def test_it_is_stretched_to_the_models_shape() -> None:
    """As any other picture, gray or colour."""
    expected = np.asarray(
        Image.fromarray(np.rint(SPREAD).astype(np.uint8)).resize((5, 4), Image.Resampling.BILINEAR)
    )
    assert np.array_equal(read_image(dicom(RAMP), (4, 5, 3)), np.repeat(expected[..., None], 3, axis=2))


# What is refused


def test_several_frames_are_refused_with_what_to_do() -> None:
    """Nobody says which frame of a film shows the class."""
    with pytest.raises(DataError, match=r"2 frames .* Export single frames"):
        read_image(dicom(np.vstack([RAMP, RAMP]), Rows=16, NumberOfFrames=2), SHAPE)


@pytest.mark.parametrize("frames", [1, 200_000])
def test_a_huge_picture_is_refused_undecoded(frames: int) -> None:
    """Rows × columns × frames are judged before any pixel: the file here has 640 bytes of them."""
    tags = {"Rows": 60_000, "Columns": 60_000} if frames == 1 else {"NumberOfFrames": frames, "Columns": 600}
    with pytest.raises(DataError, match=f"more than the {MAX_PIXELS:,} that are taken"):
        read_image(dicom(RAMP, **tags), SHAPE)


@pytest.mark.parametrize(
    "syntax", [uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless]
)
def test_a_compressed_picture_of_another_size_is_refused_undecoded(syntax: Any) -> None:
    """The stream says 400 × 300 and the header 20 × 16; a small file could claim billions there."""
    frame = ENCODERS[syntax](np.zeros((300, 400), np.uint8))
    assert coded_size(frame) == (400, 300)
    with pytest.raises(DataError, match="another size than its header says"):
        read_image(dicom((RAMP >> 4).astype(np.uint8), syntax=syntax, frame=frame), SHAPE)


def test_a_file_without_a_picture_is_refused() -> None:
    """A report, or the index of a CD."""
    for tags in ({"PixelData": None}, {"Rows": None}):
        with pytest.raises(DataError, match="holds no picture"):
            read_image(dicom(RAMP, **tags), SHAPE)


# Privacy


@pytest.fixture
def everything_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Any:
    """All that got out: log, stdout, stderr, and pydicom's own log, had it been on."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pydicom").addHandler(caplog.handler)
    yield lambda: "".join((caplog.text, *capfd.readouterr()))
    logging.getLogger("pydicom").removeHandler(caplog.handler)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_no_personal_tag_gets_out_of_a_damaged_file(tmp_path: Path, everything_said: Any) -> None:
    """500 files with random damage: pixels or one line, no tag in it, in its causes, in a warning or a log."""
    rng = np.random.default_rng(5)
    texts = []
    for syntax in (
        uid.ExplicitVRLittleEndian,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
        uid.RLELossless,
    ):
        good = np.frombuffer(
            dicom(RAMP, syntax=syntax, BitsStored=12, WindowCenter=9, WindowWidth=8), np.uint8
        )
        for _ in range(100):
            bad = good.copy()
            bad[rng.integers(132, len(bad), 6)] = rng.integers(0, 255, 6)
            with warnings.catch_warnings(record=True) as caught:
                try:
                    assert read_image(bad.tobytes(), SHAPE).shape == SHAPE
                    facts_of(bad.tobytes())
                except DataError as exc:
                    assert exc.__cause__ is None
                    assert exc.__context__ is None
                    texts.append(str(exc))
            texts += [str(each.message) for each in caught]
        path = tmp_path / "x.dcm"
        path.write_bytes(bad.tobytes())
        patient_of_dicom(path)
    said = "".join(texts) + everything_said()
    assert len(texts) > 50
    for secret in SECRETS:
        assert secret not in said


def test_a_value_that_is_no_number_is_not_repeated(everything_said: Any) -> None:
    """Pydicom's errors and warnings would quote it; a window of it is passed over."""
    data = dicom(RAMP, WindowCenter="9", WindowWidth="8")
    assert np.array_equal(shown(data.replace(b"DS\x02\x009 ", b"DS\x02\x00Hx")), np.rint(SPREAD))
    with pytest.raises(DataError, match="damaged, or not as the standard says") as caught:
        read_image(
            dicom(RAMP, RescaleSlope="9", RescaleIntercept=0).replace(b"DS\x02\x009 ", b"DS\x02\x00Hx"), SHAPE
        )
    assert "Hx" not in str(caught.value) + everything_said()


def test_patients_are_told_apart_by_a_digest(tmp_path: Path) -> None:
    """The same number gives the same text, which doesn't hold it; none gives none."""
    for name, number in (("a", "PID-4711"), ("b", " PID-4711 "), ("c", "PID-4712"), ("d", "")):
        (tmp_path / name).write_bytes(dicom(RAMP, PatientID=number))
    (tmp_path / "e").write_text("no DICOM")
    a, b, c, d, e = (patient_of_dicom(tmp_path / name) for name in "abcde")
    assert a == b != c
    assert "4711" not in str(a)
    assert d is None
    assert e is None


def test_only_what_the_picture_needs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, birth date and comments aren't even in memory."""
    kept: list[Dataset] = []
    real = pydicom.dcmread

    def reading(*arguments: Any, **options: Any) -> Dataset:
        kept.append(real(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(pydicom, "dcmread", reading)
    (tmp_path / "x").write_bytes(dicom(RAMP))
    read_image(tmp_path / "x", SHAPE)
    facts_of(tmp_path / "x")
    assert len(kept) == 2
    for data in kept:
        assert not [name for name in data.dir() if name.startswith("Patient")]


# The facts


def test_the_facts_are_the_headers() -> None:
    """Without decoding: here the pixels are broken."""
    data = dicom(RAMP, syntax=uid.JPEGLosslessSV1, frame=b"broken", BitsStored=12)
    assert facts_of(data) == ImageFacts(width=20, height=16, bits=12, is_colour=False)


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    """An archive names its files as it likes; a picture with a wrong suffix is read as what it is."""
    for name in ("IM000001", "x.dcm", "1.2.840.113619.2", "x.jpg"):
        (tmp_path / name).write_bytes(dicom(RAMP))
        assert np.array_equal(read_image(tmp_path / name, SHAPE)[..., 0], np.rint(SPREAD))
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(buffer, "PNG")
    (tmp_path / "really.dcm").write_bytes(buffer.getvalue())
    assert math.isclose(read_image(tmp_path / "really.dcm", SHAPE).max(), 0)
