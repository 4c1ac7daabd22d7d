"""What the workers of a swarm say of themselves, in one word or a few: those who differ in numbers alone together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from broker.wire import names
from broker.wire.messages import Declined, Joined, JoinedAlike, SwarmDeclined, SwarmJoined, encode

_MOST_BYTES = 400 * 1024  #: in one word: well below `limits.MOST_WORD_BYTES`, and enough for 20,000 workers
_UPLOAD_BYTES = 20  #: the id of one, as text
_COUNT_BYTES = 8


def swarm_words(reader: str, workers: Sequence[Joined]) -> list[SwarmJoined]:
    """What a swarm's process says for its workers.

    Args:
        reader: The process's name.
        workers: What each would say for itself, the lowest number first.
    """
    alike: dict[bytes, list[Joined]] = {}
    for each in workers:
        alike.setdefault(_common_to(each, reader), []).append(each)
    words: list[list[JoinedAlike]] = [[]]
    left = _MOST_BYTES
    for common, every in alike.items():
        most = max(1, (_MOST_BYTES - len(common)) // _bytes_of(every[0]))
        for begin in range(0, len(every), most):
            some = every[begin : begin + most]
            size = len(common) + len(some) * _bytes_of(some[0])
            if size > left and words[-1]:
                words.append([])
                left = _MOST_BYTES
            left -= size
            words[-1].append(_together(some, reader))
    return [SwarmJoined(worker=reader, groups=tuple(groups)) for groups in words]


def declined_together(reader: str, declined: Iterable[Declined]) -> list[SwarmDeclined]:
    """What workers of a swarm's process can't answer: one word for all that say the same.

    Args:
        reader: The process's name.
        declined: What each would say for itself.
    """
    alike: dict[Declined, list[int]] = {}
    for each in declined:
        alike.setdefault(replace(each, worker=reader), []).append(names.number_of(each.worker))
    return [
        SwarmDeclined(
            worker=reader,
            numbers=names.pack_numbers(numbers),
            run_id=word.run_id,
            round_number=word.round_number,
            attempt=word.attempt,
            reason=word.reason,
        )
        for word, numbers in alike.items()
    ]


def _bytes_of(joined: Joined) -> int:
    """About how much one more worker takes."""
    has_announced = joined.announced is not None
    return _COUNT_BYTES * (2 + len(joined.examples_per_class)) + _UPLOAD_BYTES * has_announced + 1


def _common(joined: Joined, reader: str) -> Joined:
    return replace(
        joined, worker=reader, num_examples=0, num_test_examples=0, examples_per_class=(), announced=None
    )


def _common_to(joined: Joined, reader: str) -> bytes:
    has = f"{joined.announced is not None} {len(joined.examples_per_class)} ".encode()
    return has + encode(_common(joined, reader))


def _together(workers: Sequence[Joined], reader: str) -> JoinedAlike:
    counts = np.array([each.examples_per_class for each in workers], np.int64)
    return JoinedAlike(
        common=_common(workers[0], reader),
        numbers=names.pack_numbers(names.number_of(each.worker) for each in workers),
        num_examples=np.array([each.num_examples for each in workers], np.int64),
        num_test_examples=np.array([each.num_test_examples for each in workers], np.int64),
        examples_per_class=counts.reshape(len(workers), -1),
        announced=tuple(each.announced for each in workers if each.announced is not None),
    )


def each_joined(word: SwarmJoined) -> Iterator[Joined]:
    """What each worker in a swarm's word says of itself.

    Raises:
        ProtocolError: No worker could say that.
    """
    for group in word.groups:
        yield from _each(word.worker, group)


def _each(reader: str, group: JoinedAlike) -> Iterable[Joined]:
    workers = names.numbered(reader, names.unpack_numbers(group.numbers))
    announced = group.announced or [None] * len(workers)
    columns = (group.num_examples, group.num_test_examples, group.examples_per_class)
    for worker, upload_id, examples, tests, counts in zip(
        workers, announced, *(column.tolist() for column in columns), strict=True
    ):
        yield replace(
            group.common,
            worker=worker,
            num_examples=examples,
            num_test_examples=tests,
            examples_per_class=tuple(counts),
            announced=upload_id,
        )
