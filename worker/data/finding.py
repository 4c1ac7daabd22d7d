"""Where a data path leads: to a folder of images, an .npz, or a function."""

import re
from pathlib import Path

from broker.errors import DataError
from worker.data.arrays import call_function, read_npz
from worker.data.classes import NO_CLASSES, Declared
from worker.data.folders import FOLDERS_HELP, find_folders
from worker.data.listing import Listing, Tables

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def find_listing(spec: str, classes: Declared | None = None, worker: str = "") -> Listing | Tables:
    """Look at a folder of images, an .npz, or what MODULE:FUNCTION returns.

    Args:
        spec: As `--data` takes it.
        classes: As `--classes` names them.
        worker: The worker's name, for a FUNCTION that takes it.

    Raises:
        DataError: There is nothing, it is something else, a class is empty or alone, or arrays don't fit
            together.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        if classes == NO_CLASSES:
            raise DataError(f"{spec!r} is a folder, and its folders are classes. Try without --classes none.")
        return find_folders(path, classes)
    if path.is_file():
        return read_npz(path, classes)
    if _FUNCTION.fullmatch(spec):
        return call_function(spec, classes, worker)
    raise DataError(
        f"There is no data at {spec!r}. {FOLDERS_HELP}, an .npz file, or MODULE:FUNCTION. Check the path."
    )
