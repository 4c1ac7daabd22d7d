"""Queues declared, asked about and deleted, on channels of their own: the broker closes one at which it refuses."""

import logging
import shlex
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from broker.errors import BrokerError, DeclareRefused, LinkLost, LoginRefused
from broker.link.address import vhost_of
from broker.link.rabbitmq.calls import fail, finish
from broker.link.rabbitmq.connection import ConnectionThread
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.rabbitmq.translation import (
    is_forbidden,
    is_missing,
    is_not_equivalent,
    is_refusal,
)
from broker.link.seam import Queue
from broker.wire import names

logger = logging.getLogger(__name__)

_CHANNELS = 16  #: that ask at once; an invited account has 50


class Declaring:
    """What is said to the broker about queues.

    Args:
        connection: The one to speak on.

    Attributes:
        declared: By name, what is to be there on every connection.
    """

    def __init__(self, settings: LinkSettings, connection: ConnectionThread) -> None:
        self._settings = settings
        self._connection, self._calls = connection, connection.calls
        self.declared: dict[str, Queue] = {}

    def declare(self, queues: Sequence[Queue]) -> None:
        """Create queues and their bindings; they are restored with the connection."""

        def perform(future: Future[Any]) -> None:
            def finished(error: BrokerError | None) -> None:
                if error is None:
                    finish(future)
                else:
                    fail(future, error)

            self.start_declaring(queues, finished)

        self.declared.update({each.name: each for each in queues})
        try:
            self._calls.ask(perform, seconds=_patience(queues))
        except LinkLost as exc:
            logger.debug("Declared with the next connection: %s", exc)
        except BrokerError:
            for each in queues:
                self.declared.pop(each.name, None)
            raise

    def start_declaring(
        self, queues: Sequence[Queue], finished: Callable[[BrokerError | None], None]
    ) -> None:
        """Declare the exchange and these queues, all requests sent at once; in the connection's thread."""
        outcome: list[BrokerError | None] = []

        def finish_once(error: BrokerError | None) -> None:
            if not outcome:
                outcome.append(error)
                finished(error)

        unmade = deque(queues)

        def made(_ok: Any) -> None:
            unmade.popleft()

        def use(channel: Any) -> None:
            channel.exchange_declare(names.EXCHANGE, passive=True)
            for each in unmade:
                _declare(each, channel, made)
            # The broker answers in order: the answer to this last request comes after all others.
            channel.basic_qos(
                prefetch_count=1, callback=partial(_then_close, channel, partial(finish_once, None))
            )

        def look(channel: Any) -> None:
            for each in unmade:
                channel.queue_declare(each.name, passive=True, callback=made)
            channel.basic_qos(
                prefetch_count=1, callback=partial(_then_close, channel, partial(finish_once, None))
            )

        def refused(reason: BaseException) -> None:
            if outcome:
                return  # closed by ourselves
            left = [each.name for each in unmade]
            if is_not_equivalent(reason) and left and unmade[0].expires_seconds is not None:
                # It may be there without an expiry: an account's, or as an older Warren made it.
                unmade[0] = replace(unmade[0], expires_seconds=None)
                self._connection.on_own_channel(use, refused)
            elif is_forbidden(reason) and left and not self._foreign(left):
                # An invited account's queues were made for it: they are looked for.
                self._connection.on_own_channel(look, refused)
            else:
                finish_once(self._undeclared(reason, left))

        self._ensure_exchange(lambda: self._connection.on_own_channel(use, refused), finish_once)

    def _ensure_exchange(self, then: Callable[[], None], refuse: Callable[[BrokerError], None]) -> None:
        """Declare the exchange where the account may; a least-privilege worker finds it declared."""
        outcome: list[bool] = []

        def proceed() -> None:
            if not outcome:
                outcome.append(True)
                then()

        def use(channel: Any) -> None:
            channel.exchange_declare(
                names.EXCHANGE, "topic", durable=True, callback=partial(_then_close, channel, proceed)
            )

        def closed(reason: BaseException) -> None:
            if is_not_equivalent(reason):
                outcome.append(False)
                refuse(self._other_arguments("exchange", names.EXCHANGE))
            else:
                proceed()

        self._connection.on_own_channel(use, closed)

    def _foreign(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that are not for this account, going by their names."""
        return [name for name in queues if not names.is_own_queue(self._settings.account, name)]

    def _undeclared(self, reason: BaseException, left: Sequence[str]) -> BrokerError:
        """What it means that the broker refused the first of the declarations that are left."""
        account = self._settings.account
        if is_not_equivalent(reason) and left:
            return self._other_arguments("queue", left[0])
        if is_forbidden(reason) and (foreign := self._foreign(left)):
            return LoginRefused(
                f"The account {account!r} may not use the queue {foreign[0]!r}. Expected the login that "
                "`broker invite` printed for this name, or for a swarm of this many. Check --amqp-url and --name."
            )
        if is_missing(reason) and left:
            return DeclareRefused(
                f"The queue {left[0]!r} is not there, and the account {account!r} may not make it. Ask whoever "
                f"runs the broker for `broker invite {names.invitation(account)} --again`."
            )
        return self._connection.translated(reason)

    def _other_arguments(self, kind: str, name: str) -> DeclareRefused:
        vhost = vhost_of(self._settings.access.amqp_url)
        option = "" if vhost == "/" else f" --vhost {shlex.quote(vhost)}"
        program = f", or `rabbitmqctl delete_queue {name}{option}`" if kind == "queue" else ""
        return DeclareRefused(
            f"The {kind} {name!r} exists with other arguments; delete it (at the management page{program}) "
            "and try again."
        )

    def consumers(self, queue: str) -> int | None:
        """How many readers a queue has; None when there is no such queue."""
        found = self._looked_at(queue)
        return None if found is None else int(found.consumer_count)

    def waiting(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when there is no such queue."""
        found = self._looked_at(queue)
        return None if found is None else int(found.message_count)

    def _looked_at(self, queue: str) -> Any:
        """What the broker tells of a queue; None when there is no such queue."""

        def use(future: Future[Any], channel: Any) -> None:
            def answered(frame: Any) -> None:
                finish(future, frame.method)
                channel.close()

            channel.queue_declare(queue, passive=True, callback=answered)

        return self._ask(use)

    def unread(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that nobody reads, that are missing or can't be used; by several channels at once."""
        found: set[str] = set()

        def perform(future: Future[Any]) -> None:
            shares = [deque(queues[begin::_CHANNELS]) for begin in range(min(_CHANNELS, len(queues)))]
            ended: list[deque[str]] = []

            def end(share: deque[str]) -> None:
                ended.append(share)
                if len(ended) == len(shares):
                    finish(future)

            for share in shares:
                self._look_for_unread(share, found, partial(end, share), partial(fail, future))

        if queues:
            self._calls.ask(perform, seconds=_patience(queues))
        return [name for name in queues if name in found]

    def _look_for_unread(
        self,
        unasked: deque[str],
        found: set[str],
        ended: Callable[[], None],
        failed: Callable[[BrokerError], None],
    ) -> None:
        """Ask about some queues, one after the other, for pika has one question under way on a channel."""

        def ask(channel: Any) -> None:
            channel.queue_declare(unasked[0], passive=True, callback=partial(answered, channel))

        def answered(channel: Any, frame: Any) -> None:
            name = unasked.popleft()
            if frame.method.consumer_count == 0:
                found.add(name)
            if unasked:
                ask(channel)
            else:
                ended()
                channel.close()

        def closed(reason: BaseException) -> None:
            """The broker closes the channel at a missing queue: the next one asks for the rest."""
            if not unasked:
                return  # closed by ourselves
            if not is_refusal(reason):
                failed(self._connection.translated(reason))
                return
            found.add(unasked.popleft())
            if unasked:
                self._connection.on_own_channel(ask, closed)
            else:
                ended()

        self._connection.on_own_channel(ask, closed)

    def purge(self, queue: str) -> None:
        """Empty a queue; a missing one is as good as empty."""

        def use(future: Future[Any], channel: Any) -> None:
            channel.queue_purge(queue, callback=partial(_then_close, channel, partial(finish, future)))

        self._ask(use)

    def delete(self, queues: Sequence[str]) -> None:
        """Delete queues that are not received from; all requests are sent at once."""
        for name in queues:
            self.declared.pop(name, None)
        if queues:
            self._ask(partial(_delete, queues), seconds=_patience(queues))

    def _ask(self, use: Callable[[Future[Any], Any], None], seconds: float = 30.0) -> Any:
        """Ask on a channel of its own; None when the broker closes it because there is no such queue."""

        def perform(future: Future[Any]) -> None:
            def closed(reason: BaseException) -> None:
                if is_missing(reason):
                    finish(future)
                else:
                    fail(future, self._connection.translated(reason))

            self._connection.on_own_channel(partial(use, future), closed)

        return self._calls.ask(perform, seconds)


def _patience(queues: Sequence[object]) -> float:
    """For how many seconds an answer about so many queues is waited for."""
    return 30.0 + 0.1 * len(queues)


def _then_close(channel: Any, act: Callable[[], None], _answer: Any) -> None:
    """Act on the broker's answer, then close the channel that asked."""
    act()
    channel.close()


def _declare(each: Queue, channel: Any, made: Callable[[Any], None]) -> None:
    """Declare a queue and bind it; `made` is called with the broker's answer to the last of this."""
    callbacks = [lambda _ok: None] * len(each.keys) + [made]
    channel.queue_declare(each.name, durable=True, arguments=each.arguments, callback=callbacks[0])
    for key, callback in zip(each.keys, callbacks[1:], strict=True):
        channel.queue_bind(each.name, names.EXCHANGE, key, callback=callback)


def _delete(queues: Sequence[str], future: Future[Any], channel: Any) -> None:
    *others, last = queues
    for name in others:
        channel.queue_delete(name)
    channel.queue_delete(last, callback=partial(_then_close, channel, partial(finish, future)))
