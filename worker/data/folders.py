"""Folders of images: which file belongs to which class and patient, and nothing left out without a word."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from broker.errors import DataError
from worker.data.classes import Declared, agree, check_names, normalise, read_classes_file
from worker.data.dicom import patient_of_dicom
from worker.data.images import KINDS, is_image_file
from worker.data.listing import ImageFiles, Listing, Skipped, patient_of

FOLDERS_HELP = "Expected a folder with one sub-folder of images per class (optionally under train/ and test/)"

_SUBSET_NAMES = {
    "train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation"),
}  # fmt: skip
_SUBSET_OF = {name: subset for subset, names in _SUBSET_NAMES.items() for name in names}
_NO_DATA = frozenset(
    {"thumbs.db", "desktop.ini", "dicomdir"}
)  # kept by the system or the archive beside data
_SUFFIXES_SHOWN = 8
_DICOM_SUFFIXES = (".dcm", ".dicom")
_OTHER_IMAGES = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _LeftOut:
    """What is not taken, to be told in one line.

    Attributes:
        no_images: Files by suffix.
        elsewhere: Images by the folder that they lie in, which is no class.
    """

    no_images: Counter[str] = field(default_factory=Counter)
    elsewhere: Counter[str] = field(default_factory=Counter)

    def tell(self) -> None:
        """One warning, or none."""
        clauses = []
        if self.no_images:
            clauses.append(
                f"{_count(self.no_images.total(), 'file')} that are no images: {by_suffix(self.no_images)}"
            )
        clauses += [f"{_count(count, 'image')} in {folder}" for folder, count in self.elsewhere.items()]
        if clauses:
            _log.warning("Left out %s", "; ".join(clauses))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The same for whoever asks later."""
        found = [Skipped(count=count, what=f"images in {place}") for place, count in self.elsewhere.items()]
        if self.no_images:
            types = dict(self.no_images.most_common())
            found.insert(
                0, Skipped(count=self.no_images.total(), what="files that are no images", types=types)
            )
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _SubsetFolder:
    """The class folders of train/, test/ or a folder without these, by class name."""

    root: Path
    folders: Mapping[str, Path]


def find_folders(root: Path, given: Declared | None) -> Listing:
    """Look at a folder of images; nothing is decoded.

    Raises:
        DataError: It isn't one, or a class has no image.
    """
    left_out = _LeftOut()
    subsets = _find_subsets(root, left_out)
    declared = agree(given, read_classes_file(root), "classes.txt")
    first = next(iter(subsets.values()))
    classes = declared.names if declared else tuple(sorted(first.folders))
    for subset in subsets.values():
        _check_classes(subset, classes, may_lack=declared is not None)
    check_names(classes, repr(str(first.root)))
    found = {
        name: _list_subset(subset, classes, left_out, may_lack=declared is not None)
        for name, subset in subsets.items()
    }
    left_out.tell()
    has_subfolders = first.root != root
    grouped = dict(zip(found, _group(list(found.values()), classes), strict=True))
    train, test = grouped.get("train"), grouped.get("test")
    return Listing(
        classes=classes,
        train=train,
        test=test,
        has_subfolders=has_subfolders,
        declared=declared,
        skipped=left_out.skipped,
    )


def by_suffix(counts: Counter[str]) -> str:
    """`12 .nii, 2 .txt`."""
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(_SUFFIXES_SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_SUFFIXES_SHOWN))
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


# Subsets and classes


def _find_subsets(root: Path, left_out: _LeftOut) -> dict[str, _SubsetFolder]:
    """train and test, as far as they are there; else the folder itself, as train."""
    folders = _sub_folders(root)
    named: dict[str, Path] = {}
    for folder in folders:
        subset = _SUBSET_OF.get(folder.name.casefold())
        if subset in named:
            raise DataError(
                f"{str(root)!r} holds {named[subset].name!r} and {folder.name!r}, which mean the same. Keep one."
            )
        if subset is not None:
            named[subset] = folder
    if not {"train", "test"} & set(named):
        _count_files(root, left_out)
        _check_depth(root, folders)
        return {"train": _SubsetFolder(root=root, folders=_class_folders(root))}
    if "test" not in named and "val" in named:
        _log.info("There is no test/: %s/ is the test part.", named["val"].name)
        named["test"] = named.pop("val")
    _leave_out_beside(root, folders, named, left_out)
    subsets = [(name, named[name]) for name in ("train", "test") if name in named]
    return {name: _SubsetFolder(root=folder, folders=_class_folders(folder)) for name, folder in subsets}


def _leave_out_beside(root: Path, folders: list[Path], named: Mapping[str, Path], left_out: _LeftOut) -> None:
    """Count what lies beside train/ and test/."""
    _count_files(root, left_out)
    taken = [named[name] for name in ("train", "test") if name in named]
    for folder in folders:
        if folder in taken:
            _count_files(folder, left_out)
            continue
        count = sum(1 for _ in _walk(folder, left_out))
        reason = "there is a test part" if folder == named.get("val") else "beside train/ and test/"
        if count:
            left_out.elsewhere[f"{folder.name}/ ({reason})"] += count


def _check_depth(root: Path, folders: list[Path]) -> None:
    """Refuse a path that lies one level too high, and class folders that hold train/ and test/."""
    if len(folders) == 1:
        inner = _sub_folders(folders[0])
        if len(inner) > 1 or any(folder.name.casefold() in _SUBSET_OF for folder in inner):
            raise DataError(
                f"{str(root)!r} lies one level too high: it holds the folder {folders[0].name!r} alone, which "
                f"holds {_names(inner)}. Give {str(folders[0])!r}."
            )
    for folder in folders:
        inner = [each for each in _sub_folders(folder) if _SUBSET_OF.get(each.name.casefold()) == "train"]
        if inner:
            raise DataError(
                f"{str(folder)!r} holds {inner[0].name}/, so it is a data set of its own and no class. "
                f"Give {str(folder)!r} as the path, or put train/ and test/ above the class folders."
            )


def _class_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _sub_folders(root):
        name = normalise(folder.name)
        if name in found:
            raise DataError(
                f"{str(root)!r} holds two folders for the class {name!r}, which differ only in how é, ü and "
                f"the like are written (NFC, NFD): {found[name].name!a} and {folder.name!a}. "
                "Put their images into one."
            )
        found[name] = folder
    return found


def _check_classes(subset: _SubsetFolder, classes: tuple[str, ...], *, may_lack: bool) -> None:
    names = sorted(subset.folders)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "no sub-folder"
        raise DataError(
            f"{str(subset.root)!r} needs two classes or more; it has {found}. {FOLDERS_HELP}. "
            "Check that the path is the folder right above the class folders (or above train/ and test/), "
            "or name the classes with --classes."
        )
    if set(names) - set(classes) or (not may_lack and set(classes) - set(names)):
        advice = (
            "Name the folders as the declared classes, or declare them all."
            if may_lack
            else "Give train/ and test/ the same class folders, or name all classes with --classes."
        )
        raise DataError(
            f"The class folders of {str(subset.root)!r} differ from the data set's: expected {list(classes)}, "
            f"found {names}. {advice}"
        )


# Files


def _list_subset(
    subset: _SubsetFolder, classes: tuple[str, ...], left_out: _LeftOut, *, may_lack: bool
) -> ImageFiles:
    per_class: list[list[Path]] = []
    inner: list[Path] = []
    for name in classes:
        others = _LeftOut()
        folder = subset.folders.get(name)
        files = sorted(_walk(folder, others)) if folder else []
        if not files and not may_lack:
            found = f"; it holds {by_suffix(others.no_images)}" if others.no_images else ""
            raise DataError(
                f"The class folder {str(folder)!r} holds no image ({KINDS}){found}. "
                "Put images of that class there, or remove the folder everywhere."
            )
        left_out.no_images += others.no_images
        per_class.append(files)
        inner += [path.relative_to(folder) for path in files] if folder else []
    if not inner:
        raise DataError(f"No class folder of {str(subset.root)!r} holds an image ({KINDS}). Check the path.")
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in per_class])
    paths = tuple(path for files in per_class for path in files)
    return ImageFiles(paths=paths, inner=tuple(inner), labels=labels.astype(np.int64))


def _walk(folder: Path, left_out: _LeftOut) -> Iterator[Path]:
    """All images below a folder, links followed; what else there is, is counted."""
    visited: set[str] = set()
    for current, names, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(current)
        if real in visited:  # a link in a circle
            names.clear()
            continue
        visited.add(real)
        names[:] = [name for name in names if not _is_hidden(name)]
        for name in files:
            if _is_hidden(name) or name.lower() in _NO_DATA:
                continue
            path = Path(current, name)
            if _is_readable_image(path):
                yield path
            else:
                left_out.no_images[_suffix_of(path)] += 1


def _refuse(exc: OSError) -> None:
    raise DataError(f"Can't look into {exc.filename!r}: {exc.strerror}. Check its permissions.") from exc


def _is_readable_image(path: Path) -> bool:
    try:
        return is_image_file(path)
    except OSError:
        return False


def _count_files(root: Path, left_out: _LeftOut) -> None:
    """Count what lies right in a folder whose sub-folders are classes or subsets."""
    for path in root.iterdir():
        if path.is_dir() or _is_hidden(path.name) or path.name.lower() in {*_NO_DATA, "classes.txt"}:
            continue
        if _is_readable_image(path):
            left_out.elsewhere[f"{root.name}/ (outside the class folders)"] += 1
        else:
            left_out.no_images[_suffix_of(path)] += 1


def _sub_folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    except OSError as exc:
        raise DataError(f"Can't look into {str(root)!r}: {exc.strerror}. Check its permissions.") from exc


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _suffix_of(path: Path) -> str:
    suffix = path.suffix.lower()
    return (
        "".join(path.suffixes[-2:]).lower()
        if suffix in (".gz", ".bz2", ".zip")
        else suffix or "without suffix"
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _names(folders: list[Path]) -> str:
    shown = [folder.name for folder in folders[:4]]
    return ", ".join(shown) + (" …" if len(folders) > len(shown) else "")


# Patients


def _group(subsets: list[ImageFiles], classes: tuple[str, ...]) -> list[ImageFiles]:
    """Say for each image whose it is: by DICOM's tag, else the sub-folder, else the name, else alone."""
    tagged = [[_tag_of(path) for path in subset.paths] for subset in subsets]
    known = [tag for tags in tagged for tag in tags if tag]
    if len(known) > 1 and len(set(known)) == 1:
        _log.warning(
            "All %d DICOM files have the same PatientID, a placeholder as it seems: it is not used to keep "
            "patients undivided",
            len(known),
        )
        tagged = [[None] * len(tags) for tags in tagged]
    depth = _depth_of_patients(subsets, classes)
    return [_with_patients(subset, tags, depth) for subset, tags in zip(subsets, tagged, strict=True)]


def _with_patients(subset: ImageFiles, tags: list[str | None], depth: int) -> ImageFiles:
    owners = (_owner(path, inner, depth) for path, inner in zip(subset.paths, subset.inner, strict=True))
    return subset.grouped(tuple(tag or owner for tag, owner in zip(tags, owners, strict=True)))


def _tag_of(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in _OTHER_IMAGES:
        return None
    return patient_of_dicom(path)


def _owner(path: Path, inner: Path, depth: int) -> str:
    if len(inner.parts) > depth + 1:
        return f"folder {inner.parts[depth]}"
    patient = patient_of(path.name)
    return str(path) if patient == path.name else patient  # 1.png of two classes is not one person


def _depth_of_patients(subsets: list[ImageFiles], classes: tuple[str, ...]) -> int:
    """How many levels below a class the patients' folders lie: one that holds a whole class, each, is none."""
    depth = 0
    while True:
        heads: dict[int, set[str]] = {}
        for subset in subsets:
            for inner, label in zip(subset.inner, subset.labels.tolist(), strict=True):
                heads.setdefault(label, set()).add(inner.parts[depth] if len(inner.parts) > depth + 1 else "")
        if any(len(names) > 1 or "" in names for names in heads.values()):
            return depth
        depth += 1
