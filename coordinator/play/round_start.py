"""The round start on its way: one header and the parts of the global weights, published once for many workers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from broker.link.publisher import Publisher
from broker.link.seam import Outgoing, outgoing
from broker.wire import names, transfer
from broker.wire.messages import Message, Part, RoundClosed, RoundKey, RoundStart, UploadAgain
from broker.wire.messages import encode as encode_message
from broker.wire.settings import RelayTerms, TrainingSettings
from broker.wire.tensors import INLINE_BYTES, as_bytes, part_count
from broker.wire.transfer import Digest
from coordinator.folder.checkpoint import Checkpoint
from coordinator.learning.membership import Readers
from coordinator.learning.rounds import RoundRecord

_MOST_READERS = 250  #: names in one BCC header; more than 131,064 bytes of headers closes the connection


class Invitation:
    """One round start, ready to be sent as often as workers ask for it."""

    def __init__(
        self,
        record: RoundRecord,
        base: Checkpoint,
        settings: TrainingSettings,
        *,
        last_round: int,
    ) -> None:
        self._record = record
        self._terms: dict[str, RelayTerms] = {}
        self._vector = base.vector
        self._spans = list(transfer.slices(base.vector.size, record.part_bytes))
        is_inline = base.vector.nbytes <= INLINE_BYTES
        self._start = RoundStart(
            run_id=record.run_id,
            round_number=record.round_number,
            attempt=record.attempt,
            mode=record.mode,
            task=base.task,
            classes=base.classes,
            model=base.model_json,
            settings=settings,
            layout=base.layout,
            inputs=base.inputs,
            integers=base.integers,
            scale_exponent=record.scale_exponent,
            part_bytes=record.part_bytes,
            parts=part_count(base.vector.nbytes, record.part_bytes),
            weights=bytes(as_bytes(base.vector)) if is_inline else None,
            digest=self._digest(is_inline=is_inline),
            last_round=last_round,
            deadline_seconds=record.deadline_seconds,
            needs=base.needs if base.is_general else None,
            quorum=record.quorum,
        )

    @property
    def held(self) -> RoundKey:
        """What a worker says it holds once it has all of this."""
        return self._start.held

    def _digest(self, *, is_inline: bool) -> str:
        digest = Digest()
        if is_inline:
            digest.add(0, as_bytes(self._vector))
        else:
            for index, span in enumerate(self._spans):
                digest.add(index, as_bytes(self._vector[span]))
        return digest.hex()

    def send(self, publisher: Publisher, readers: Readers, session: int, record: RoundRecord) -> None:
        """Publish it to these workers.

        Args:
            publisher: Of the coordinator.
            readers: The workers by the process that each is a worker of.
            session: The coordinator's, which a resumed round was made before.
            record: Of the round, with whoever is asked for an update by now.
        """
        self._start = replace(self._start, session=session, participants=len(record.selected))
        self._terms = {
            relay: RelayTerms(num_examples=record.num_examples[relay], most_weight=record.most_weight)
            for relay in record.relays
        }
        for group in groups_of([*readers]):
            publisher.send(list(self._messages({reader: readers[reader] for reader in group})))

    def _messages(self, readers: Readers) -> Iterator[Outgoing]:
        others_alike = {reader: readers[reader] for reader in readers if reader not in self._terms}
        yield from each_addressed(self._start, others_alike)
        for relay in readers.keys() & self._terms.keys():
            yield outgoing(replace(self._start, relay=self._terms[relay]), names.worker_queue(relay))
        if self._start.weights is None:
            first, *others = map(names.worker_queue, readers)
            for index in range(len(self._spans)):
                yield Outgoing(
                    key=first, bcc=tuple(others), body=_PartBody(self, index), message_type=Part.TYPE
                )

    def part(self, index: int) -> bytes:
        """One part's body, encoded when its turn comes."""
        return encode_message(
            Part(
                run_id=self._record.run_id,
                round_number=self._record.round_number,
                transfer_id=self._start.transfer_id,
                index=index,
                count=len(self._spans),
                precision="float32",
                data=as_bytes(self._vector[self._spans[index]]),
            )
        )


class _PartBody:
    """Encodes one part when it is published, so that the model is not held twice."""

    def __init__(self, invitation: Invitation, index: int) -> None:
        self._invitation, self._index = invitation, index

    def __call__(self) -> bytes:
        return self._invitation.part(self._index)


def groups_of(readers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list of processes into what one publish can address."""
    return (readers[begin : begin + _MOST_READERS] for begin in range(0, len(readers), _MOST_READERS))


def addressed(message: Message, group: Sequence[str]) -> Outgoing:
    """One message to a group of processes; none learns of the others."""
    first, *others = map(names.worker_queue, group)
    return outgoing(message, first, bcc=others)


def each_addressed(message: RoundStart | RoundClosed | UploadAgain, readers: Readers) -> Iterator[Outgoing]:
    """The same to workers of their own as one message, and to each swarm with those of its workers that are meant."""
    alone = [reader for reader, workers in readers.items() if workers == [reader]]
    for group in groups_of(alone):
        yield addressed(message, group)
    for reader, workers in readers.items():
        if workers != [reader]:
            numbers = names.pack_numbers(map(names.number_of, workers))
            yield outgoing(replace(message, numbers=numbers), names.worker_queue(reader))
