"""A browser for every test here; where there can be none a test skips at home, and fails in CI."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.browser.chromium import fetch_axe, missing_programs, start_chromium


def give_up(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Where the browser puts what is downloaded."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def browser(tmp_path: Path, downloads: Path) -> Iterator[Chrome]:
    """A fresh headless Chromium of 1280 × 900."""
    if missing := missing_programs():
        give_up(f"{' and '.join(missing)} must be installed (Debian: apt install chromium chromium-driver)")
    started = start_chromium(tmp_path / "profile", downloads)
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script."""
    try:
        return fetch_axe()
    except (OSError, subprocess.SubprocessError) as exc:
        give_up(f"axe-core can't be had through npm: {exc}")
        raise AssertionError("give_up returned") from exc
