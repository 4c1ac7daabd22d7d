"""The demo's data: the real sets where they lie or can be fetched, made-up ones where neither is possible."""

import hashlib
import os
import shutil
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

import click

from broker.errors import DataError, WarrenError
from deploy.synthetic import write_digits, write_xrays

Name = Literal["chest_xray", "mnist"]

_BESIDE_THE_REPOSITORY = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
_ANSWER_SECONDS = 8.0  # so that a machine without network notices within 10
_STALL_SECONDS = 20.0  # a download that stands still so long is given up
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Where a data set comes from.

    Attributes:
        file: What it is called in a data folder.
        url: Its public source.
        title: For a person.
        sha256: Of the download, where it is known.
    """

    file: str
    url: str
    title: str
    sha256: str | None = None


_ORIGINS: Mapping[Name, _Origin] = {
    "chest_xray": _Origin(
        file="chest_xray.tar",
        url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        title="chest X-rays (Kermany et al. 2018, DOI 10.17632/rscbjbr9sj, CC BY 4.0, 1.2 GB)",
    ),
    "mnist": _Origin(
        file="mnist.npz",
        url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
        title="MNIST digits (LeCun et al. 1998, 11 MB)",
        sha256="731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    ),
}


class _NotFetchedError(Exception):
    """Why the public source could not be used."""


def find_data(name: Name, cache: Path) -> Path:
    """The path of a data set, as `--data` takes it; prepared once in `cache`.

    Looked for in $WARREN_DATA, then in ../shared/data beside the repository, then at the public source; a
    small made-up set comes last, and is announced in one line on stderr.

    Args:
        name: chest_xray or mnist.
        cache: A folder for what is unpacked, downloaded or made; created if need be.

    Returns:
        A folder with train/ and test/, or an .npz.

    Raises:
        DataError: An archive that is there can't be unpacked.
    """
    cache.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("WARREN_DATA")
    for folder in ([Path(given)] if given else []) + [_BESIDE_THE_REPOSITORY]:
        if found := _find_in(folder, name, cache):
            return found
    if given:
        click.echo(f"$WARREN_DATA ({given}) holds no {_ORIGINS[name].file}: looking elsewhere.", err=True)
    try:
        return _download(name, cache)
    except _NotFetchedError as exc:
        return _make(name, cache, str(exc))


def _find_in(folder: Path, name: Name, cache: Path) -> Path | None:
    unpacked = folder / "chest_xray"
    if name == "chest_xray" and (unpacked / "train").is_dir():
        return unpacked
    file = folder / _ORIGINS[name].file
    if not file.is_file():
        return None
    return file if name == "mnist" else _unpack_tar(file, cache)


def _unpack_tar(file: Path, cache: Path) -> Path:
    """Unpack once; the size in the folder's name tells one archive from another."""

    def unpack(aside: Path) -> None:
        try:
            with tarfile.open(file) as archive:
                archive.extractall(aside, filter="data")
        except (OSError, tarfile.TarError) as exc:
            raise DataError(f"Can't unpack {str(file)!r}: {exc}. Copy it again, or set WARREN_DATA.") from exc

    return _once(cache / f"chest_xray-{file.stat().st_size}", unpack) / "chest_xray"


def _once(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder whole or not at all, and only if it isn't there yet."""
    if target.is_dir():
        return target
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fill(aside)
        if not target.is_dir():  # another process may have been faster
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


# The public source


def _download(name: Name, cache: Path) -> Path:
    target = cache / f"{name}-public"
    if name == "mnist":
        return _once(target, lambda aside: _fetch(name, aside / "mnist.npz")) / "mnist.npz"
    return _once(target, _fetch_xrays) / "chest_xray"


def _fetch_xrays(aside: Path) -> None:
    archive = aside / "download.zip"
    _fetch("chest_xray", archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.namelist():
                if entry.startswith(("chest_xray/train/", "chest_xray/test/")) and entry.endswith(".jpeg"):
                    opened.extract(entry, aside)
    except (OSError, zipfile.BadZipFile) as exc:
        raise _NotFetchedError(f"the download can't be unpacked ({exc})") from exc
    archive.unlink()


def _fetch(name: Name, target: Path) -> None:
    origin = _ORIGINS[name]
    response = _open_in_time(origin.url)
    click.echo(f"Downloading {origin.title}.", err=True)
    try:
        digest = _copy(response, target)
    except (OSError, HTTPException) as exc:
        raise _NotFetchedError(f"the download broke off ({exc})") from exc
    if origin.sha256 and digest != origin.sha256:
        raise _NotFetchedError("the download is not the file that was expected")


def _open_in_time(url: str) -> HTTPResponse:
    """Open a URL in a thread: without network, looking up a name takes longer than any timeout set here."""
    opened: list[HTTPResponse] = []
    failed: list[Exception] = []

    def open_url() -> None:
        try:
            opened.append(urlopen(url, timeout=_STALL_SECONDS))  # noqa: S310 - the two https addresses above
        except (OSError, HTTPException) as exc:
            failed.append(exc)

    thread = threading.Thread(target=open_url, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if not opened:
        why = (
            getattr(failed[0], "reason", failed[0])
            if failed
            else f"no answer in {_ANSWER_SECONDS:.0f} seconds"
        )
        raise _NotFetchedError(f"{url.split('/')[2]}: {why}")
    return opened[0]


def _copy(response: HTTPResponse, target: Path) -> str:
    """Copy a response into a file, with a progress bar on a terminal; return the SHA-256."""
    from tqdm import tqdm  # 50 ms that only a command with a bar shall pay

    digest = hashlib.sha256()
    total = int(response.headers.get("Content-Length") or 0)
    with (
        response,
        target.open("wb") as file,
        tqdm(total=total or None, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        while block := response.read(_BLOCK):
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    if total and target.stat().st_size != total:
        raise OSError(f"{target.stat().st_size} of {total} bytes came")
    return digest.hexdigest()


# Made up


def _make(name: Name, cache: Path, reason: str) -> Path:
    click.echo(f"The real {name} data is not here ({reason}): a small made-up set is used instead.", err=True)
    target = cache / f"{name}-synthetic"
    if name == "mnist":
        return _once(target, lambda aside: write_digits(aside / "mnist.npz")) / "mnist.npz"
    return _once(target, lambda aside: write_xrays(aside / "chest_xray")) / "chest_xray"


@click.command()
@click.argument("name", type=click.Choice(list(_ORIGINS)))
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache"), show_default=True)
def main(name: Name, cache: Path) -> None:
    """Print the path of the data set NAME: the real one, or a made-up one where it can't be had."""
    try:
        click.echo(find_data(name, cache))
    except WarrenError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
