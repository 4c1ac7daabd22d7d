"""The child process that holds Keras: it builds, checks and saves, and never outlives the coordinator."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.errors import CheckpointError, ModelError, UsageError
from broker.hosting.private import wait_until
from broker.model.card import ModelCard, read_card
from broker.model.kinds import layout_of
from broker.wire.tensors import InputFacts, flatten, unflatten, vector_size
from coordinator.folder.checkpoint import CHECKPOINT_FILE, Checkpoint, write_checkpoint
from coordinator.folder.history import Row
from coordinator.folder.statistics_file import write_statistics
from coordinator.keras.form import refuse_other_rate
from coordinator.keras.process import BuiltModel, ModelProcess
from coordinator.keras.trial import made_up_examples
from coordinator.tasks import Task, resolve
from tests.brokers import at_load
from tests.servings import TASK
from tests.unit.test_statistics import over, rows
from worker.tensorflow import load_keras

CLASSES = tuple("0123456789")

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(tensorflow|keras|google|h5py)"
)  # their warnings are theirs

MODELS = """
    import keras
    from keras import layers

    def model(*middle, compiled=True, activation="softmax", outputs=2, loss=None, metrics=("accuracy",)):
        head = layers.Dense(outputs, activation, name="head")
        made = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), *middle, head])
        if compiled:
            made.compile("sgd", loss or "sparse_categorical_crossentropy", metrics=list(metrics))
        return made

    def normalised():
        return model(layers.BatchNormalization(), layers.Dropout(0.5))

    def subclass():
        class Mine(keras.Model):
            def call(self, x):
                return x
        made = Mine()
        made.compile("sgd", "mse")
        return made

    def functional_subclass():
        class Mine(keras.Model):
            pass
        x = keras.Input((4,))
        made = Mine(x, layers.Dense(2, "softmax")(x))
        made.compile("sgd", "mse")
        return made

    def loss_list(): return model(loss=["mse"])
    def loss_dict(name="head"):
        x = keras.Input((4,))
        made = keras.Model(x, layers.Dense(2, "softmax", name="head")(x))
        made.compile("sgd", {name: "categorical_crossentropy"})
        return made
    def loss_of_another_output(): return loss_dict("tail")
    def loss_dict_that_keras_fails_on(): return model(loss={"head": "mse"})
    def two_losses(): return model(loss=["mse", "mae"])
    def without_loss():
        made = model(compiled=False)
        made.compile("sgd")
        return made
    def sparse_loss_of_one(): return model(outputs=1, activation="sigmoid")
    def softmax_of_one(): return model(outputs=1, loss="binary_crossentropy")
    def binary_of_two(): return model(activation="sigmoid", loss="binary_crossentropy")
    def numbers_for_probabilities(): return model(activation=None)
    def number_for_probability(): return model(outputs=1, activation=None, loss="binary_crossentropy")
    def probabilities_for_logits():
        return model(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    def sigmoids_for_softmax(): return model(activation="sigmoid")
    def softmax_for_sigmoids(): return model(loss="binary_crossentropy")
    def accuracy_of_a_logit():
        return model(outputs=1, activation=None, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    def precision_of_numbers(): return model(outputs=10, metrics=[keras.metrics.Precision()])
    def one_hot_metric_of_numbers(): return model(outputs=10, metrics=["categorical_accuracy"])
    def sparse_metric_of_one_hot():
        return model(loss="categorical_crossentropy", metrics=["sparse_categorical_accuracy"])
    def class_metric_of_one():
        return model(outputs=1, activation="sigmoid", loss="binary_crossentropy",
                     metrics=[[keras.metrics.CategoricalAccuracy()]])
    def area_of_one_hot(): return model(loss="categorical_crossentropy", metrics=[keras.metrics.AUC()])
    def nothing_learned():
        x = keras.Input((4,))
        y = layers.Dense(3)(x)
        rounded = layers.CategoryEncoding(2, output_mode="one_hot")(layers.Discretization([0.0])(layers.Dense(1)(x)))
        made = keras.Model(x, rounded)
        made.compile("sgd", "mse")
        return made
    def scheduled():
        made = model(compiled=False)
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        made.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
        return made

    def good():
        print("a person's model may print")
        return model()

    def of_rows(*first):
        made = keras.Sequential([keras.Input((3,)), *first, layers.Dense(2, "softmax")])
        made.compile("sgd", "sparse_categorical_crossentropy")
        return made

    def to_adapt(): return of_rows(layers.Normalization())
    def to_adapt_twice(): return of_rows(layers.Normalization(), layers.Normalization())
    def adapted_already(): return of_rows(layers.Normalization(mean=0.0, variance=1.0))
    def to_adapt_as_one(): return of_rows(layers.Normalization(axis=None))

    def uncompiled():
        return model(compiled=False)

    def with_lambda():
        return model(layers.Lambda(lambda x: x + 1))

    def own_loss(y, outputs):
        return keras.ops.mean(outputs)

    def with_own_loss():
        made = model(compiled=False)
        made.compile("sgd", own_loss)
        return made

    def output_without_loss():
        one, two = keras.Input((2,)), keras.Input((2,))
        joined = layers.Add()([one, two])
        made = keras.Model([one, two], [layers.Dense(2, name="kept")(joined), layers.Dense(2, name="left")(joined)])
        made.compile("sgd", {"kept": "mse"})
        return made

    def nested_outputs():
        one = keras.Input((2,))
        made = keras.Model(one, [[layers.Dense(2)(one)], layers.Dense(2)(one)])
        made.compile("sgd", "mse")
        return made

    def metric_of_each_class():
        made = keras.Sequential([keras.Input((None, 3)), layers.Dense(2, "softmax")])
        made.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.Mean(), keras.metrics.F1Score()])
        return made

    def loss_of_another_shape():
        made = keras.Sequential([keras.Input((None, 3)), layers.Dense(2)])
        made.compile("sgd", "mse", metrics=["sparse_categorical_accuracy"])
        return made

    def raises():
        raise ValueError("two\\nlines")

    def nothing():
        return None

    def dies():
        import os
        os._exit(9)

    def never_ends():
        return sum(range(10**15))  # in C, and no other thread of the process comes to its turn

    not_callable = 1
"""


@pytest.fixture(scope="module")
def process() -> Iterator[ModelProcess]:
    with ModelProcess() as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A person's module with models, good and bad, in PYTHONPATH as they would have it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "persons_models.py").write_text(textwrap.dedent(MODELS))
    (folder / "broken_module.py").write_text("import no_such_library_anywhere\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


def function(name: str, module: str = "persons_models") -> Task:
    return resolve(f"{module}:{name}")


def saved(path: Path, name: str = "good") -> Path:
    """Save one of the models above, in this process."""
    load_keras()
    space: dict[str, Any] = {}
    exec(textwrap.dedent(MODELS), space)
    space[name]().save(path)
    return path


def card(round_number: int = 1, shape: tuple[int, ...] = (28, 28, 1)) -> ModelCard:
    return ModelCard(
        task="mnist",
        classes=CLASSES,
        run_id="r",
        round_number=round_number,
        saved_at="2026-01-01T00:00:00+00:00",
        num_examples=10,
        shape=shape,
        metrics={},
    )


def commit(folder: Path, built: BuiltModel, value: float, rounds: int = 3) -> Path:
    """Write a checkpoint whose weights all are `value`."""
    history = [
        Row(
            round=number,
            metrics={"loss": 1 / number, "accuracy": 0.9},
            test={} if number == 2 else {"loss": 1.0},
        )
        for number in range(1, rounds + 1)
    ]
    write_checkpoint(
        folder,
        Checkpoint(
            run_id="r",
            task="mnist",
            classes=CLASSES,
            round_number=rounds,
            next_attempt=1,
            model_json=built.model_json,
            input_shape=built.input_shape,
            num_classes=built.num_classes,
            layout=built.layout,
            vector=np.full(vector_size(built.layout), value, np.float32),
            integers=tuple(built.integers),
            strategy_state=(),
            history=history,
        ),
    )
    return folder / CHECKPOINT_FILE


@pytest.mark.parametrize(
    ("name", "parameters", "shape", "classes"),
    [
        ("mnist", 1_663_370, (28, 28, 1), 10),
        ("chest-xray-lab", 420_802, (224, 224, 3), 2),
        ("chest-xray", None, (224, 224, 1), 2),
    ],
)
def test_built_in_tasks_are_built(
    process: ModelProcess, name: str, parameters: int | None, shape: tuple[int, ...], classes: int
) -> None:
    """Each named task gives a model that workers accept, of the size that its paper or the lab gives."""
    built = process.build(resolve(name), seed=1)
    assert built.num_parameters == parameters or parameters is None
    assert (built.input_shape, built.num_classes) == (shape, classes)
    assert built.vector.shape == (vector_size(built.layout),)
    assert '"compile_config"' in built.model_json


def test_the_seed_decides_the_initial_weights(process: ModelProcess) -> None:
    """Same run seed, same initial weights, in any process, also in one that has no Keras yet when a function brings it;
    another seed, others."""
    task = resolve(TASK)
    first, other = (process.build(task, seed=seed).vector for seed in (1, 2))
    with ModelProcess(is_warm=False) as second:
        again = second.build(task, seed=1).vector
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("uncompiled", "not compiled"),
        ("with_lambda", "Lambda"),
        ("with_own_loss", "own_loss"),
        ("output_without_loss", "left"),
        ("nested_outputs", "nested"),
        ("metric_of_each_class", "metrics fails"),
        ("loss_of_another_shape", "metrics fails"),
        ("raises", "ValueError: two lines"),
        ("nothing", "NoneType"),
        ("subclass", "Mine, a class of its own"),
        ("functional_subclass", "Mine, a class of its own"),
        ("loss_of_another_output", "Expected keys ['head']"),
        ("loss_dict_that_keras_fails_on", "mse, given by the output's name, fails"),
        ("two_losses", "['mse', 'mae'] as its loss"),
        ("without_loss", "nothing as its loss"),
        ("sparse_loss_of_one", "needs an output per class"),
        ("softmax_of_one", "always the same"),
        ("numbers_for_probabilities", "from_logits=True"),
        ("number_for_probability", "activation='sigmoid'"),
        (
            "precision_of_numbers",
            "One of the metrics Precision fails on a worker's labels, int64 of shape (n,)",
        ),
        ("one_hot_metric_of_numbers", "categorical_accuracy takes one-hot labels"),
        (
            "sparse_metric_of_one_hot",
            "sparse_categorical_accuracy fails on a worker's labels, float32 of shape (n, 2)",
        ),
        ("class_metric_of_one", "CategoricalAccuracy needs an output per class"),
        ("nothing_learned", "can be trained changes the loss"),
    ],
)
def test_a_model_that_workers_would_refuse_is_refused_at_the_start(
    process: ModelProcess, name: str, named: str
) -> None:
    """A run never begins with a model that can't be trained; one line says why, with exit code 5."""
    with pytest.raises(ModelError) as refused:
        process.build(function(name), seed=1)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["loss_list", "loss_dict", "binary_of_two", "area_of_one_hot", "normalised"])
def test_a_loss_in_a_list_or_a_dict_of_one_and_other_honest_models_are_built_in_silence(
    process: ModelProcess, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What workers can train is neither refused nor warned of."""
    assert process.build(function(name), seed=1).num_classes == 2
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("probabilities_for_logits", "told that it gets logits, and the last activation is softmax"),
        ("sigmoids_for_softmax", "shares of their sum"),
        ("softmax_for_sigmoids", "probabilities become too sure"),
        ("accuracy_of_a_logit", "compares the model's logit with 0.5"),
    ],
)
def test_what_works_and_is_hardly_meant_is_a_warning(
    process: ModelProcess, name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line that says what Keras makes of it, and what to try."""
    process.build(function(name), seed=1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert words in record.getMessage()


def test_the_step_that_is_tried_leaves_the_model_as_it_was(process: ModelProcess) -> None:
    """Weights and statistics are those that plain Keras makes of the seed, and so is what comes next."""
    built = process.build(function("normalised"), seed=4)
    space: dict[str, Any] = {}
    exec(textwrap.dedent(MODELS), space)
    load_keras().utils.set_random_seed(4)
    model = space["normalised"]()
    expected, _ = flatten(model.get_weights(), layout_of(model))
    assert built.vector.tobytes() == expected.tobytes()


def test_a_schedule_is_known_and_another_rate_refused(process: ModelProcess) -> None:
    """A learning rate for a model with a schedule is a matter of usage; without one it is taken."""
    built = process.build(function("scheduled"), seed=1)
    plain = process.build(function("good"), seed=1)
    assert (built.has_schedule, plain.has_schedule) == (True, False)
    refuse_other_rate(built.model_json, None)
    refuse_other_rate(plain.model_json, 0.1)
    with pytest.raises(UsageError, match="Try without --learning-rate"):
        refuse_other_rate(built.model_json, 0.1)


@pytest.mark.parametrize(
    "task", [function("missing"), function("not_callable"), function("f", module="no_such_module_here")]
)
def test_a_function_that_is_not_there_is_a_usage_error(process: ModelProcess, task: Task) -> None:
    """A mistyped MODULE:FUNCTION is a matter of usage: exit code 2."""
    with pytest.raises(UsageError):
        process.build(task, seed=1)


def test_a_module_that_fails_to_import_says_why(process: ModelProcess) -> None:
    """A library that a person's module lacks is named, and not mistaken for the module."""
    with pytest.raises(ModelError, match="no_such_library_anywhere"):
        process.build(function("f", module="broken_module"), seed=1)


def test_a_model_file_starts_with_its_own_weights(process: ModelProcess, tmp_path: Path) -> None:
    """FILE.keras as a task, or as --initial-model, brings its trained weights."""
    file = saved(tmp_path / "mine.keras")
    from_file = process.build(resolve(str(file)), seed=1)
    continued = process.build(function("good"), seed=5, initial_model=file)
    expected = np.concatenate(
        [weight.ravel() for weight in load_keras().saving.load_model(file).get_weights()]
    )
    np.testing.assert_array_equal(from_file.vector, expected)
    np.testing.assert_array_equal(continued.vector, expected)


def test_bad_model_files_are_refused(process: ModelProcess, tmp_path: Path) -> None:
    """A file with a Lambda, of another model, torn or missing, is one line and an exit code."""
    with pytest.raises(ModelError, match="Lambda"):
        process.build(resolve(str(saved(tmp_path / "lambda.keras", "with_lambda"))), seed=1)
    with pytest.raises(ModelError, match="don't fit"):
        process.build(resolve("mnist"), seed=1, initial_model=saved(tmp_path / "other.keras"))
    (tmp_path / "torn.keras").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"torn\.keras"):
        process.build(resolve(str(tmp_path / "torn.keras")), seed=1)
    with pytest.raises(UsageError):
        process.build(function("good"), seed=1, initial_model=tmp_path / "missing.keras")


def test_a_checkpoint_becomes_a_keras_model(process: ModelProcess, tmp_path: Path) -> None:
    """model.keras opens with plain Keras, compiled, with the checkpoint's weights and its card."""
    built = process.build(resolve("mnist"), seed=1)
    process.save(commit(tmp_path, built, 0.25), tmp_path / "model.keras", card())
    assert process.flush(60)
    model = load_keras().saving.load_model(tmp_path / "model.keras")
    assert model.compiled
    assert all((weight == 0.25).all() for weight in model.get_weights())
    assert read_card(tmp_path / "model.keras") == card()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT_FILE, "curves.png", "model.keras"]


def test_the_newest_state_wins(process: ModelProcess, tmp_path: Path) -> None:
    """Saving may lag behind the rounds, but ends with the newest."""
    built = process.build(resolve("mnist"), seed=1)
    for number in range(1, 6):
        process.save(commit(tmp_path, built, number), tmp_path / "model.keras", card(number))
    assert process.flush(60)
    found = read_card(tmp_path / "model.keras")
    assert found is not None
    assert found.round_number == 5
    model = load_keras().saving.load_model(tmp_path / "model.keras")
    assert (model.get_weights()[0] == 5).all()


def test_a_held_checkpoint_becomes_its_own_model_and_is_given_up(
    process: ModelProcess, tmp_path: Path
) -> None:
    """best.keras beside the newest model: both are saved, and nothing is left of what was held, nor of one that a
    better one overtook."""
    built = process.build(resolve("mnist"), seed=1)
    for number in (1, 2):
        commit(tmp_path, built, number).rename(tmp_path / f".held-{number}-best.keras")
        held = tmp_path / f".held-{number}-best.keras"
        process.save(commit(tmp_path, built, number), tmp_path / "model.keras", card(number))
        process.save(held, tmp_path / "best.keras", card(number), is_held=True)
    assert process.flush(60)
    best = load_keras().saving.load_model(tmp_path / "best.keras")
    assert (best.get_weights()[0] == 2).all()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best.keras", CHECKPOINT_FILE, "curves.png", "model.keras"]


def tried(process: ModelProcess, folder: Path, built: BuiltModel, former: float, value: float) -> str | None:
    """What the child says of a checkpoint that is about to follow another."""
    commit(folder, built, former)
    commit(folder / "new", built, value).rename(folder / f".{CHECKPOINT_FILE}.new")
    pixels = InputFacts(shape=(28, 28), dtype="uint8", low=0, high=255)
    return process.check(folder / f".{CHECKPOINT_FILE}.new", pixels)


@pytest.mark.parametrize(
    ("former", "value", "is_told"),
    [
        (0.01, 0.02, False),
        (0.01, 30_000.0, False),
        (0.01, 1e12, True),
        (0.01, np.inf, True),
        (1e12, 2e12, False),
    ],
)
def test_a_model_that_answers_nan_is_told_before_it_is_committed(
    process: ModelProcess, tmp_path: Path, former: float, value: float, is_told: bool
) -> None:
    """Finite weights may overflow in the middle; what the committed model can't answer either says nothing new."""
    (tmp_path / "new").mkdir()
    reason = tried(process, tmp_path, process.build(resolve("mnist"), seed=1), former, value)
    assert (reason is not None) == is_told
    assert not is_told or "answers NaN or infinity" in str(reason)


def test_made_up_examples_are_within_the_workers_range() -> None:
    """Tokens are whole numbers that the embedding has; the lowest and the highest are among them."""
    tokens = made_up_examples((9,), {"low": 0, "high": 99, "dtype": "int64"})
    assert (tokens.min(), tokens.max(), np.unique(tokens % 1).tolist()) == (0, 99, [0.0])
    assert made_up_examples((2, 2), None).shape == (8, 2, 2)


def test_a_failed_save_is_told_at_the_flush(process: ModelProcess, tmp_path: Path) -> None:
    """A checkpoint that can't be read leaves no half model behind, and the end of the run hears of it."""
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"torn")
    process.save(tmp_path / CHECKPOINT_FILE, tmp_path / "model.keras", card())
    with pytest.raises(CheckpointError):
        process.flush(60)
    assert process.flush(1)
    assert not (tmp_path / "model.keras").exists()


def test_a_model_is_tried_while_another_is_being_saved(process: ModelProcess, tmp_path: Path) -> None:
    """A commit waits for no save, however long it takes: here for a checkpoint that comes through a pipe."""
    built = process.build(function("good"), seed=1)
    os.mkfifo(tmp_path / "slow")
    process.save(tmp_path / "slow", tmp_path / "model.keras", card())
    assert wait_until(lambda: "save" in process._child.operations, 60)
    (tmp_path / "new").mkdir()
    assert tried(process, tmp_path, built, 0.25, 0.5) is None
    assert process._child.operations == {"save"}
    with contextlib.suppress(BrokenPipeError):  # its reader may see at once that a pipe has no places
        (tmp_path / "slow").write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        process.flush(60)


SHADOWS = ("broker", "coordinator", "worker", "json", "queue", "numpy", "keras", "xxhash", "random")


def test_files_in_the_current_folder_stand_in_for_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person's own broker.py or json.py is left alone, and MODULE:FUNCTION is still found beside them.

    Also with the empty entry that `export PYTHONPATH=$PYTHONPATH:/more` leaves.
    """
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was imported')\n")
    (tmp_path / "beside_them.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f":{os.environ['PYTHONPATH']}:")
    with ModelProcess() as process:
        assert process.build(function("good", "beside_them"), seed=1).num_classes == 2
        with pytest.raises(
            UsageError, match=r"json has no function 'build'.*The module is .*json.__init__\.py"
        ):
            process.build(function("build", "json"), seed=1)


def test_a_child_that_dies_is_replaced(process: ModelProcess) -> None:
    """When the child is killed over a request, that request fails with its end, and the next one works."""
    with pytest.raises(ModelError, match="exit code 9"):
        process.build(function("dies"), seed=1)
    assert process.build(function("good"), seed=1).num_classes == 2


def test_a_build_that_never_ends_is_given_up(process: ModelProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's function waits for ever, or its model does: the process is ended, and the next build gets another."""
    monkeypatch.setattr("coordinator.keras.pipes.REQUEST_SECONDS", 2.0)
    with pytest.raises(ModelError, match="took more than 2 s, and was given up"):
        process.build(function("never_ends"), seed=1)
    monkeypatch.undo()
    assert process.build(function("good"), seed=1).num_classes == 2


def test_a_build_under_way_does_not_hold_up_the_end() -> None:
    """Nothing of it is on disk, so it is not waited for: Ctrl-C ends a coordinator within seconds."""
    process = ModelProcess()
    process.build(function("good"), seed=1)
    failures: list[BaseException] = []

    def build() -> None:
        with pytest.raises(ModelError) as failed:
            process.build(function("never_ends"), seed=1)
        failures.append(failed.value)

    building = threading.Thread(target=build)
    building.start()
    assert wait_until(lambda: process._child.operations == {"build"}, 10)
    begun = time.monotonic()
    process.close()
    building.join(60)
    assert time.monotonic() - begun < at_load(4)
    assert "killed by signal 9" in str(failures[0])


_COORDINATOR = """
import sys, threading
from coordinator.keras.process import ModelProcess
process = ModelProcess()
print(process._child._process.pid, "tensorflow" in sys.modules, "keras" in sys.modules, flush=True)
threading.Event().wait(600)
"""


def test_the_child_ends_with_a_killed_coordinator(tmp_path: Path) -> None:
    """SIGKILL leaves no process behind, Ctrl-C is not the child's, and TensorFlow is the child's alone."""
    with subprocess.Popen([sys.executable, "-c", _COORDINATOR], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, has_tensorflow, has_keras = parent.stdout.readline().split()
        assert (has_tensorflow, has_keras) == ("False", "False")
        assert wait_until(lambda: _ignores_interrupts(int(child)), 30)
        os.kill(int(child), signal.SIGINT)
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not _is_running(int(child)), 30)


def _ignores_interrupts(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored.split()[1], 16) & 1 << (signal.SIGINT - 1))


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_layer_is_set_from_statistics_as_adapt_on_all_examples_would(
    process: ModelProcess, tmp_path: Path
) -> None:
    """Three sites' sums, and their examples in one place: mean and variance agree to float32's rounding, and the model
    that is saved normalises with them."""
    layers = load_keras().layers
    parts = [rows(number, seed) * np.float32([1, 1, 1e-30]) for seed, number in enumerate((200, 50, 90))]
    write_statistics(tmp_path / "statistics.json", over(parts))
    built = process.build(function("to_adapt"), seed=0, normalize=tmp_path / "statistics.json")
    layer = layers.Normalization()
    layer.adapt(np.concatenate(parts).astype(np.float64))
    for array, weight in zip(
        unflatten(built.layout, built.vector, built.integers), layer.weights[:2], strict=False
    ):
        np.testing.assert_array_max_ulp(array, weight.numpy(), 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("to_adapt", "feature 3 has the mean .* that float32 holds"),
        ("good", "no Normalization layers"), ("to_adapt_twice", "2 Normalization layers"),
        ("adapted_already", "no Normalization layers"), ("to_adapt_as_one", r"of shape \(\); the statistics are of 3"),
    ],
)  # fmt: skip
def test_a_model_without_one_layer_to_set_is_refused(
    process: ModelProcess, tmp_path: Path, name: str, expected: str
) -> None:
    """Before anybody is waited for, with what was found and what is expected; so is a variance of 10^59."""
    write_statistics(tmp_path / "statistics.json", over([rows(50)]))
    with pytest.raises(ModelError, match=expected):
        process.build(function(name), seed=0, normalize=tmp_path / "statistics.json")
