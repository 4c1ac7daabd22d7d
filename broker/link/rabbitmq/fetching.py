"""Single messages taken out of queues that aren't consumed."""

import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pika.spec

from broker.link.rabbitmq.calls import fail, finish
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.translation import delivery_of, is_missing
from broker.link.seam import Delivery


class Fetching:
    """Fetches on a channel of its own: a queue that can't be read closes this one, and takes nobody along.

    What was fetched and is not acknowledged then goes back into its queue.

    Args:
        connection: The consuming one.
    """

    def __init__(self, connection: ConnectionThread) -> None:
        self._connection = connection
        self._channel: Any = None
        self._numbers = itertools.count(1)
        self._number = 0  # of the channel, below 0: those of consumed deliveries are above
        self._answer: Future[Any] = Future()

    def fetch(self, queue: str, most: int = 1) -> Iterator[Delivery]:
        """Take up to `most` messages out of a queue that isn't consumed, until it is empty or missing.

        Raises:
            BrokerError: Somebody reads it exclusively, or it is of a kind that can't be read like this.
        """
        calls = self._connection.calls
        answer = calls.send(partial(self._get, queue))
        for left in reversed(range(most)):
            delivery = calls.wait(answer, 30.0)
            if delivery is None:
                return
            if left:
                answer = calls.send(partial(self._get, queue))  # comes while the caller works on this one
            yield delivery

    def ack(self, number: int, tag: int) -> None:
        """Acknowledge in the connection's thread; what another channel gave is void."""
        if number == self._number and self._channel is not None:
            self._channel.basic_ack(tag)

    def _get(self, queue: str, future: Future[Any]) -> None:
        self._answer = future
        if self._channel is not None and self._channel.is_open:
            self._ask(queue, self._channel)
        else:
            self._connection.on_own_channel(partial(self._begin, queue), self._closed)

    def _begin(self, queue: str, channel: Any) -> None:
        self._channel, self._number = channel, -next(self._numbers)
        channel.add_callback(lambda _frame: finish(self._answer), [pika.spec.Basic.GetEmpty], one_shot=False)
        self._ask(queue, channel)

    def _ask(self, queue: str, channel: Any) -> None:
        number, answer = self._number, self._answer

        def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
            finish(answer, delivery_of(queue, method, properties, body, number))

        channel.basic_get(queue, on_message)

    def _closed(self, reason: BaseException) -> None:
        self._channel = None
        if is_missing(reason):
            finish(self._answer)
        else:
            fail(self._answer, self._connection.translated(reason))
