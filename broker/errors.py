"""Every error that a user can meet, in one tree, each with its exit code.

WarrenError                    1  (never raised itself)
├── UsageError                 2  the command line asks for something impossible
│   └── NameInUse              2  another process reads this name's queue
├── BrokerError                3  the broker can't be used
│   ├── BrokerUnreachable      3  nothing answers at the address
│   ├── LoginRefused           3  wrong user, password, or no right to the vhost
│   ├── LinkLost               3  the connection went away; the link reconnects by itself
│   ├── Unroutable             3  no queue takes this message
│   ├── PublishRefused         3  the broker did not take the message (queue full or away, no right)
│   ├── DeclareRefused         3  a queue or the exchange is there with other arguments, or lacks
│   └── NobodyServes           3  no coordinator reads what is asked of it
├── QuorumNotReached           4  too few workers answered
├── DataError                  5  the data can't be used
├── ModelError                 5  the model can't be used
│   └── ModelDiverged          5  the model no longer answers with numbers
├── CheckpointError            5  the run's folder can't be read or written
├── Interrupted                1  told to stop in mid-run; a command line ends with 128 + the signal's number instead
├── RunStopped                 1  a person ended the run; caught where it is played, never shown
└── ProtocolError              1  a received message is wrong; it is copied to the queue `dead`, never fatal
    └── OtherVersion           1  it is of a version of the wire that this side does not speak
"""

from broker.envelope import Envelope

EXIT_DONE = 0  #: the work is done, or was stopped on request
EXIT_BUG = 1  #: a fault in Warren itself; the traceback is shown
EXIT_USAGE = 2  #: wrong usage, or a name in use
EXIT_BROKER = 3  #: the broker is unreachable or refused the login
EXIT_QUORUM = 4  #: the quorum was not reached
EXIT_DATA = 5  #: bad data, model or checkpoint
EXIT_SIGNAL = 128  #: plus the number of the signal that interrupted a coordinator


class WarrenError(Exception):
    """Root of the tree: what happened, what was expected, what was received, what to try."""

    exit_code = EXIT_BUG


class UsageError(WarrenError):
    """The command line asks for something impossible."""

    exit_code = EXIT_USAGE


class NameInUse(UsageError):
    """Another process already reads the queue of this name."""


class BrokerError(WarrenError):
    """The broker can't be used."""

    exit_code = EXIT_BROKER


class BrokerUnreachable(BrokerError):
    """Nothing that speaks AMQP answers at the address."""


class LoginRefused(BrokerError):
    """The broker refused the user, the password, or the virtual host."""


class LinkLost(BrokerError):
    """The connection went away while a call was under way; the call may be repeated.

    Attributes:
        num_confirmed: Of a batch that was published, so many of the first are safe, and need not be repeated.
    """

    def __init__(self, text: str, num_confirmed: int = 0) -> None:
        super().__init__(text)
        self.num_confirmed = num_confirmed


class Unroutable(BrokerError):
    """No queue is bound to the key of a message that must arrive."""


class PublishRefused(BrokerError):
    """The broker answered that it did not take the message."""


class DeclareRefused(BrokerError):
    """What is to be declared is there with other arguments, or is missing and not this account's to make."""


class NobodyServes(BrokerError):
    """No coordinator reads, or answers, what is asked of it."""


class QuorumNotReached(WarrenError):
    """Too few workers joined, or too few updates were accepted, before the deadline."""

    exit_code = EXIT_QUORUM


class DataError(WarrenError):
    """The data can't be used."""

    exit_code = EXIT_DATA


class ModelError(WarrenError):
    """The model can't be used."""

    exit_code = EXIT_DATA


class ModelDiverged(ModelError):
    """The model no longer answers with numbers; it is not committed."""


class CheckpointError(WarrenError):
    """The run's folder can't be read or written."""

    exit_code = EXIT_DATA


class Interrupted(WarrenError):
    """Told to stop in the middle of a run; the same command line goes on with it."""


class RunStopped(WarrenError):
    """A person asked a run to end before its last round; its last model is kept."""


class ProtocolError(WarrenError):
    """A received message is not what the protocol says; it goes to the queue `dead`.

    Attributes:
        envelope: What could be read of the message, if anything.
    """

    def __init__(self, text: str, envelope: Envelope | None = None) -> None:
        super().__init__(text)
        self.envelope = envelope


class OtherVersion(ProtocolError):
    """A message is of a version of the wire that this side does not speak.

    Attributes:
        envelope: Who speaks, what about, and in which version.
    """

    envelope: Envelope

    def __init__(self, text: str, envelope: Envelope) -> None:
        super().__init__(text, envelope)
