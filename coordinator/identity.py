"""run.json: what a folder's run is; a command line that asks for another run there is refused."""

import json
from datetime import UTC, datetime

from broker.errors import CheckpointError, UsageError
from coordinator.files import write_atomically
from coordinator.options import RunOptions

RUN_FILE = "run.json"


def keep_identity(options: RunOptions) -> None:
    """Write run.json, or hold the options against the one that is there.

    Raises:
        UsageError: The folder holds another task, strategy or seed.
        CheckpointError: run.json can't be read or written.
    """
    path = options.out / RUN_FILE
    if path.exists():
        _compare(options, _read(options))
    settings = options.settings(1)
    content = {
        **options.identity,
        "rounds": options.rounds,
        "workers": options.workers,
        "quorum": options.needed,
        "deterministic": options.deterministic,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "class_weight": settings.class_weight,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(path, [json.dumps(content, indent=2).encode() + b"\n"])


def _read(options: RunOptions) -> dict[str, object]:
    path = options.out / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(f"Can't read {path}: {exc}. Restore it, or choose another --out.") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not ours. Restore it, or choose another --out.")
    return content


def _compare(options: RunOptions, content: dict[str, object]) -> None:
    for name, asked in options.identity.items():
        if content.get(name) != asked:
            raise UsageError(
                f"{options.out} holds a run with {name} {content.get(name)!r}, not {asked!r}. "
                f"Choose another --out, or ask for the same {name}."
            )
