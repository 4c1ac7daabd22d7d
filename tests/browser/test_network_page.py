"""The network's page in a real browser, with three real workers: from an empty page to a model in one's hands."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.brokers import at_load, started_broker, wait_until
from tests.browser.chromium import (
    axe_faults,
    be_dark,
    be_phone,
    come_from_elsewhere,
    console_errors,
    foreign_requests,
    is_wider_than_the_window,
    load_seconds,
    screenshot,
)
from tests.servings import TASK, Lab, Process
from worker.learning.saved_model import load_model

NAMES = ("hospital-north", "hospital-south", "hospital-west")

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs


@pytest.fixture
def lab(tmp_path: Path, vhost: str) -> Iterator[Lab]:
    with Lab(tmp_path, vhost) as lab:
        yield lab


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: Chrome, axe: str) -> None:
        self.browser = browser
        self.axe = axe

    def text(self, element_id: str) -> str:
        return str(self.browser.find_element(By.ID, element_id).text)

    def until(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        WebDriverWait(self.browser, seconds, poll_frequency=0.1).until(lambda _: holds(), what)

    def states(self) -> dict[str, str]:
        """What each worker's row says, by name; read at once."""
        script = """return [...document.querySelectorAll('#workers tr')].map(
            row => [row.dataset.name, row.querySelector('.badge').textContent])"""
        return dict(self.browser.execute_script(script))

    def rounds(self) -> int:
        """How many closed rounds the table shows."""
        script = "return [...document.querySelectorAll('#rounds th')].filter(h => Number(h.textContent) > 0).length"
        return int(self.browser.execute_script(script))

    def can_launch(self) -> bool:
        button = self.browser.find_element(By.ID, "launch-button")
        return bool(button.is_displayed() and button.is_enabled())

    def launch(self, rounds: int, epochs: int) -> None:
        """Choose the tests' own task and press the button, by keyboard alone."""
        Select(self.browser.find_element(By.ID, "task")).select_by_value("own")
        own = self.browser.find_element(By.ID, "own")
        own.clear()
        own.send_keys(TASK)
        wanted = self.browser.find_element(By.ID, "rounds-wanted")
        wanted.send_keys(Keys.CONTROL, "a")
        wanted.send_keys(str(rounds))
        self.browser.execute_script("document.querySelector('#launch details').open = true")
        self.browser.find_element(By.ID, "epochs").clear()
        self.browser.find_element(By.ID, "epochs").send_keys(str(epochs))
        self.until(self.can_launch, 10, "a button to press")
        self.browser.find_element(By.ID, "launch-button").send_keys(Keys.ENTER)

    def check(self, name: str) -> None:
        """A picture for a person; no faults for a machine to find."""
        screenshot(self.browser, name)
        assert axe_faults(self.browser, self.axe) == []
        assert foreign_requests(self.browser) == []
        assert not is_wider_than_the_window(self.browser)


@pytest.fixture
def page(browser: Chrome, axe: str) -> Page:
    return Page(browser, axe)


def register(lab: Lab, page: Page) -> list[Process]:
    workers = [lab.worker(name, 160 + 40 * number) for number, name in enumerate(NAMES)]
    page.until(lambda: set(page.states()) == set(NAMES), 90, "three workers")
    return workers


def test_a_person_sees_workers_launches_watches_and_takes_the_model_away(
    lab: Lab, page: Page, downloads: Path
) -> None:
    """Workers appear by themselves, rounds advance by themselves, a killed worker goes away, and the model opens."""
    lab.serve()
    page.browser.get(lab.address)
    assert load_seconds(page.browser) < at_load(2)
    page.until(lambda: "ready" in page.text("coordinator-state"), 30, "a ready coordinator")
    page.browser.execute_script("window.isTheSamePage = true")
    assert not page.can_launch()
    assert "No present worker" in page.text("launch-reason")
    page.check("network-empty")

    workers = register(lab, page)
    page.check("network-workers")
    page.launch(rounds=4, epochs=25)
    page.until(lambda: "training" in page.states().values(), 60, "a worker that trains")
    screenshot(page.browser, "network-training")
    page.until(lambda: page.rounds() >= 2, 90, "two rounds")
    page.check("network-rounds")
    page.until(lambda: page.text("run-state") == "done", 120, "the end of the run")
    page.until(lambda: page.rounds() == 4, 10, "four rounds")
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#charts svg")) == 4
    page.check("network-done")

    page.browser.find_element(By.ID, "get-model").click()
    wait_until(lambda: bool(list(downloads.glob("*.keras"))), 20, what="the download")
    loaded = load_model(next(downloads.glob("*.keras")))
    assert loaded.card is not None
    assert (loaded.card.task, loaded.card.round_number) == (TASK, 4)

    workers[0].kill()
    page.until(lambda: page.states()[NAMES[0]] == "away", 20, "the killed worker away")
    quorum = page.browser.find_element(By.ID, "quorum")
    quorum.send_keys("3")
    page.until(lambda: "quorum of 3 can’t be met" in page.text("launch-reason"), 5, "the reason")
    assert not page.can_launch()
    page.check("network-away")
    assert page.browser.execute_script("return window.isTheSamePage")
    assert console_errors(page.browser) == []


def test_the_page_comes_back_after_the_coordinator_does_and_the_run_goes_on(lab: Lab, page: Page) -> None:
    """A coordinator killed in the middle of a run: the page says so, and shows the same run when it is back."""
    coordinator = lab.serve()
    page.browser.get(lab.address)
    page.browser.execute_script("window.isTheSamePage = true")
    register(lab, page)
    page.launch(rounds=8, epochs=10)
    page.until(lambda: page.rounds() >= 1, 60, "a round")
    run = page.text("run-id")
    coordinator.kill()
    page.until(lambda: page.browser.find_element(By.ID, "offline").is_displayed(), 15, "word of the end")
    page.check("network-offline")
    lab.serve()
    page.until(lambda: "ready" in page.text("coordinator-state"), 60, "the coordinator again")
    page.browser.find_element(By.ID, "stop").click()
    page.until(lambda: page.text("run-state") in ("stopped", "done"), 60, "the end of the run")
    assert page.text("run-id") == run
    assert page.browser.execute_script("return window.isTheSamePage")

    be_dark(page.browser)
    page.check("network-dark")
    be_phone(page.browser)
    page.browser.refresh()
    page.until(lambda: page.rounds() >= 1, 10, "the run")
    page.check("network-phone")


def test_a_broker_that_goes_away_is_a_state_of_the_page(page: Page, tmp_path: Path) -> None:
    """Killed and started again: the page says so, is served all the while, and says when it is over."""
    with started_broker(tmp_path / "broker") as broker, Lab(tmp_path, broker.amqp_url) as lab:
        lab.serve()
        page.browser.get(lab.address)
        page.until(lambda: "connected" in page.text("broker-state"), 30, "a connection")
        page.until(lambda: "ready" in page.text("coordinator-state"), 30, "a ready coordinator")
        broker.kill()
        page.until(lambda: "away" in page.text("broker-state"), 30, "word of the loss")
        assert page.browser.find_element(By.ID, "broker-away").is_displayed()
        assert not page.can_launch()
        assert [lab.code(path) for path in ("/livez", "/readyz", "/healthz")] == [200, 503, 503]
        page.browser.refresh()
        page.until(lambda: "away" in page.text("broker-state"), 10, "the same after a reload")
        assert lab.post("/api/launch", {"task": TASK, "options": {"workers": "1"}})[0] in (400, 503)
        page.check("network-broker-away")
        broker.start()
        page.until(lambda: "connected" in page.text("broker-state"), 60, "the connection again")
        assert console_errors(page.browser) == []
        wait_until(lambda: lab.code("/healthz") == 200, 30, what="a healthy coordinator")


def test_a_broker_that_dies_in_mid_run_holds_it_up_and_no_more(page: Page, tmp_path: Path) -> None:
    """Killed while workers train: the run stays on the page, goes on by itself, and no round is lost."""
    with started_broker(tmp_path / "broker") as broker, Lab(tmp_path, broker.amqp_url) as lab:
        lab.serve()
        page.browser.get(lab.address)
        register(lab, page)
        page.launch(rounds=5, epochs=20)
        page.until(lambda: page.rounds() >= 1, 90, "a round")
        run = page.text("run-id")
        broker.kill()
        page.until(lambda: "away" in page.text("broker-state"), 30, "word of the loss")
        assert "waiting for the broker" in page.text("coordinator-state")
        assert page.text("run-id") == run
        assert 1 <= page.rounds() < 5
        page.check("network-broker-lost")
        broker.start()
        page.until(lambda: "connected" in page.text("broker-state"), 60, "the connection again")
        page.until(lambda: page.text("run-state") == "done", 120, "the end of the run")
        page.until(lambda: page.rounds() == 5, 10, "five rounds")
        assert page.text("run-id") == run
        assert console_errors(page.browser) == []


def test_from_another_machine_launching_and_stopping_takes_the_token(lab: Lab, page: Page) -> None:
    """A browser behind a proxy counts as another machine: it logs in to look, and needs the other token to launch."""
    lab.serve("--token", "open-sesame", "--read-token", "may-look", "--trust-loopback")
    come_from_elsewhere(page.browser)
    page.browser.get(lab.address)
    page.check("network-login")
    page.browser.find_element(By.ID, "token").send_keys("no-idea", Keys.ENTER)
    page.until(lambda: "not the token" in page.text("login-error"), 10, "the refusal")
    page.check("network-login-refused")
    page.browser.find_element(By.ID, "token").send_keys("may-look", Keys.ENTER)
    register(lab, page)
    page.launch(rounds=50, epochs=10)
    page.until(lambda: "needs the token" in page.text("launch-error"), 10, "the refusal")
    page.check("network-token")
    assert lab.get("/api/state")["run"] is None

    page.browser.find_element(By.ID, "token").send_keys("open-sesame")
    page.launch(rounds=50, epochs=10)
    page.until(lambda: page.rounds() >= 1, 90, "a round")

    page.browser.refresh()  # as one who comes while it runs, and has typed nothing yet
    stop = page.browser.find_element(By.ID, "stop")
    page.until(stop.is_displayed, 10, "a button to stop")
    stop.click()
    page.until(lambda: "needs the token" in page.text("launch-error"), 10, "the refusal")
    page.browser.find_element(By.ID, "token").send_keys("open-sesame")
    page.check("network-token-stop")
    stop.click()
    page.until(lambda: page.text("run-state") == "stopped", 60, "the end of the run")

    page.browser.find_element(By.ID, "log-out").click()
    page.until(lambda: page.browser.current_url.endswith("/login"), 10, "the form")
    page.browser.find_element(By.ID, "token").send_keys("open-sesame", Keys.ENTER)
    page.until(lambda: page.browser.find_elements(By.ID, "log-out") != [], 10, "the page")
    assert page.browser.find_elements(By.ID, "token") == []
