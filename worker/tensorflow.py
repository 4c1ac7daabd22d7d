"""TensorFlow is loaded here and nowhere else: late, because it takes seconds, and without its chatter."""

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from broker.errors import ModelError
from broker.logs import is_chatter
from broker.model.trust import NOTHING, Trusted, trust, without_unused

logger = logging.getLogger(__name__)


def load_keras() -> ModuleType:
    """Import Keras on TensorFlow, silently; the first call takes seconds, later ones nothing.

    Returns:
        The module `keras`.

    Raises:
        ModelError: It isn't installed.
    """
    if "keras" not in sys.modules or "tensorflow" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever this person's own projects use
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # oneDNN, CPU features
        for name in ("absl", "tensorflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _without_chatter(), without_unused():
            _import_all()
    import keras

    loaded: ModuleType = keras
    return loaded


def _import_all() -> None:
    try:
        import keras  # noqa: F401 - it takes TensorFlow with it
        import tensorflow
    except ImportError as exc:
        raise ModelError(
            f"Keras models need TensorFlow, which can't be imported: {exc}. Try pip install tensorflow, or take "
            "part in tasks of arrays with --trainer."
        ) from exc
    tensorflow.config.list_physical_devices("GPU")  # says that there is none: here, not later


@functools.cache
def trusted_by(modules: tuple[str, ...]) -> Trusted:
    """What modules register that an operator trusts, named in the log; TensorFlow is loaded only if there are any.

    Raises:
        UsageError: One isn't there, fails, or registers nothing.
    """
    if not modules:
        return NOTHING
    load_keras()
    trusted = trust(modules)
    logger.info("Trusted parts of %s: %s.", ", ".join(modules), ", ".join(sorted(trusted)))
    return trusted


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what C++ code writes to file descriptor 2, and let through what isn't chatter.

    TensorFlow's first lines come before its log level is read, so no setting keeps them away.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not is_chatter(line.decode(errors="replace")):
                    os.write(2, line)
