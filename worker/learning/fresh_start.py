"""Every training begins as the first one did: what an earlier round left in a model is forgotten."""

from typing import Any

import numpy as np

from broker.errors import ModelError
from broker.wire.tensors import Array
from worker.tensorflow import load_keras


def be_deterministic(seed: int) -> None:
    """Make TensorFlow give the same bits for the same seed, in this whole process; call it first."""
    keras = load_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


class FreshStart:
    """Brings one compiled model's optimizer, metrics and random layers back to their beginning.

    In place, for a new object would have to be traced again. Made before the first step.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._schedule_start = _continue_schedule(model.optimizer)
        self._variables = list(model.optimizer.variables)
        self._values = [_compact(variable.numpy()) for variable in self._variables]
        self._seeds = _seed_states(model)

    def begin(self, *, seed: int, learning_rate: float | None, steps_before: int) -> None:
        """Forget what earlier trainings left behind; the weights stay as they are.

        Args:
            seed: Of the random layers.
            learning_rate: None leaves the model's own.
            steps_before: From which step a learning rate's schedule goes on.

        Raises:
            ModelError: A rate was given, and the model's is a schedule.
        """
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        self._model.reset_metrics()
        for number, state in enumerate(self._seeds):
            word = np.random.SeedSequence([seed, 2, number]).generate_state(1)[0]
            state.assign(np.array([word, 0], np.uint32))
        if learning_rate is not None:
            self._set_learning_rate(learning_rate)
        if self._schedule_start is not None:
            self._schedule_start.assign(steps_before)

    def _set_learning_rate(self, learning_rate: float) -> None:
        try:
            self._model.optimizer.learning_rate = learning_rate
        except TypeError as exc:
            raise ModelError(
                f"The model's learning rate is a schedule, so it can't be set to {learning_rate}. "
                "Try without --learning-rate."
            ) from exc


def _compact(value: Array) -> Array:
    """A constant array kept as one number."""
    is_constant = value.size > 1 and bool((value == value.flat[0]).all())
    return np.broadcast_to(np.array(value.flat[0]), value.shape) if is_constant else value


def _continue_schedule(optimizer: Any) -> Any:
    """Have a learning rate's schedule count from a variable on, which is returned; None where there is none.

    The optimizer counts its own steps from 0 in every round, and with Adam must: its moments begin anew, too.
    """
    kind: Any = load_keras().optimizers.schedules.LearningRateSchedule
    import tensorflow as tf

    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # mixed precision wraps it
    schedule = optimizer._learning_rate  # the public name gives the rate at the present step
    if not isinstance(schedule, kind):
        return None
    start = tf.Variable(0, dtype=tf.int64, trainable=False)

    class Continued(kind):  # type: ignore[misc]
        """The schedule, further on."""

        def __call__(self, step: Any) -> Any:
            return schedule(tf.cast(step, tf.int64) + start)

        def get_config(self) -> dict[str, Any]:
            return dict(schedule.get_config())

    optimizer.learning_rate = Continued()
    return start


def _seed_states(model: Any) -> list[Any]:
    """The states of all random layers, nested ones too: variables that Keras counts as no weight."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
