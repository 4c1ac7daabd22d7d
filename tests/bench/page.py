"""How long the network's page takes to load with many workers, idle and in the middle of a run.

python -m tests.bench.page --amqp-url URL --workers 100
"""

import json
import statistics
import tempfile
import threading
from pathlib import Path

import click
from selenium.webdriver import Chrome

from tests.brokers import wait_until
from tests.browser.chromium import load_seconds, start_chromium
from tests.servings import TASK, Lab, save_site

_LOADS = 11
_NUM_ROWS = "return document.querySelectorAll('#workers tr').length"


def loads(browser: Chrome, address: str, workers: int) -> dict[str, float]:
    """Open the page time and again: seconds to the load event, and until every worker's row is drawn."""
    loaded, drawn = [], []
    for _ in range(_LOADS):
        browser.get(address)
        loaded.append(load_seconds(browser))
        wait_until(lambda: browser.execute_script(_NUM_ROWS) >= workers, 30, what="all rows")
        drawn.append(float(browser.execute_script("return performance.now() / 1000")))
        threading.Event().wait(0.3)
    return {
        "load_median": round(statistics.median(loaded), 3),
        "load_max": round(max(loaded), 3),
        "rows_drawn_median": round(statistics.median(drawn), 3),
    }


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--workers", type=int, default=100, show_default=True)
def main(amqp_url: str, workers: int) -> None:
    """Measure it."""
    with tempfile.TemporaryDirectory() as name, Lab(Path(name), amqp_url) as lab:
        folder = Path(name)
        data = save_site(folder / "data.npz", 40 * workers, seed=1)
        lab.serve()
        lab.start("worker", "swarm", "--count", str(workers), "--data", str(data))
        lab.wait_for(lambda state: len(state["workers"]) == workers, 60, "all workers")
        browser = start_chromium(folder / "profile", folder)
        try:
            answer = {"workers": workers, "idle": loads(browser, lab.address, workers)}
            lab.post("/api/launch", {"task": TASK, "options": {"rounds": 50, "workers": workers}})
            lab.wait_for(lambda state: (state["run"] or {}).get("closed_rounds", 0) >= 1, 120, "round 1")
            answer["in a run"] = loads(browser, lab.address, workers)
        finally:
            browser.quit()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
