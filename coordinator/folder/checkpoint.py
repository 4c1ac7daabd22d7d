"""The run's state on disk: what is committed for ever, and the round that is open.

A file is a magic line, the length of a msgpack header, the header, raw little-endian arrays, and the XXH3-128 of all
before it. A torn or foreign file is named, never loaded; one of another format is named with the Warren that wrote it.
A field of the header that has a default may be missing: files that were written before it came are read.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from broker.errors import CheckpointError, ProtocolError
from broker.model.arrays import is_arrays
from broker.model.card import ModelCard
from broker.wire import codec
from broker.wire.fields import from_plain, to_plain
from broker.wire.settings import Needs
from broker.wire.tensors import FLOAT32, Array, InputFacts, Layout, Vector, sections_of, vector_size
from broker.wire.versions import release
from coordinator.files import Chunk, write_atomically
from coordinator.folder.history import Row
from coordinator.learning.rounds import Answer, RoundRecord
from coordinator.learning.squeezing import Rest, split_rest

CHECKPOINT_FILE = "checkpoint"
ROUND_FILE = "open-round"

_FORMAT = 3
_OLD_FORMATS = {2: "0.1.0"}  # by which Warren; since format 3 the header says it
_CHECKPOINT_MAGIC = f"warren checkpoint {_FORMAT}\n".encode()
_ROUND_MAGIC = f"warren open round {_FORMAT}\n".encode()
_MAGIC = re.compile(rb"warren (?:checkpoint|open round) ([1-9][0-9]{0,2})\n")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")
_DIGEST_BYTES = 16
_HEADER_LIMIT = 256 * 1024 * 1024
_MOST_VALUES = 64_000_000
_NOT_OF_A_CHECKPOINT = {
    "history",
    "num_states",
    "written_by",
    "has_rest",
    "rest_scales",
}  #: of its header, or not as they are there


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The committed state after a closed round; round 0 is the initial model.

    Attributes:
        model_json: Keras's config of the model, its compile settings inside; of a task of arrays their names.
        vector: The global model's float weights, float32 of shape (P,), in the order of `Sections`.
        integers: Its integer weights.
        inputs: What the examples of most sites are like; None before the first round.
        needs: What the model needs of a site's data; None in older files, which are of classifiers.
        is_general: It is trained on whatever it needs, and not as a classifier of `classes`, which is empty then.
        parts: Registered names of what its model holds beside Keras's own parts: workers must trust these.
        next_attempt: The first attempt of the next round: an evaluation may have used earlier ones.
        strategy_state: The strategy's own vectors, each of shape (T,), for T trainable values.
        rest: What of the last rounds' steps the workers were not told yet; None where they are told all of it.
    """

    run_id: str
    task: str
    classes: tuple[str, ...]
    round_number: int
    next_attempt: int
    model_json: str
    input_shape: tuple[int, ...]
    num_classes: int
    layout: Layout
    vector: Vector
    integers: tuple[Array, ...]
    strategy_state: tuple[Vector, ...]
    history: list[Row]
    inputs: InputFacts | None = None
    needs: Needs | None = None
    is_general: bool = False
    parts: tuple[str, ...] = ()
    rest: Rest | None = None

    @property
    def is_arrays(self) -> bool:
        """Whether it is a model of named arrays, which trainers of the sites' own train."""
        return is_arrays(self.model_json)


def card_of(
    state: Checkpoint, training: Mapping[str, float | str | None], round_number: int | None = None
) -> ModelCard:
    """What the model of a committed state says about itself.

    Args:
        state: With the class names known.
        training: The settings that it was trained with.
        round_number: Of an earlier round's model; None takes the state's own.
    """
    number = state.round_number if round_number is None else round_number
    last = state.history[number]
    return ModelCard(
        task=state.task,
        classes=state.classes,
        run_id=state.run_id,
        round_number=number,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_examples=last.num_examples,
        shape=state.input_shape,
        metrics={name: value for name, value in last.flat.items() if isinstance(value, float)},
        training=training,
        inputs=state.inputs,
        needs=state.needs if state.is_general else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The round that is open: its record, the answers that no longer need the broker, and what they add up to.

    Attributes:
        arrays: The bytes of what the round's aggregate saved.
    """

    record: RoundRecord
    answers: dict[str, Answer]
    arrays: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckpointHeader:
    """What a checkpoint holds besides its vectors.

    Attributes:
        written_by: The version of Warren, for a later one that can't read this format.
        has_rest, rest_scales: See `split_rest`.
    """

    run_id: str
    task: str
    classes: tuple[str, ...]
    round_number: int
    next_attempt: int
    model_json: str
    input_shape: tuple[int, ...]
    num_classes: int
    layout: Layout
    integers: tuple[Array, ...]
    history: tuple[Row, ...]
    inputs: InputFacts | None = None
    needs: Needs | None = None
    is_general: bool = False
    parts: tuple[str, ...] = ()
    num_states: int
    written_by: str = ""
    has_rest: bool = False
    rest_scales: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundHeader:
    """What an open round holds besides its arrays."""

    record: RoundRecord
    answers: dict[str, Answer]
    written_by: str = ""


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, check: Callable[[Path], None] = lambda _aside: None
) -> None:
    """Commit: until this returns the round is open, after it closed for ever.

    Args:
        folder: The run's.
        checkpoint: The state to commit.
        check: Looks at the file that is about to be committed; what it raises leaves the round open.

    Raises:
        CheckpointError: It can't be written; the former one is intact.
    """
    header = codec.PackedMap()
    for name in _CheckpointHeader.__slots__:
        if name not in _NOT_OF_A_CHECKPOINT:
            header.put(name, codec.pack_value(to_plain(getattr(checkpoint, name))))
    header.put("written_by", codec.pack_value(release()))
    header.put("history", codec.packed_list([row.packed for row in checkpoint.history]))
    header.put("num_states", codec.pack_value(len(checkpoint.strategy_state)))
    arrays: list[NDArray[Any]] = [checkpoint.vector, *checkpoint.strategy_state]
    if checkpoint.rest is not None:
        scales = list(checkpoint.rest.scales)
        name, value = ("rest_scales", scales) if scales else ("has_rest", True)
        header.put(name, codec.pack_value(value))
        arrays.append(checkpoint.rest.values)
    write_sealed(folder / CHECKPOINT_FILE, _CHECKPOINT_MAGIC, header.packed(), arrays, check)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a committed state; `path` is the file, or the folder that holds it.

    Raises:
        CheckpointError: The file is missing, torn, or not ours.
    """
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    header: _CheckpointHeader
    header, body = read_sealed(file, _CHECKPOINT_MAGIC, _CheckpointHeader)
    try:
        size, sections = vector_size(header.layout), sections_of(header.layout)
        body, rest = split_rest(body, header.rest_scales, sections, has_rest=header.has_rest)
        vectors = body.view(FLOAT32)
        states = vectors[size:].reshape(header.num_states, sections.num_trainable)
    except ValueError as exc:
        raise _not_ours(file, f"its vectors have another size ({exc})") from exc
    names = set(_CheckpointHeader.__slots__) - _NOT_OF_A_CHECKPOINT
    fields = {name: getattr(header, name) for name in names}
    fields |= {"history": list(header.history), "rest": rest}
    return Checkpoint(**fields, vector=vectors[:size], strategy_state=tuple(states))


class PackedRounds:
    """Headers of open rounds; what was in the former one is not encoded again, for ten thousand may have answered."""

    def __init__(self) -> None:
        self._record: tuple[RoundRecord | None, bytes] = (None, b"")
        self._answers: dict[str, Answer] = {}
        self._packed = codec.PackedMap()

    def header(self, record: RoundRecord, answers: Mapping[str, Answer]) -> bytes:
        """A `_RoundHeader`, packed."""
        if self._record[0] is not record:
            self._record = (record, codec.pack_value(to_plain(record)))
        if any(answers.get(worker) is not answer for worker, answer in self._answers.items()):
            self._answers, self._packed = {}, codec.PackedMap()
        for worker, answer in answers.items():
            if worker not in self._answers:
                self._answers[worker] = answer
                self._packed.put(worker, codec.pack_value(to_plain(answer)))
        header = codec.PackedMap()
        header.put("record", self._record[1])
        header.put("answers", self._packed.packed())
        header.put("written_by", codec.pack_value(release()))
        return header.packed()


def write_open_round(
    folder: Path,
    record: RoundRecord,
    answers: Mapping[str, Answer],
    arrays: list[NDArray[Any]],
    packed: PackedRounds | None = None,
) -> None:
    """Fsync the open round: before its start goes out, and before what it holds is acknowledged.

    Args:
        folder: The run's.
        record: What is fixed.
        answers: Those so far.
        arrays: What they add up to.
        packed: Of the round as it was written before.

    Raises:
        CheckpointError: It can't be written; the former one is intact.
    """
    header = (packed or PackedRounds()).header(record, answers)
    write_sealed(folder / ROUND_FILE, _ROUND_MAGIC, header, arrays)


def read_open_round(folder: Path) -> OpenRound | None:
    """Read the open round; None when there is none.

    Raises:
        CheckpointError: The file is torn, or not ours.
    """
    file = folder / ROUND_FILE
    if not file.exists():
        return None
    header: _RoundHeader
    header, body = read_sealed(file, _ROUND_MAGIC, _RoundHeader)
    return OpenRound(record=header.record, answers=header.answers, arrays=body)


def read_sealed(path: Path, magic: bytes, kind: type) -> tuple[Any, NDArray[np.uint8]]:
    """Read a file of this form: its header, a dataclass of this kind, and the bytes of its arrays.

    Raises:
        CheckpointError: The file is missing, torn, or not ours.
    """
    content, body = _read(path, magic)
    return _typed(kind, content, path), body


def _typed(kind: type, content: dict[str, Any], file: Path) -> Any:
    try:
        return from_plain(kind, content, file.name)
    except ProtocolError as exc:
        writer = _version_in(content)
        raise _not_ours(file, f"its header is not one of this version ({exc})", writer) from exc


def write_sealed(
    path: Path,
    magic: bytes,
    packed: bytes,
    arrays: list[NDArray[Any]],
    check: Callable[[Path], None] = lambda _aside: None,
) -> None:
    """Write a file of this form, fsynced: it is whole, or the former one is there.

    Args:
        path: The file.
        magic: Its first line.
        packed: Its header.
        arrays: What follows.
        check: See `write_checkpoint`.

    Raises:
        CheckpointError: It can't be written.
    """
    if len(packed) > _HEADER_LIMIT:  # nobody could read it again
        raise CheckpointError(
            f"Can't write {path}: its header has {len(packed)} bytes, more than {_HEADER_LIMIT}. The former one is "
            "intact. Go on in a new --out with --initial-model and its model.keras."
        )
    chunks: list[Chunk] = [magic, len(packed).to_bytes(8, "little"), packed]
    chunks += [np.ascontiguousarray(array).view(np.uint8).data for array in arrays if array.size]
    write_atomically(path, _with_digest(chunks), check)


def _with_digest(chunks: list[Chunk]) -> Iterator[Chunk]:
    digest = xxhash.xxh3_128()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _read(path: Path, magic: bytes) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """Read and check a file; the arrays come back as one writable uint8 array."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as exc:
        raise CheckpointError(f"Can't read {path}: {exc.strerror or exc}.") from exc
    start = len(magic) + 8
    if content.size < start + _DIGEST_BYTES or content[: len(magic)].tobytes() != magic:
        found = content[: len(magic)].tobytes().partition(b"\n")[0].decode("ascii", "replace")
        reason = f"it begins with {found!r}, not with {magic.decode().strip()!r}"
        raise _not_ours(path, reason, _writer_of(content))
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:].tobytes()
    if xxhash.xxh3_128_digest(body.data) != digest:
        raise _not_ours(path, "it is torn: its checksum does not match")
    length = int.from_bytes(content[len(magic) : start].tobytes(), "little")
    try:
        header = _header_in(body[start : start + length].tobytes())
    except ProtocolError as exc:
        raise _not_ours(path, str(exc)) from exc
    # A copy of its own is aligned, and lets go of the file's bytes.
    return header, body[start + length :].copy()


def _header_in(data: bytes) -> Any:
    return codec.unpack(data, limit=_HEADER_LIMIT, most_values=_MOST_VALUES)


def _writer_of(content: NDArray[np.uint8]) -> str:
    """Which Warren wrote a file of another format, as far as can be known; empty if it can't."""
    match = _MAGIC.match(content[:64].tobytes())
    if match is None or int(match[1]) == _FORMAT:
        return ""
    if int(match[1]) < _FORMAT:
        return _OLD_FORMATS.get(int(match[1]), "")
    start = match.end() + 8
    length = int.from_bytes(content[match.end() : start].tobytes(), "little")
    try:
        return _version_in(_header_in(content[start:][:length].tobytes()))
    except ProtocolError:
        return ""


def _version_in(header: object) -> str:
    told = header.get("written_by") if isinstance(header, dict) else None
    return told if isinstance(told, str) and _VERSION.fullmatch(told) else ""


def _not_ours(path: Path, reason: str, writer: str = "") -> CheckpointError:
    by = f" Warren {writer} wrote it; this is Warren {release()}." if writer else ""
    return CheckpointError(
        f"{path} can't be used: {reason}.{by} Expected a file that this version of `coordinator run` wrote. "
        f"Restore it from a copy, go on with the version that wrote it{f' (Warren {writer})' if writer else ''}, "
        "or choose another --out."
    )
