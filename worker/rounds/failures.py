"""What the coordinator is told of an error here: enough to help, and no name of a file, which may be a patient's."""

from broker.errors import ModelError, WarrenError


def told(error: BaseException) -> str:
    """The words of an error of ours; of any other its kind and first line."""
    if isinstance(error, WarrenError):
        return str(error)
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def told_without_words(error: BaseException) -> str:
    """The same of a site that shares no more than it must: another library's words may quote its examples."""
    kind = kind_withheld(error)
    return (
        told(error) if kind is None else f"{kind}; what it says stays in this worker's log (--share weights)."
    )


class ElsewhereError(Exception):
    """Of this kind was the error of another library, in another process of this worker, that caused one of ours."""


def kind_withheld(error: BaseException) -> str | None:
    """The kind of another library's error whose words an error has; None where its words are Warren's own."""
    if isinstance(error.__cause__, ElsewhereError):
        return str(error.__cause__)
    foreign = error.__cause__ if isinstance(error, WarrenError) else error
    if isinstance(error, ModelError) or foreign is None or isinstance(foreign, WarrenError):
        return None
    return type(foreign).__name__
