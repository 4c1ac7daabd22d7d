"""The whole product by its command line: real processes, a real RabbitMQ, TensorFlow, X-rays."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from broker.hosting.private import PrivateBroker
from deploy.demo_data import find_data
from deploy.synthetic import XraySet, write_xrays
from tests.brokers import at_vhost, fresh_vhost, wait_until
from worker.data.split import split

BIN = Path(sys.executable).parent
SECONDS = 240
REAL = Path(__file__).parents[3] / "shared" / "data" / "chest_xray.tar"


def command(
    name: str, *words: str, amqp_url: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of our commands to its end."""
    environment = os.environ | ({"AMQP_URL": amqp_url} if amqp_url else {})
    return subprocess.run(
        [str(BIN / name), *words],
        capture_output=True, text=True, timeout=SECONDS, check=False, env=environment, cwd=cwd,
    )  # fmt: skip


def start(log: Path, *words: str, amqp_url: str) -> subprocess.Popen[bytes]:
    """Start one of our commands; its story goes to a file."""
    environment = os.environ | {"AMQP_URL": amqp_url}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], stdout=stream, stderr=stream, env=environment
        )


def history(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's history.csv."""
    return list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))


@dataclass
class Finished:
    """A run that was played to its end."""

    folder: Path
    data: Path
    sites: Path
    exit_code: int
    output: str
    story: str
    worker_codes: list[int]
    worker_story: str


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set: real X-rays where they are at hand, else synthetic ones."""
    folder = tmp_path_factory.mktemp("xrays") / "set"
    if not REAL.exists():
        write_xrays(folder, XraySet(train_patients=30, test_patients=12, size=96), seed=1)
        return folder
    source = find_data("chest_xray", tmp_path_factory.mktemp("cache"))
    for part, number in (("train", 60), ("test", 15)):
        for kind in ("NORMAL", "PNEUMONIA"):
            (folder / part / kind).mkdir(parents=True)
            for image in sorted((source / part / kind).iterdir())[::7][:number]:
                (folder / part / kind / image.name).symlink_to(image)
    return folder


@pytest.fixture(scope="module")
def finished(
    broker: PrivateBroker, xrays: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Finished]:
    """Three workers and a coordinator, two rounds, workers started first."""
    folder = tmp_path_factory.mktemp("run")
    split(str(xrays), into=3, out=folder / "sites", scheme="iid", seed=0)
    with fresh_vhost(broker) as amqp_url:
        names = ["hospital-1", "hospital-2", "hospital-3"]
        workers = [
            start(folder / f"{name}.log", "worker", "run", "--name", name, "--data",
                  str(folder / "sites" / f"site-{number}"), "--once", amqp_url=amqp_url)
            for number, name in enumerate(names, 1)
        ]  # fmt: skip
        done = command(
            "coordinator", "run", "chest-xray", "--workers", "3", "--rounds", "2", "--out", str(folder / "run"),
            amqp_url=amqp_url,
        )  # fmt: skip
        codes = [worker.wait(60) for worker in workers]
    yield Finished(
        folder=folder / "run",
        data=xrays,
        sites=folder / "sites",
        exit_code=done.returncode,
        output=done.stdout,
        story=done.stderr,
        worker_codes=codes,
        worker_story=(folder / "hospital-1.log").read_text(),
    )


def test_a_run_ends_well_and_leaves_everything_in_its_folder(finished: Finished) -> None:
    """All four processes end with 0; the folder holds the model, the history, the curves and the checkpoint."""
    assert (finished.exit_code, finished.worker_codes) == (0, [0, 0, 0]), finished.story
    for name in ("model.keras", "history.csv", "curves.png", "run.json", "checkpoint"):
        assert (finished.folder / name).stat().st_size > 0
    assert "rounds=2" in finished.output


def test_the_history_tells_who_took_part_and_how_good_the_model_became(finished: Finished) -> None:
    """One row a round, the initial model first, the last model measured, too."""
    rows = history(finished.folder)
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    for row in rows[1:]:
        assert sorted(row["accepted"].split()) == ["hospital-1", "hospital-2", "hospital-3"]
        assert 0 <= float(row["val_accuracy"]) <= 1
        assert float(row["loss"]) > 0


def test_the_worker_tells_what_a_person_in_the_lab_expects_to_see(finished: Finished) -> None:
    """Connected, registered, the settings, each epoch with its four measures, sending, finished."""
    for word in (
        "Connected to", "Registered", "learning rate", "epochs 1", "batch size 16", "Epoch 1 of 1", "val_accuracy",
        "val_loss", "sending the update", "Training finished",
    ):  # fmt: skip
        assert word in finished.worker_story


def test_the_coordinator_never_imports_tensorflow_and_no_chatter_is_shown(finished: Finished) -> None:
    """The story is ours alone."""
    assert "TensorFlow" not in finished.story
    assert "oneDNN" not in finished.story + finished.worker_story


def test_the_model_opens_with_plain_keras_and_knows_its_classes(finished: Finished) -> None:
    """`keras.models.load_model` needs nothing of ours; the class names are inside."""
    script = (
        "import keras, sys; model = keras.models.load_model(sys.argv[1]); "
        "print(model.input_shape, model.output_shape)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(finished.folder / "model.keras")],
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "(None, 224, 224, 1) (None, 2)"


def test_the_model_is_measured_and_used_on_images(finished: Finished) -> None:
    """`worker evaluate --json` has its six keys, `worker predict` one line an image."""
    model = str(finished.folder / "model.keras")
    done = command("worker", "evaluate", model, "--data", str(finished.data), "--json")
    measures = json.loads(done.stdout)
    assert set(measures) == {"accuracy", "balanced_accuracy", "auc", "loss", "confusion", "num_examples"}
    assert np.sum(measures["confusion"]) == measures["num_examples"]
    image = next((finished.data / "test" / "NORMAL").iterdir())
    done = command("worker", "predict", model, str(image), str(image))
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.split()[1] in ("NORMAL", "PNEUMONIA")


def test_a_finished_run_goes_on_with_more_rounds_and_refuses_another_task(
    finished: Finished, broker: PrivateBroker, tmp_path: Path
) -> None:
    """More --rounds continue it on a worker of its own; another task in the same folder is a usage error."""
    with fresh_vhost(broker) as amqp_url:
        words = ["--workers", "1", "--out", str(finished.folder)]
        refused = command("coordinator", "run", "mnist", *words, amqp_url=amqp_url)
        assert refused.returncode == 2
        assert "task" in refused.stderr
        site = str(finished.sites / "site-1")
        worker = start(
            tmp_path / "w.log", "worker", "run", "--name", "late", "--data", site, "--once", amqp_url=amqp_url
        )
        done = command("coordinator", "run", "chest-xray", "--rounds", "3", *words, amqp_url=amqp_url)
        assert done.returncode == 0, done.stderr
        assert "rounds=3" in done.stdout
        assert worker.wait(60) == 0
        rows = history(finished.folder)
        assert rows[3]["accepted"] == "late"


def test_a_worker_killed_before_it_answers_does_not_stop_the_run(
    finished: Finished, broker: PrivateBroker, tmp_path: Path
) -> None:
    """Quorum 1 of 2: the round closes after its grace with who is left, and history names the other as late."""
    with fresh_vhost(broker) as amqp_url:
        workers = [
            start(tmp_path / f"{name}.log", "worker", "run", "--name", name, "--data",
                  str(finished.sites / f"site-{number}"), "--once", amqp_url=amqp_url)
            for number, name in enumerate(("stays", "dies"), 1)
        ]  # fmt: skip
        coordinator = start(
            tmp_path / "c.log", "coordinator", "run", "chest-xray", "--workers", "2", "--quorum", "1", "--rounds", "1",
            "--grace-seconds", "2", "--out", str(tmp_path / "run"), amqp_url=amqp_url,
        )  # fmt: skip
        wait_until(lambda: "Training started" in (tmp_path / "dies.log").read_text(), 120)
        workers[1].send_signal(signal.SIGKILL)
        workers[1].wait(10)
        assert coordinator.wait(120) == 0, (tmp_path / "c.log").read_text()
        assert workers[0].wait(60) == 0
    rows = history(tmp_path / "run")
    assert (rows[1]["accepted"], rows[1]["late"]) == ("stays", "dies")


def test_a_worker_with_other_classes_is_refused_by_name_and_the_run_goes_on(
    broker: PrivateBroker, tmp_path: Path
) -> None:
    """It ends with exit code 5 and a line that has both lists of classes."""
    for folder, kinds in (("site", "AB"), ("odd", "AC")):
        for kind in kinds:
            (tmp_path / folder / kind).mkdir(parents=True)
            for number in range(12):
                write_pixel(tmp_path / folder / kind / f"{number}.png")
    with fresh_vhost(broker) as amqp_url:
        words = ["--data", str(tmp_path / "site"), "--once"]
        worker = start(tmp_path / "w.log", "worker", "run", "--name", "good", *words, amqp_url=amqp_url)
        words = ["--workers", "1", "--rounds", "1", "--out", str(tmp_path / "run")]
        coordinator = start(tmp_path / "c.log", "coordinator", "run", "chest-xray", *words, amqp_url=amqp_url)
        wait_until(lambda: "Round 1 of 1" in (tmp_path / "c.log").read_text(), 120)
        odd = command("worker", "run", "--name", "odd", "--data", str(tmp_path / "odd"), amqp_url=amqp_url)
        assert odd.returncode == 5
        assert "A, C" in odd.stderr
        assert "A, B" in odd.stderr
        assert coordinator.wait(120) == 0
        assert worker.wait(60) == 0
    assert history(tmp_path / "run")[1]["accepted"] == "good"


def test_below_the_quorum_the_round_is_retried_and_then_the_run_ends_with_4(
    broker: PrivateBroker, tmp_path: Path
) -> None:
    """Nobody joins: one line says who is missing, and the exit code is 4."""
    with fresh_vhost(broker) as amqp_url:
        done = command(
            "coordinator",
            "run",
            "mnist",
            "--out",
            str(tmp_path / "run"),
            "--deadline-seconds",
            "1",
            amqp_url=amqp_url,
        )
    assert done.returncode == 4
    assert "0 of 2 workers joined" in done.stderr


UNTRAINABLE = """
import keras
from keras import layers

class Mine(keras.Model):
    pass

def subclass():
    x = keras.Input((4,))
    model = Mine(x, layers.Dense(2, "softmax")(x))
    model.compile("sgd", "categorical_crossentropy")
    return model

def scheduled():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, "softmax")])
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(keras.optimizers.SGD(schedule), "categorical_crossentropy")
    return model
"""


def test_what_no_worker_can_train_ends_the_run_before_anybody_is_waited_for(
    broker: PrivateBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class of its own: 5. A learning rate for a schedule: 2, also when a run goes on. No deadline runs out."""
    (tmp_path / "untrainable.py").write_text(UNTRAINABLE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = ("--out", str(tmp_path / "run"))
    with fresh_vhost(broker) as amqp_url:
        subclass = command("coordinator", "run", "untrainable:subclass", *out, amqp_url=amqp_url)
        task = ("coordinator", "run", "untrainable:scheduled", "--out", str(tmp_path / "scheduled"))
        rated = command(*task, "--learning-rate", "0.1", amqp_url=amqp_url)
        begun = command(*task, "--deadline-seconds", "1", amqp_url=amqp_url)
        again = command(*task, "--learning-rate", "0.1", amqp_url=amqp_url)
    assert (subclass.returncode, rated.returncode, begun.returncode, again.returncode) == (5, 2, 4, 2)
    assert "a class of its own" in subclass.stderr.splitlines()[-1]
    for refused in (rated, again):
        assert "Try without --learning-rate" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in subclass.stderr + rated.stderr + again.stderr


def spoil(folder: Path, what: str) -> Path:
    """Data that can't be used."""
    for kind in ("A", "B"):
        (folder / kind).mkdir(parents=True)
        write_pixel(folder / kind / "1.png")
    if what == "empty class":
        (folder / "B" / "1.png").unlink()
    elif what == "single class":
        (folder / "B" / "1.png").unlink()
        (folder / "B").rmdir()
    elif what == "nothing decodes":
        (folder / "B" / "1.png").write_bytes(b"no image")
    elif what == "shapes differ":
        np.savez(folder / "x.npz", x_train=np.zeros((3, 28, 28)), y_train=np.zeros(2), x_test=[], y_test=[])
        return folder / "x.npz"
    return folder


def write_pixel(path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(path)


@pytest.mark.parametrize("what", ["empty class", "single class", "nothing decodes", "shapes differ"])
def test_bad_data_is_one_line_and_exit_code_5(what: str, tmp_path: Path) -> None:
    """It is told before anything is connected, and nothing is left behind."""
    data = spoil(tmp_path / "data", what)
    done = command("worker", "run", "--name", "w", "--data", str(data), "--amqp-url", "amqp://localhost:1/")
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["worker", "run", "--name", "w", "--data", "missing"], 5, "missing"),
        (["worker", "run", "--name", "No_Name", "--data", "."], 2, "no-name"),
        (["coordinator", "run", "x-ray", "--out", "run"], 2, "chest-xray"),
        (["coordinator", "run", "mnist", "--out", "run", "--quorum", "3"], 2, "--quorum 2"),
        (["coordinator", "run", "mnist", "--out", "run", "--workers", "10", "--fraction", "0.2", "--quorum", "3"], 2,
         "invites 2"),
        (["coordinator", "run", "mnist", "--out", "run", "--initial-model", "no.keras"], 2, "no.keras"),
        (["coordinator", "run", "mnist", "--out", "run", "--amqp-url", "amqp://127.0.0.1:1/", "--connect-seconds",
          "0.3"], 3, "broker up"),
        (["worker", "evaluate", "no.keras", "--data", "."], 5, "no.keras"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_bad_usage_is_one_line_with_its_exit_code(
    words: list[str], code: int, told: str, tmp_path: Path
) -> None:
    """What happened and what to try; a folder that was not begun is not made."""
    done = command(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_password_is_told_at_once_and_not_shown(broker: PrivateBroker, tmp_path: Path) -> None:
    """Exit code 3 without ten seconds of trying."""
    url = at_vhost(broker.amqp_url, "/").replace("guest:guest", "guest:wrong-secret")
    done = command("coordinator", "run", "mnist", "--out", str(tmp_path / "run"), amqp_url=url)
    assert done.returncode == 3
    assert "refused" in done.stderr
    assert "wrong-secret" not in done.stderr
