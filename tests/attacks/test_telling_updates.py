"""Updates that would tell their data: a site's own operator says how few examples are too few."""

from pathlib import Path

import numpy as np

from tests.system.test_command_line import command, start


def test_a_coordinator_that_asks_for_one_example_gets_no_update(vhost: str, tmp_path: Path) -> None:
    """The enemy holds the coordinator. It asks for one example of each class and one step, for then the update of a
    linear model *is* the image, and wants one site's images. That site's floor is 20: it declines, and says why."""
    rng, data = np.random.default_rng(0), tmp_path / "site.npz"
    x, y = rng.integers(0, 255, (200, 28, 28), dtype=np.uint8), np.arange(200) % 10
    np.savez(data, x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    log = tmp_path / "site.log"
    worker = start(
        log, "worker", "run", "--name", "site", "--data", str(data), "--least-examples", "20", "--once",
        amqp_url=vhost,
    )  # fmt: skip
    ended = command(
        "coordinator", "run", "mnist", "--workers", "1", "--rounds", "1", "--retries", "0", "--examples-per-class",
        "1", "--out", str(tmp_path / "run"), amqp_url=vhost,
    )  # fmt: skip
    assert worker.wait(30) == 0, log.read_text()
    assert ended.returncode == 4, ended.stderr
    declined = "would train on 10 examples of this site, whose operator allows no update of fewer than 20"
    assert declined in ended.stderr
    assert declined in log.read_text()
