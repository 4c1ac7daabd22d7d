"""A simulated client; a module of its own, for Ray's actors import it by its name."""

from functools import cache
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tests.bench.workload import SIMULATED_BATCH, cnn, load_mnist, partition

app = ClientApp()


@cache
def _ready() -> tuple[Any, dict[str, Any]]:
    """The model and the data of one actor."""
    return cnn(), load_mnist()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client for an epoch."""
    model, mnist = _ready()
    number, count = (int(context.node_config[name]) for name in ("partition-id", "num-partitions"))
    rows = partition(number, count, len(mnist["y_train"]))
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    for variable in model.optimizer.variables[2:]:  # moments of another client; its count and rate stay
        variable.assign(variable * 0)
    model.fit(mnist["x_train"][rows], mnist["y_train"][rows], batch_size=SIMULATED_BATCH, epochs=1, verbose=0)
    metrics = MetricRecord({"num-examples": len(rows)})
    content = {"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)
