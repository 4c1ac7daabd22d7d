"""The round start on its way: one header and the parts of the global weights, published once for many workers.

The broker writes nothing of it to its disk: all can be made anew from the record and the checkpoint, and who lacks it
says so when the broker is back. The queues of ten thousand workers would each keep a book of what they hold of it.
"""

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
from coordinator.learning.squeezing import Squeezing

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
        squeezing: Squeezing,
    ) -> None:
        self._record = record
        self._terms: dict[str, RelayTerms] = {}
        self._vector = base.vector
        self._step = squeezing.step_to(base.vector, record.part_bytes)
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
            download_precision=squeezing.precision,
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

    def send(
        self,
        publisher: Publisher,
        readers: Readers,
        session: int,
        record: RoundRecord,
        models: dict[str, str],
    ) -> None:
        """Publish it to these workers: as little of the weights to each as it needs.

        Args:
            publisher: Of the coordinator.
            readers: The workers by the process that each is a worker of.
            session: The coordinator's, which a resumed round was made before.
            record: Of the round, with whoever is asked for an update by now.
            models: The digest of the newest model that each process has, or has before it in its queue; this one is
                noted. Where that is wrong, it says so, and gets all weights.
        """
        self._start = replace(self._start, session=session, participants=len(record.selected))
        self._terms = {
            relay: RelayTerms(
                num_examples=record.num_examples[relay],
                num_workers=share.num_workers,
                weight=share.weight,
                most_weight=record.most_weight,
            )
            for relay, share in record.relays.items()
        }
        by_base: dict[str, list[str]] = {}
        for reader in readers:
            by_base.setdefault(self._base_for(reader, models), []).append(reader)
        for base, all_of_them in by_base.items():
            for group in groups_of(all_of_them):
                if publisher.send(list(self._messages(base, {reader: readers[reader] for reader in group}))):
                    models.update(dict.fromkeys(group, self._start.digest))

    def _base_for(self, reader: str, models: dict[str, str]) -> str:
        """What a process is told the new model as a step from; empty: it needs all of it."""
        model, start = models.get(reader, ""), self._start
        if start.download_precision == "float32" or start.weights is not None:
            return ""
        is_enough = model == start.digest or (self._step is not None and model == self._step.base)
        return model if is_enough else ""

    def _messages(self, base: str, readers: Readers) -> Iterator[Outgoing]:
        start = self._start
        if base == start.digest:
            start = replace(start, base=base, parts=0)
        elif base and self._step is not None:
            written, scales = self._step.written, self._step.encoding.scales
            start = replace(start, base=base, scales=scales, parts=len(written))
        others_alike = {reader: readers[reader] for reader in readers if reader not in self._terms}
        yield from each_addressed(start, others_alike)
        for relay in readers.keys() & self._terms.keys():
            yield outgoing(
                replace(start, relay=self._terms[relay]), names.worker_queue(relay), is_said_again=True
            )
        first, *others = map(names.worker_queue, readers)
        for index in range(start.parts):
            yield Outgoing(
                key=first,
                bcc=tuple(others),
                body=_PartBody(self, start, index),
                message_type=Part.TYPE,
                is_said_again=True,
            )

    def part(self, start: RoundStart, index: int) -> bytes:
        """One part's body, encoded when its turn comes."""
        if start.base and self._step is not None:
            precision, data = start.download_precision, self._step.written[index]
        else:
            precision, data = "float32", as_bytes(self._vector[self._spans[index]])
        return encode_message(
            Part(
                run_id=self._record.run_id,
                round_number=self._record.round_number,
                transfer_id=start.transfer_id,
                index=index,
                count=start.parts,
                precision=precision,
                data=data,
            )
        )


class _PartBody:
    """Encodes one part when it is published, so that the model is not held twice."""

    def __init__(self, invitation: Invitation, start: RoundStart, index: int) -> None:
        self._invitation, self._start, self._index = invitation, start, index

    def __call__(self) -> bytes:
        return self._invitation.part(self._start, self._index)


def groups_of(readers: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a list of processes into what one publish can address."""
    return (readers[begin : begin + _MOST_READERS] for begin in range(0, len(readers), _MOST_READERS))


def addressed(message: Message, group: Sequence[str], *, is_said_again: bool = False) -> Outgoing:
    """One message to a group of processes; none learns of the others."""
    first, *others = map(names.worker_queue, group)
    return outgoing(message, first, bcc=others, is_said_again=is_said_again)


def each_addressed(message: RoundStart | RoundClosed | UploadAgain, readers: Readers) -> Iterator[Outgoing]:
    """The same to workers of their own as one message, and to each swarm with those of its workers that are meant."""
    alone = [reader for reader, workers in readers.items() if workers == [reader] == [names.swarm_of(reader)]]
    is_said_again = isinstance(message, RoundStart)  # nobody says again that a round is closed
    for group in groups_of(alone):
        yield addressed(message, group, is_said_again=is_said_again)
    for reader, workers in readers.items():
        if reader not in alone:
            numbers = names.pack_numbers(map(names.number_of, workers))
            yield outgoing(
                replace(message, numbers=numbers), names.worker_queue(reader), is_said_again=is_said_again
            )
