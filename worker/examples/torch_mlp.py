"""A neural network in PyTorch, federated by its state_dict.

coordinator run worker.examples.torch_mlp:task --out runs/torch
worker run --name w1 --trainer worker.examples.torch_mlp:Trainer
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from worker.examples.digits import NUM_CLASSES, NUM_PIXELS, open_site
from worker.trainer import Evaluated, FitSettings, Fitted, Weights


def network() -> Any:
    """Its weights are drawn from torch's random numbers."""
    return nn.Sequential(nn.Linear(NUM_PIXELS, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES))


def task() -> dict[str, Any]:
    """The network's arrays by the names of its state_dict."""
    torch.manual_seed(np.random.randint(2**31))
    return arrays_of(network())


def arrays_of(net: Any) -> dict[str, Any]:
    """Everything that is learned, also what BatchNorm would keep."""
    return {name: value.numpy() for name, value in net.state_dict().items()}


class Trainer:
    """Stochastic gradient descent with a momentum that begins anew each round."""

    def __init__(self, *, data: str | None, worker: str) -> None:
        self._site = open_site(data, worker)
        self._x = torch.tensor(self._site.x, dtype=torch.float32)
        self._y = torch.tensor(self._site.y, dtype=torch.int64)
        self._net, self.num_examples = network(), len(self._site.y)

    def fit(self, weights: Weights, settings: FitSettings) -> Fitted:
        """Train batch by batch, in another order each epoch."""
        self._load(weights)
        self._net.train()
        torch.manual_seed(settings.seed)
        rule = torch.optim.SGD(self._net.parameters(), lr=settings.learning_rate or 0.05, momentum=0.9)
        loss = torch.tensor(0.0)
        for epoch in range(1, settings.epochs + 1):
            for batch in torch.randperm(self.num_examples).split(settings.batch_size):
                if settings.stop.is_set():
                    break
                rule.zero_grad()
                loss = nn.functional.cross_entropy(self._net(self._x[batch]), self._y[batch])
                loss.backward()
                rule.step()
            settings.report(epoch, {"loss": loss.item()})
        metrics = {"loss": loss.item()}
        return Fitted(weights=arrays_of(self._net), num_examples=self.num_examples, metrics=metrics)

    def evaluate(self, weights: Weights) -> Evaluated:
        """Measure them on the test examples."""
        self._load(weights)
        self._net.eval()
        with torch.no_grad():
            scores = self._net(torch.tensor(self._site.x_test, dtype=torch.float32))
        return self._site.measure(torch.log_softmax(scores, dim=1))

    def _load(self, weights: Weights) -> None:
        self._net.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
