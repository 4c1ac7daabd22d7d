"""A Link inside one process, for tests and simulations: the same bytes and the same rules as the real broker's."""

import itertools
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from broker.errors import DeclareRefused, LinkLost, Unroutable
from broker.link.seam import Connection, Delivery, Outgoing, Queue
from broker.link.standstill import Standstill
from broker.wire import names

_DEAD_BYTES = 64 * 1024


@dataclass(slots=True, kw_only=True)
class _Stored:
    body: bytes
    message_type: str | None
    content_type: str | None
    user_id: str | None
    headers: dict[str, object]


@dataclass(slots=True)
class _Store:
    declared: Queue
    ready: deque[_Stored] = field(default_factory=deque)
    readers: list["MemoryLink"] = field(default_factory=list)


class MemoryBroker:
    """Queues in memory; thread-safe. One lock covers every step, so the steps of all links have one order."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stores: dict[str, _Store] = {}
        self._bound: dict[str, dict[str, _Store]] = {}  # by key, then by queue

    def declare(self, queue: Queue) -> None:
        """Create a queue and its bindings; raises DeclareRefused where one is there with other arguments."""
        store = self.stores.setdefault(queue.name, _Store(queue))
        if store.declared not in (queue, replace(queue, expires_seconds=None)):
            raise DeclareRefused(f"The queue {queue.name!r} exists with other arguments.")
        for key in queue.keys:
            self._bound.setdefault(key, {})[queue.name] = store

    def delete(self, queue_name: str) -> None:
        """Delete a queue and its bindings, if it is there."""
        store = self.stores.pop(queue_name, None)
        for key in store.declared.keys if store else ():
            del self._bound[key][queue_name]

    def depth(self, queue_name: str) -> int:
        """How many messages are ready in a queue."""
        with self.lock:
            return len(self.stores[queue_name].ready)

    def route(self, message: _Stored, keys: Sequence[str]) -> bool:
        """Store one message in every queue bound to one of the keys; whether there was one."""
        targets = {name: store for key in keys for name, store in self._bound.get(key, {}).items()}.values()
        for store in targets:
            store.ready.append(message)
            limit = store.declared.max_length
            while limit is not None and len(store.ready) > limit:
                store.ready.popleft()
        for store in targets:
            self.serve(store)
        return bool(targets)

    def serve(self, store: _Store) -> None:
        """Hand what is ready to the readers that have room."""
        readers = store.readers[:1] if store.declared.single_active_consumer else store.readers
        for link in readers:
            while store.ready and link.has_room(store.declared.name):
                link.take(store.declared.name, store.ready.popleft())


class MemoryLink:
    """One account's connection to a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, account: str = "guest") -> None:
        self._broker = broker
        self._account = account
        self._events: queue.Queue[Delivery | Connection] = queue.Queue()
        self._prefetch: dict[str, int] = {}
        self._held: dict[tuple[int, int], tuple[str, _Stored]] = {}
        self._num_held: Counter[str] = Counter()  # by queue
        self._tags = itertools.count(1)
        self._generation = 1
        self._is_open = True
        self._standstill = Standstill()
        self._posted: list[tuple[Outgoing, Future[None]]] = []  # during an alarm

    @property
    def account(self) -> str:
        """The name that this role is logged in with."""
        return self._account

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection now."""
        return self._is_open

    @property
    def takes_messages(self) -> bool:
        """Whether there is a connection and no alarm."""
        return not self._standstill.is_on

    def seconds_still(self) -> float:
        """For how long in all there was an alarm, or no connection."""
        return self._standstill.seconds()

    def declare(self, queues: Sequence[Queue]) -> None:
        """Create queues and their bindings; raises DeclareRefused where one is there with other arguments."""
        with self._broker.lock:
            self._check_open()
            for each in queues:
                self._broker.declare(each)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publish in order; raises Unroutable at the end if a mandatory one reached no queue."""
        self._check_open()
        if self._standstill.is_on:
            raise LinkLost("The broker takes no messages now.")
        missed = [each.key for each in batch if not self._route(each) and each.is_mandatory]
        if missed:
            raise Unroutable(f"No queue takes messages for {missed[0]!r}.")

    def post(self, message: Outgoing) -> "Future[None]":
        """Publish at once, or once the alarm is over."""
        future: Future[None] = Future()
        self._posted.append((message, future))
        if not self._standstill.is_on:
            self._publish_posted()
        return future

    def _publish_posted(self) -> None:
        posted, self._posted = self._posted, []
        for message, future in posted:
            try:
                self.publish([message])
            except (LinkLost, Unroutable) as exc:
                future.set_exception(exc)
            else:
                future.set_result(None)

    def block(self) -> None:
        """Take no messages from now on, as during an alarm."""
        self._standstill.begin("alarm")

    def unblock(self) -> None:
        """Take messages again, those first that were posted meanwhile."""
        self._standstill.end("alarm")
        self._publish_posted()

    def _route(self, message: Outgoing, content_type: str = "application/msgpack") -> bool:
        stored = _Stored(
            body=bytes(message.encoded()),
            message_type=message.message_type,
            content_type=content_type,
            user_id=self._account,
            headers=dict(message.headers),
        )
        with self._broker.lock:
            self._check_open()
            return self._broker.route(stored, (message.key, *message.bcc))

    def consume(self, queues: Sequence[str], *, prefetch: int) -> None:
        """Receive from these queues from now on."""
        with self._broker.lock:
            self._check_open()
            for name in queues:
                self._prefetch[name] = prefetch
                self._broker.stores[name].readers.append(self)
                self._broker.serve(self._broker.stores[name])

    def cancel(self, queues: Sequence[str]) -> None:
        """Receive no longer from these queues."""
        with self._broker.lock:
            for name in queues:
                self._prefetch.pop(name, None)
                self._leave(name)

    def has_room(self, queue_name: str) -> bool:
        """Whether this reader may be handed one more."""
        limit = self._prefetch[queue_name]
        return limit == 0 or self._num_held[queue_name] < limit

    def take(self, queue_name: str, message: _Stored) -> None:
        """Be handed one message by the broker."""
        self._events.put(self._hold(queue_name, message))

    def _hold(self, queue_name: str, message: _Stored) -> Delivery:
        tag = (self._generation, next(self._tags))
        self._held[tag] = (queue_name, message)
        self._num_held[queue_name] += 1
        return Delivery(
            queue=queue_name,
            body=message.body,
            message_type=message.message_type,
            content_type=message.content_type,
            user_id=message.user_id,
            headers=message.headers,
            tag=tag,
        )

    def receive(self, seconds: float) -> Delivery | Connection | None:
        """The next delivery or change of the connection; None when there was none for so long."""
        try:
            return self._events.get(timeout=seconds) if seconds > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def fetch(self, queue: str, most: int = 1) -> Iterator[Delivery]:
        """Take up to `most` messages out of a queue that isn't consumed."""
        for _ in range(most):
            with self._broker.lock:
                self._check_open()
                store = self._broker.stores.get(queue)
                if store is None or not store.ready:
                    return
                delivery = self._hold(queue, store.ready.popleft())
            yield delivery

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; a void tag is ignored."""
        with self._broker.lock:
            touched = [self._held.pop(each.tag)[0] for each in deliveries if each.tag in self._held]
            self._num_held.subtract(touched)
            for name in set(touched) & self._broker.stores.keys():
                self._broker.serve(self._broker.stores[name])

    def copy_to_dead(self, delivery: Delivery, reason: str) -> None:
        """Copy what can't be accepted to the queue `dead`, with the reason."""
        copy = Outgoing(
            key=names.DEAD,
            body=delivery.body[:_DEAD_BYTES],
            message_type=delivery.message_type or "unknown",
            headers={"reason": reason, "queue": delivery.queue, "sender": delivery.user_id or ""},
        )
        self._route(copy)

    def consumers(self, queue: str) -> int | None:
        """How many readers a queue has; None when there is no such queue."""
        with self._broker.lock:
            store = self._broker.stores.get(queue)
            return len(store.readers) if store else None

    def waiting(self, queue: str) -> int | None:
        """How many messages wait in a queue; None when there is no such queue."""
        with self._broker.lock:
            store = self._broker.stores.get(queue)
            return len(store.ready) if store else None

    def unread(self, queues: Sequence[str]) -> list[str]:
        """Those of these queues that nobody reads, or that are missing."""
        return [name for name in queues if not self.consumers(name)]

    def purge(self, queue: str) -> None:
        """Empty a queue."""
        with self._broker.lock:
            if queue in self._broker.stores:
                self._broker.stores[queue].ready.clear()

    def delete(self, queues: Sequence[str]) -> None:
        """Delete queues."""
        with self._broker.lock:
            self.cancel(queues)
            for name in queues:
                self._broker.delete(name)

    def close(self) -> None:
        """Give everything unacknowledged back to the broker and end the connection."""
        with self._broker.lock:
            self._is_open = False
            self._standstill.begin("closed")
            self._give_back()

    def drop(self) -> None:
        """Lose the connection and restore it at once, as a network fault does."""
        with self._broker.lock:
            consumed = dict(self._prefetch)
            self._events.put(Connection.LOST)
            self._give_back()
            self._generation += 1
            self._events.put(Connection.RESTORED)
            for name, prefetch in consumed.items():
                self.consume([name], prefetch=prefetch)

    def _give_back(self) -> None:
        for name in self._prefetch:
            self._leave(name)
        self._prefetch.clear()
        held, self._held = self._held, {}
        self._num_held.clear()
        for _, (name, message) in sorted(held.items(), reverse=True):
            if name in self._broker.stores:
                self._broker.stores[name].ready.appendleft(message)
        for name in {name for name, _ in held.values()} & self._broker.stores.keys():
            self._broker.serve(self._broker.stores[name])

    def _leave(self, queue_name: str) -> None:
        store = self._broker.stores.get(queue_name)
        if store and self in store.readers:
            store.readers.remove(self)
            self._broker.serve(store)

    def _check_open(self) -> None:
        if not self._is_open:
            raise LinkLost("The link is closed.")
