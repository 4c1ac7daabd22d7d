"""The run's state on disk: what is committed for ever, and the round that is open.

A file is a magic line, the length of a msgpack header, the header, raw little-endian arrays, and the XXH3-128 of all
before it. A torn or foreign file is named, never loaded.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from broker import codec
from broker.errors import CheckpointError, ProtocolError
from broker.tensors import FLOAT32, Array, Layout, TensorSpec, Vector
from coordinator.aggregation import FixedPointSum
from coordinator.files import Chunk, write_atomically
from coordinator.history import Row
from coordinator.rounds import Answer, RoundRecord, Verdict

CHECKPOINT_FILE = "checkpoint"
ROUND_FILE = "open-round"

_CHECKPOINT_MAGIC = b"warren checkpoint 2\n"
_ROUND_MAGIC = b"warren open round 2\n"
_DIGEST_BYTES = 16
_HEADER_LIMIT = 256 * 1024 * 1024
_INT64 = np.dtype("<i8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The committed state after a closed round; round 0 is the initial model.

    Attributes:
        model_json: Keras's config of the model, its compile settings inside.
        vector: The global model's float weights, float32 of shape (P,).
        integers: Its integer weights.
        next_attempt: The first attempt of the next round: an evaluation may have used earlier ones.
        strategy_state: The strategy's own vectors, each of shape (P,).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The round that is open: its record, the answers that no longer need the broker, and their sum."""

    record: RoundRecord
    answers: dict[str, Answer]
    total: FixedPointSum


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Commit: until this returns the round is open, after it closed for ever.

    Raises:
        CheckpointError: It can't be written; the former one is intact.
    """
    header = {
        field.name: getattr(checkpoint, field.name)
        for field in dataclasses.fields(checkpoint)
        if field.name not in ("vector", "integers", "layout", "strategy_state")
    }
    header["layout"] = [[spec.dtype, list(spec.shape)] for spec in checkpoint.layout]
    header["integers"] = [
        [array.dtype.name, list(array.shape), array.tobytes()] for array in checkpoint.integers
    ]
    header["num_states"] = len(checkpoint.strategy_state)
    arrays = [checkpoint.vector, *checkpoint.strategy_state]
    _write(folder / CHECKPOINT_FILE, _CHECKPOINT_MAGIC, header, arrays)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a committed state; `path` is the file, or the folder that holds it.

    Raises:
        CheckpointError: The file is missing, torn, or not ours.
    """
    file = path / CHECKPOINT_FILE if path.is_dir() else path
    header, body = _read(file, _CHECKPOINT_MAGIC)
    try:
        layout = tuple(TensorSpec(dtype=dtype, shape=tuple(shape)) for dtype, shape in header.pop("layout"))
        integers = tuple(
            np.frombuffer(data, dtype).reshape(shape) for dtype, shape, data in header.pop("integers")
        )
        vectors = body.view(FLOAT32).reshape(1 + header.pop("num_states"), -1)
        for name in ("classes", "input_shape"):
            header[name] = tuple(header[name])
        return Checkpoint(
            **header, layout=layout, integers=integers, vector=vectors[0], strategy_state=tuple(vectors[1:])
        )
    except (KeyError, TypeError, ValueError, ProtocolError) as exc:
        raise _not_ours(file, f"its header is not one of this version ({exc})") from exc


def write_open_round(folder: Path, opened: OpenRound) -> None:
    """Fsync the open round: before its start goes out, and before what it holds is acknowledged.

    Raises:
        CheckpointError: It can't be written; the former one is intact.
    """
    answers = {
        worker: {**dataclasses.asdict(answer), "verdict": answer.verdict.value}
        for worker, answer in opened.answers.items()
    }
    is_empty = opened.total.num_examples == 0
    header = {
        "record": dataclasses.asdict(opened.record),
        "answers": answers,
        "num_examples": opened.total.num_examples,
        "size": opened.total.values.size,
    }
    _write(folder / ROUND_FILE, _ROUND_MAGIC, header, [] if is_empty else [opened.total.values])


def read_open_round(folder: Path) -> OpenRound | None:
    """Read the open round; None when there is none.

    Raises:
        CheckpointError: The file is torn, or not ours.
    """
    file = folder / ROUND_FILE
    if not file.exists():
        return None
    header, body = _read(file, _ROUND_MAGIC)
    try:
        record = header["record"]
        for name in ("selected", "evaluators"):
            record[name] = tuple(record[name])
        answers = {
            worker: Answer(**{**answer, "verdict": Verdict(answer["verdict"])})
            for worker, answer in header["answers"].items()
        }
        values = body.view(_INT64) if body.size else None
        total = FixedPointSum(header["size"], record["scale_exponent"], values, header["num_examples"])
        return OpenRound(record=RoundRecord(**record), answers=answers, total=total)
    except (KeyError, TypeError, ValueError) as exc:
        raise _not_ours(file, f"its header is not one of this version ({exc})") from exc


def _write(path: Path, magic: bytes, header: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    packed = codec.pack(header)
    chunks: list[Chunk] = [magic, len(packed).to_bytes(8, "little"), packed]
    chunks += [np.ascontiguousarray(array).view(np.uint8).data for array in arrays if array.size]
    write_atomically(path, _with_digest(chunks))


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
        raise _not_ours(path, f"it does not begin with {magic.decode().strip()!r}")
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:].tobytes()
    if xxhash.xxh3_128_digest(body.data) != digest:
        raise _not_ours(path, "it is torn: its checksum does not match")
    length = int.from_bytes(content[len(magic) : start].tobytes(), "little")
    try:
        header = codec.unpack(body[start : start + length].tobytes(), limit=_HEADER_LIMIT)
    except ProtocolError as exc:
        raise _not_ours(path, str(exc)) from exc
    # A copy of its own is aligned, and lets go of the file's bytes.
    return header, body[start + length :].copy()


def _not_ours(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} can't be used: {reason}. Expected a file that `coordinator run` wrote. Restore it from a copy, "
        "or choose another --out."
    )
