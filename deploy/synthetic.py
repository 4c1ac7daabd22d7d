"""Made-up pictures that look enough like the real ones to try everything where those can't be had.

python -m deploy.synthetic xrays         a folder of chest X-rays
python -m deploy.synthetic digits.npz    digits, as MNIST's
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

_RIB_SPACING = 0.11  # of the picture's height
_DIGIT_SIZE = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class XraySet:
    """How large a made-up X-ray data set is; patients have one to three pictures, as in the real one.

    Attributes:
        train_patients: Patients of each class under train/.
        test_patients: Patients of each class under test/.
        size: Height and width in pixels.
    """

    train_patients: int = 80
    test_patients: int = 30
    size: int = 224


def write_xrays(root: Path, wanted: XraySet | None = None, seed: int = 0) -> None:
    """Write root/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg, named as Kermany's are."""
    wanted = wanted or XraySet()
    rng = np.random.default_rng(seed)
    for part, first, count in (
        ("train", 1, wanted.train_patients),
        ("test", 1 + wanted.train_patients, wanted.test_patients),
    ):
        for patient in range(first, first + count):
            _write_patient(root / part / "NORMAL", f"IM-{patient:04}-{{:04}}", wanted.size, rng)
            _write_patient(root / part / "PNEUMONIA", f"person{patient}_bacteria_{{}}", wanted.size, rng)


def make_xray(size: int, *, has_pneumonia: bool, rng: np.random.Generator) -> Pixels:
    """One frontal chest, (size, size) uint8: dark lung fields between ribs; pneumonia clouds a part of them.

    Exposure, build and position vary more than the disease does, so that brightness alone tells little.
    """
    y, x = np.mgrid[0:size, 0:size] / size
    x, y = x - rng.normal(0.5, 0.02), y - rng.normal(0.5, 0.02)
    lungs = sum(_lung(x, y, side, rng) for side in (-1.0, 1.0))
    heart = _blob(x, y, 0.06, 0.12, 0.13 * rng.uniform(0.8, 1.2), 0.17)
    ribs = np.sin(2 * np.pi * (y + 0.35 * x**2) / _RIB_SPACING + rng.uniform(0, 6))
    body = 0.62 - 0.9 * np.maximum(np.abs(x) - 0.38, 0)
    picture = body - 0.38 * lungs + 0.22 * heart + 0.035 * ribs * lungs
    picture += 0.05 * _clouds(size, 5, rng) + 0.03 * _clouds(size, 14, rng)
    if has_pneumonia:
        picture += lungs * (_opacities(x, y, rng) + rng.uniform(0, 0.12))
    picture = (picture - 0.45) * rng.uniform(0.75, 1.3) + rng.normal(0.47, 0.06)
    picture += rng.normal(0, 0.015, (size, size))
    return np.asarray(np.clip(picture, 0, 1) * 255, np.uint8)


def write_digits(path: Path, num_train: int = 2000, num_test: int = 500, seed: int = 0) -> None:
    """Write an .npz as MNIST's: x_train, y_train, x_test, y_test, 28 × 28 uint8, ink is 255."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", num_train), ("test", num_test)):
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        arrays[f"x_{part}"] = np.stack([make_digit(int(label), rng) for label in labels])
        arrays[f"y_{part}"] = labels
    np.savez_compressed(path, allow_pickle=False, **arrays)


def make_digit(digit: int, rng: np.random.Generator) -> Pixels:
    """One printed digit, (28, 28) uint8, turned, moved, scaled and with noise."""
    canvas = Image.new("L", (_DIGIT_SIZE, _DIGIT_SIZE))
    font = ImageFont.load_default(size=float(rng.uniform(18, 25)))
    middle = tuple(float(value) for value in _DIGIT_SIZE / 2 + rng.normal(0, 1.5, 2))
    ImageDraw.Draw(canvas).text((middle[0], middle[1]), str(digit), fill=255, font=font, anchor="mm")
    turned = canvas.rotate(float(rng.normal(0, 10)), Image.Resampling.BILINEAR)
    noisy = np.asarray(turned, np.float64) * rng.uniform(0.6, 1) + rng.normal(0, 12, turned.size)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _write_patient(folder: Path, name: str, size: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in range(1, int(rng.integers(1, 4)) + 1):
        pixels = make_xray(size, has_pneumonia=folder.name == "PNEUMONIA", rng=rng)
        Image.fromarray(pixels).save(folder / f"{name.format(picture)}.jpeg", quality=75)


def _lung(x: Floats, y: Floats, side: float, rng: np.random.Generator) -> Floats:
    """A soft-edged lung field: 1 inside, 0 outside."""
    width, height = rng.uniform(0.12, 0.15), rng.uniform(0.27, 0.33)
    distance = ((x - side * 0.19) / width) ** 2 + ((y + 0.02) / height) ** 2
    return np.asarray(1 / (1 + np.exp(6 * (distance - 1))))


def _opacities(x: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """One to three blurred white patches somewhere in the lungs."""
    total = np.zeros_like(x)
    for _ in range(int(rng.integers(1, 4))):
        side = rng.choice([-1.0, 1.0])
        centre_x, centre_y = side * rng.normal(0.19, 0.05), rng.normal(0.06, 0.12)
        radius = rng.uniform(0.06, 0.12)
        total += rng.uniform(0.18, 0.38) * _blob(
            x, y, centre_x, centre_y, radius, radius * rng.uniform(0.8, 1.5)
        )
    return total


def _blob(x: Floats, y: Floats, at_x: float, at_y: float, width: float, height: float) -> Floats:
    return np.asarray(np.exp(-(((x - at_x) / width) ** 2) - ((y - at_y) / height) ** 2))


def _clouds(size: int, cells: int, rng: np.random.Generator) -> Floats:
    """Smooth noise of about unit size, `cells` lumps across."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)


def main(path: Path) -> None:
    """Write what the path's name asks for."""
    if path.suffix == ".npz":
        write_digits(path)
    else:
        write_xrays(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
