"""Parts of one's own, as a site installs them: registered with Keras, and built only where this module is trusted."""

import keras


@keras.saving.register_keras_serializable(package="parts")
class Gate(keras.layers.Layer):
    """Each feature times a weight."""

    def build(self, shape):  # type: ignore[no-untyped-def]
        self.gate = self.add_weight(shape=(shape[-1],), initializer="ones", name="gate")

    def call(self, x):  # type: ignore[no-untyped-def]
        return x * self.gate


@keras.saving.register_keras_serializable(package="parts")
class WithinHalf(keras.metrics.MeanMetricWrapper):
    """The share of answers that are no more than 0.5 away."""

    def __init__(self, name: str = "within_half", **more) -> None:  # type: ignore[no-untyped-def]
        super().__init__(
            lambda y, p: keras.ops.cast(keras.ops.abs(y - p) <= 0.5, "float32"), name=name, **more
        )

    def get_config(self):  # type: ignore[no-untyped-def]
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="parts")
def pinball(y, p):  # type: ignore[no-untyped-def]
    """The loss of a 0.9 quantile."""
    return keras.ops.mean(keras.ops.maximum(0.9 * (y - p), 0.1 * (p - y)), axis=-1)
