"""Cut one data set into sites, as if several hospitals had collected it, to try a federation out."""

import filecmp
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.errors import DataError, UsageError
from worker.data.classes import CLASSES_ARRAY, CLASSES_FILE, Declared
from worker.data.finding import find_listing
from worker.data.listing import ImageFiles, LabelledArrays, Labels, Listing, Subset, Tables, count_per_class
from worker.data.partition import partition


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """What was written.

    Attributes:
        classes: Class names.
        sites: The path of each site: a folder, or an .npz.
        train: (sites, classes) training examples.
        test: (sites, classes) test examples; None if the data set has no test subset.
    """

    classes: tuple[str, ...]
    sites: tuple[Path, ...]
    train: Labels
    test: Labels | None


def split(
    spec: str,
    *,
    into: int,
    out: Path,
    scheme: str = "iid",
    seed: int = 0,
    classes: Declared | None = None,
) -> Split:
    """Write `out`/site-1 … site-N, patients undivided, or nothing at all.

    Folders of images become folders (hard links where the disk allows, so they cost no space), arrays
    become .npz files. The test subset is always dealt evenly (iid): each site is measured on every class.

    Args:
        spec: The data set, as `--data` takes it.
        into: Number of sites.
        out: A new or empty folder, or one that holds this very split already.
        scheme: How the training subset is dealt: iid, shards or dirichlet:ALPHA.
        seed: The same seed gives the same sites.
        classes: The classes as `--classes` names them; the sites keep names and order.

    Raises:
        DataError: The data can't be used, or not be cut into so many sites.
        UsageError: `out` holds something else, or the scheme is impossible.
    """
    listing = find_listing(spec, classes)
    if isinstance(listing, Tables):
        raise DataError(
            f"{spec!r} has no classes, and only examples of classes can be cut into sites. Give each worker its own "
            "file, or try `worker swarm`."
        )
    _check_out(out, Path(spec))
    train = _cut(listing.train, into, scheme, seed, "training")
    test = _cut(listing.test, into, "iid", seed, "test")
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a split that was killed
    try:
        for i in range(into):
            _write_site(aside / f"site-{i + 1}", listing, train[i], test[i])
        _move_into_place(aside, out)
    except OSError as exc:
        raise UsageError(f"Can't write {str(out)!r}: {exc}. Choose another --out.") from exc
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _describe(listing, out, train, test)


def format_table(result: Split) -> str:
    """The counts per site and class, for a person."""
    header = ["site", *result.classes]
    rows = [[site.name, *map(str, counts)] for site, counts in zip(result.sites, result.train, strict=True)]
    if result.test is not None:
        header += [f"test {name}" for name in result.classes]
        rows = [[*row, *map(str, counts)] for row, counts in zip(rows, result.test, strict=True)]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [header, *rows]
    )


def _check_out(out: Path, source: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a file. Expected a new or empty folder.")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"--out {str(out)!r} lies inside the data set {str(source)!r}, where it would count as a class. "
            "Choose a folder beside it."
        )


def _cut(subset: Subset | None, into: int, scheme: str, seed: int, name: str) -> Sequence[Subset | None]:
    if subset is None:
        return [None] * into
    try:
        indices = partition(subset.labels, subset.patients, into, scheme, seed)
    except DataError as exc:
        raise DataError(f"The {name} part: {exc}") from exc
    return [subset.take(index) for index in indices]


def _write_site(target: Path, listing: Listing, train: Subset | None, test: Subset | None) -> None:
    if isinstance(train, LabelledArrays):
        _write_arrays(target.with_name(f"{target.name}.npz"), listing, train, test)
        return
    subsets = {"train": train, "test": test} if listing.has_subfolders else {"": train}
    must_tell = listing.declared is not None
    for folder, subset in subsets.items():
        if isinstance(subset, ImageFiles):
            _write_images(target / folder, listing.classes, subset)
            must_tell |= not count_per_class(subset.labels, len(listing.classes)).all()
    if must_tell:
        names = "".join(f"{name}\n" for name in listing.classes)
        (target / CLASSES_FILE).write_text(names, encoding="utf-8")


def _write_images(target: Path, classes: tuple[str, ...], subset: ImageFiles) -> None:
    for name in classes:
        (target / name).mkdir(parents=True)
    for path, inner, label in zip(subset.paths, subset.inner, subset.labels, strict=True):
        copy = target / classes[label] / inner
        copy.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(path.resolve(), copy)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, a file system without links, or someone else's file
        shutil.copy2(source, target)


def _write_arrays(path: Path, listing: Listing, train: LabelledArrays, test: Subset | None) -> None:
    arrays = {"x_train": train.x, "y_train": train.values}
    if isinstance(test, LabelledArrays):
        arrays |= {"x_test": test.x, "y_test": test.values}
    if listing.declared is not None and listing.declared.is_named:
        arrays[CLASSES_ARRAY] = np.array(listing.classes)
    elif listing.declared is not None or not count_per_class(train.labels, len(listing.classes)).all():
        arrays[CLASSES_ARRAY] = np.array([int(name) for name in listing.classes])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)


def _move_into_place(aside: Path, out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not _is_same(aside, out):
            raise UsageError(
                f"--out {str(out)!r} is not empty and holds something else than this split. "
                "Choose another folder, or remove it."
            )
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    aside.replace(out)


def _is_same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same files with the same contents."""
    names = sorted(path.relative_to(left) for path in left.rglob("*"))
    if names != sorted(path.relative_to(right) for path in right.rglob("*")):
        return False
    files = [name for name in names if (left / name).is_file()]
    return all(
        (left / name).samefile(right / name) or filecmp.cmp(left / name, right / name, shallow=False)
        for name in files
    )


def _describe(
    listing: Listing, out: Path, train: Sequence[Subset | None], test: Sequence[Subset | None]
) -> Split:
    suffix = ".npz" if isinstance(listing.train or listing.test, LabelledArrays) else ""
    return Split(
        classes=listing.classes,
        sites=tuple(out / f"site-{i + 1}{suffix}" for i in range(len(train))),
        train=_count(train, listing.classes),
        test=_count(test, listing.classes) if listing.test is not None else None,
    )


def _count(subsets: Sequence[Subset | None], classes: tuple[str, ...]) -> Labels:
    empty = np.zeros(len(classes), np.int64)
    return np.stack(
        [empty if subset is None else count_per_class(subset.labels, len(classes)) for subset in subsets]
    )
