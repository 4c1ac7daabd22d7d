"""What the coordinator is told of an error here: enough to help, and no name of a file, which may be a patient's."""

from broker.errors import WarrenError


def told(error: BaseException) -> str:
    """The words of an error of ours; of any other its kind and first line."""
    if isinstance(error, WarrenError):
        return str(error)
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
