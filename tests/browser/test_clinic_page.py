"""The doctor's page in a real browser: classes and heat maps are seen, rubbish is answered in words."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from broker.model.card import write_card
from tests.brokers import at_load
from tests.browser.chromium import (
    axe_faults,
    be_dark,
    be_phone,
    console_errors,
    foreign_requests,
    is_wider_than_the_window,
    load_seconds,
    screenshot,
)
from tests.clinics import CLASSES, card, replace_file, running_clinic, save_trained_model, save_xray
from tests.dicoms import SECRETS, dicom
from worker.learning.saved_model import load_model

SECONDS = 30

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained_model(tmp_path_factory.mktemp("model") / "model.keras")


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with running_clinic(model) as address:
        yield address


@pytest.fixture
def xrays(tmp_path: Path) -> list[Path]:
    """One well, one ill; the second is not square."""
    well = save_xray(tmp_path / "well.png", ill=False, seed=1004, size=400)
    ill = save_xray(tmp_path / "ill.jpeg", ill=True, seed=1005, size=400)
    with Image.open(ill) as image:
        image.resize((520, 400)).save(ill)
    return [well, ill]


def upload(browser: Chrome, *paths: Path) -> None:
    browser.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))


def cards(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, ".card")


def wait_for_answers(browser: Chrome, count: int) -> list[WebElement]:
    def all_answered(_: Chrome) -> bool:
        shown = cards(browser)
        return len(shown) == count and not any(each.get_attribute("aria-busy") for each in shown)

    WebDriverWait(browser, SECONDS).until(all_answered)
    return cards(browser)


def text_of(card: WebElement, selector: str) -> str:
    return card.find_element(By.CSS_SELECTOR, selector).text


def is_drawn(card: WebElement, selector: str) -> bool:
    image = card.find_element(By.CSS_SELECTOR, selector)
    script = "return arguments[0].complete && arguments[0].naturalWidth > 0"
    return image.is_displayed() and bool(card.parent.execute_script(script, image))


def test_two_xrays_show_class_bars_and_heat_map(
    browser: Chrome, address: str, xrays: list[Path], axe: str
) -> None:
    """The doctor's main path, and what the page must hold on it."""
    browser.get(address)
    assert load_seconds(browser) < at_load(2)  # 0.5 s on a quiet machine; a test machine is seldom quiet
    assert "Not for clinical use" in browser.find_element(By.TAG_NAME, "header").text
    screenshot(browser, "clinic-empty")
    assert axe_faults(browser, axe) == []

    upload(browser, *xrays)
    shown = wait_for_answers(browser, 2)

    for each, path in zip(shown, xrays, strict=True):
        assert text_of(each, ".file") == path.name
        assert text_of(each, ".class") in CLASSES
        assert re.fullmatch(r"[<>]? ?\d+\.\d %", text_of(each, ".probability"))
        assert len(each.find_elements(By.CSS_SELECTOR, ".bars li")) == 2
        assert is_drawn(each, ".xray")
        assert is_drawn(each, ".heat")
    assert text_of(shown[1], ".class") == "PNEUMONIA"
    shown[1].find_element(By.CSS_SELECTOR, ".how summary").click()
    how = text_of(shown[1], ".how")
    assert "520 × 400 pixels" in how
    assert "stretched to 64 × 64" in how
    assert "run demo-7, round 3" in how
    assert is_drawn(shown[1], ".seen")
    assert "0.951" in browser.find_element(By.CSS_SELECTOR, ".model").text
    assert "ill.jpeg: PNEUMONIA" in browser.find_element(By.ID, "live").get_attribute("textContent")
    screenshot(browser, "clinic-results")
    assert axe_faults(browser, axe) == []
    assert console_errors(browser) == []
    assert foreign_requests(browser) == []


def test_a_dicom_file_is_shown_although_no_browser_can(
    browser: Chrome, address: str, xrays: list[Path], tmp_path: Path, axe: str
) -> None:
    """What the model got stands in for it, under the heat map and in the picture's proportions."""
    with Image.open(xrays[1]) as image:
        gray = np.asarray(image.convert("L")).astype(np.uint16)
    path = tmp_path / "IM000001"
    path.write_bytes(dicom(gray << 4, BitsStored=12))
    browser.get(address)
    upload(browser, path)
    (shown,) = wait_for_answers(browser, 1)

    WebDriverWait(browser, SECONDS).until(lambda _: is_drawn(shown, ".xray"))
    assert is_drawn(shown, ".heat")
    shown.find_element(By.CSS_SELECTOR, ".how summary").click()
    assert "520 × 400 pixels, 12-bit grayscale" in text_of(shown, ".how")
    size = shown.find_element(By.CSS_SELECTOR, ".picture").size
    assert abs(size["width"] / size["height"] - 520 / 400) < 0.02
    page = browser.find_element(By.TAG_NAME, "body").get_attribute("innerHTML")
    assert not any(secret in page for secret in SECRETS)
    screenshot(browser, "clinic-dicom")
    assert axe_faults(browser, axe) == []
    assert console_errors(browser) == []


def test_the_heat_map_goes_off_and_fades_by_keyboard(
    browser: Chrome, address: str, xrays: list[Path]
) -> None:
    """The image itself can be looked at, without a mouse."""
    browser.get(address)
    upload(browser, xrays[1])
    (shown,) = wait_for_answers(browser, 1)
    heat = shown.find_element(By.CSS_SELECTOR, ".heat")

    opacity = shown.find_element(By.CSS_SELECTOR, ".heat-opacity")
    before = float(heat.value_of_css_property("opacity"))
    opacity.send_keys(Keys.ARROW_RIGHT)
    assert float(heat.value_of_css_property("opacity")) > before
    shown.find_element(By.CSS_SELECTOR, ".heat-on").send_keys(Keys.SPACE)
    assert not heat.is_displayed()
    assert is_drawn(shown, ".xray")
    shown.find_element(By.CSS_SELECTOR, ".heat-on").send_keys(Keys.SPACE)
    assert heat.is_displayed()


def test_everything_is_reached_with_the_keyboard(browser: Chrome, address: str, xrays: list[Path]) -> None:
    """Tab goes through the page in reading order; a removed card leaves the focus on its neighbour."""
    browser.get(address)
    upload(browser, *xrays)
    wait_for_answers(browser, 2)
    browser.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(6):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("class") or active.tag_name)
    assert reached == ["files", "clear", "remove quiet", "heat-on", "heat-opacity", "summary"]

    cards(browser)[0].find_element(By.CSS_SELECTOR, ".remove").send_keys(Keys.ENTER)
    assert len(cards(browser)) == 1
    assert browser.switch_to.active_element.get_attribute("aria-label") == "Remove ill.jpeg"
    browser.find_element(By.ID, "clear").send_keys(Keys.ENTER)
    assert cards(browser) == []
    assert browser.switch_to.active_element.get_attribute("id") == "files"


def test_rubbish_is_answered_in_words(browser: Chrome, address: str, tmp_path: Path, axe: str) -> None:
    """A broken file, an empty one, one too large, and a photo: each says what is wrong; the page goes on."""
    broken, empty, large, photo = (
        tmp_path / name for name in ("broken.png", "empty.png", "large.png", "photo.png")
    )
    broken.write_bytes(b"this is no image")
    empty.touch()
    with large.open("wb") as file:
        file.truncate(51 << 20)
    colours = np.zeros((300, 400, 3), np.uint8)
    colours[..., 0] = np.linspace(60, 255, 400)
    colours[..., 2] = np.linspace(255, 0, 300)[:, np.newaxis]
    Image.fromarray(colours).save(photo)
    browser.get(address)

    upload(browser, broken, empty, large, photo)
    shown = wait_for_answers(browser, 4)

    assert "not an image" in text_of(shown[0], ".failure")
    assert "empty" in text_of(shown[1], ".failure")
    assert "up to 50 MB" in text_of(shown[2], ".failure")
    assert "does not look like an X-ray: it is coloured" in text_of(shown[3], ".warning")
    screenshot(browser, "clinic-rubbish")
    assert axe_faults(browser, axe) == []
    unexpected = [line for line in console_errors(browser) if "/predict" not in line or "400" not in line]
    assert unexpected == []  # Chromium itself notes the one 400 that the server rightly answered


def test_on_a_phone_nothing_is_cut(browser: Chrome, address: str, xrays: list[Path], axe: str) -> None:
    """At 390 pixels no one scrolls sideways."""
    be_phone(browser)
    browser.get(address)
    upload(browser, xrays[1])
    wait_for_answers(browser, 1)

    assert not is_wider_than_the_window(browser)
    screenshot(browser, "clinic-phone")
    assert axe_faults(browser, axe) == []


def test_in_the_dark_it_is_as_legible(browser: Chrome, address: str, xrays: list[Path], axe: str) -> None:
    """Axe measures the contrast of the dark colours, too."""
    be_dark(browser)
    browser.get(address)
    upload(browser, *xrays)
    wait_for_answers(browser, 2)

    background = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert max(map(int, re.findall(r"\d+", background)[:3])) < 60
    screenshot(browser, "clinic-dark")
    assert axe_faults(browser, axe) == []
    assert console_errors(browser) == []


def test_the_next_round_appears_by_itself(
    browser: Chrome, model: Path, tmp_path: Path, xrays: list[Path]
) -> None:
    """No reload: the new round is shown, old answers can be renewed, and a wrong file is told."""
    watched = tmp_path / "model.keras"
    watched.write_bytes(model.read_bytes())
    load_model(model).model.save(tmp_path / "later.keras")
    write_card(tmp_path / "later.keras", card(round_number=4))
    with running_clinic(watched) as address:
        browser.get(address)
        upload(browser, xrays[0])
        wait_for_answers(browser, 1)
        wait = WebDriverWait(browser, SECONDS)

        replace_file(watched, (tmp_path / "later.keras").read_bytes())
        shown_round = browser.find_element(By.CSS_SELECTOR, "[data-model=round]")
        wait.until(lambda _: shown_round.text == "4")
        browser.find_element(By.ID, "again").click()
        browser.find_element(By.CSS_SELECTOR, ".how summary").click()
        wait.until(lambda _: "round 4" in browser.find_element(By.CSS_SELECTOR, ".how").text)
        assert not browser.find_element(By.ID, "again").is_displayed()

        replace_file(watched, b"rubbish")
        warning = browser.find_element(By.ID, "model-warning")
        wait.until(lambda _: warning.is_displayed())
        assert "the former model still answers" in warning.text
        screenshot(browser, "clinic-model-warning")
        assert console_errors(browser) == []
