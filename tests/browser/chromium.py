"""A real Chromium for the page tests, and what each page is asked: errors, foreign requests, axe faults."""

import base64
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

AXE = "axe-core@4.11.0"
SCREENSHOTS = "WARREN_SCREENSHOTS"  #: the environment variable that names the folder of screenshots
PHONE = (390, 844)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--lang=en",
)
_BUILD = Path(__file__).parents[2] / "build"
_RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']})
  .then(found => done(found.violations), failure => done(String(failure)));
"""


def missing_programs() -> list[str]:
    """What must still be installed before a browser can be started."""
    browser = any(map(shutil.which, _BROWSERS))
    return [
        name
        for name, is_there in (("chromium", browser), ("chromedriver", shutil.which("chromedriver")))
        if not is_there
    ]


def start_chromium(profile: Path, downloads: Path) -> Chrome:
    """Start a headless browser with a fresh profile; it looks nothing up and fetches nothing by itself."""
    options = ChromeOptions()
    options.binary_location = next(path for name in _BROWSERS if (path := shutil.which(name)))
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.set_page_load_timeout(30)
    browser.set_script_timeout(60)
    return browser


def be_phone(browser: Chrome) -> None:
    """Show pages as a phone of PHONE's width does."""
    width, height = PHONE
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def be_dark(browser: Chrome) -> None:
    """Ask pages for their dark colours."""
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def come_from_elsewhere(browser: Chrome) -> None:
    """Send what a proxy adds to a request from another machine."""
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"X-Forwarded-For": "192.0.2.7"}})


def screenshot(browser: Chrome, name: str) -> None:
    """Write the whole page, beyond what the window shows, into the folder of screenshots."""
    folder = Path(os.environ.get(SCREENSHOTS) or _BUILD / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"format": "png", "captureBeyondViewport": True}
    picture = browser.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"]
    (folder / f"{name}.png").write_bytes(base64.b64decode(picture))


def console_errors(browser: Chrome) -> list[str]:
    """What the page wrote to the console as warning or error since the last call."""
    return [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]


def foreign_requests(browser: Chrome) -> list[str]:
    """Addresses that the page asked for and that aren't its own server's."""
    asked: list[str] = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    own = urlsplit(browser.current_url).netloc
    return [url for url in asked if urlsplit(url).scheme.startswith("http") and urlsplit(url).netloc != own]


def is_wider_than_the_window(browser: Chrome) -> bool:
    """Whether one must scroll sideways."""
    script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    return bool(browser.execute_script(script))


def load_seconds(browser: Chrome) -> float:
    """From asking for the page to its load event."""
    script = "return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
    return float(browser.execute_script(script))


def axe_faults(browser: Chrome, axe: str) -> list[str]:
    """Accessibility faults that axe-core calls serious or critical, as "rule: element"."""
    browser.execute_script(axe)
    found: list[dict[str, Any]] | str = browser.execute_async_script(_RUN_AXE)
    assert isinstance(found, list), found
    return [
        f"{fault['id']}: {node['html'][:120]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def fetch_axe() -> str:
    """axe-core's script, by npm, kept for the next time.

    Raises:
        OSError: There is no npm.
        subprocess.CalledProcessError: The package can't be had.
    """
    folder = _BUILD / AXE.replace("@", "-")
    script = folder / "axe.min.js"
    if not script.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", AXE, "--silent", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, timeout=120, capture_output=True, cwd=folder)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            script.write_bytes(member.read())
    return script.read_text(encoding="utf-8")
