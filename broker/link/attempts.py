"""Which of the broker's addresses is tried next, how soon, and whether a refused login is believed."""

import random
from collections.abc import Sequence

from broker.errors import BrokerError, BrokerUnreachable, LoginRefused

REFUSALS = 3  #: refused logins in a row that are believed
REFUSED_SECONDS = 30.0  #: how long they must go on where the login was taken, or nothing answered, before
LASTING_SECONDS = 10.0  #: a connection that ends before is like one that failed
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
_LONGEST_AMONG_SEVERAL_SECONDS = 2.5  # a cluster is there again as soon as its majority is
_PATIENCE_SECONDS = 4.0  # with one address of several, which may be of a machine that is off
_MOST_PATIENCE_SECONDS = 64.0


class Refusals:
    """Refused logins in a row, and whether they are believed; time is passed in.

    A connection that is cut in the middle of the login looks like a refused one, but not time and again. And a broker
    that has just started, or is being restored, may not know its accounts yet: where anything else was met at the
    address before, a no counts only once it has lasted.
    """

    def __init__(self) -> None:
        self.num = 0
        self._since = float("inf")
        self._has_met_other = False

    def note(self, error: BrokerError | None, now: float) -> None:
        """A connection failed, or (None) is there."""
        if not isinstance(error, LoginRefused):
            self.num, self._since, self._has_met_other = 0, float("inf"), True
            return
        self.num += 1
        self._since = min(self._since, now)

    def are_believed(self, now: float) -> bool:
        """Whether it is no use to try any longer."""
        needed = REFUSED_SECONDS if self._has_met_other else 0.0
        return self.num >= REFUSALS and now - self._since >= needed


class Attempts:
    """The addresses of one broker, tried in turn; a pause comes after each turn. Time is passed in.

    A cluster's nodes know the same accounts: a login that one refuses, again and again, is refused, whatever is met at
    the others.

    Args:
        addresses: With the login, in the order in which they are tried.

    Attributes:
        address: The one that is tried now, or was last.
        errors: Why it failed, by address, since a connection was there.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self.address = self._addresses[-1]
        self.errors: dict[str, BrokerError] = {}
        self._refusals = {each: Refusals() for each in addresses}
        self._delay = _FIRST_DELAY_SECONDS
        self._num_tried = 0  # in this turn
        self._num_turns = 0  # without a connection
        self._there_since = float("inf")

    def begin(self) -> None:
        """The next address is tried."""
        at = self._addresses.index(self.address) + 1
        self.address = self._addresses[at % len(self._addresses)]
        self._num_tried += 1
        self._there_since = float("inf")

    @property
    def is_among_several(self) -> bool:
        """Whether there is another address to try."""
        return len(self._addresses) > 1

    @property
    def patience(self) -> float | None:
        """After how many seconds the next address is better than this one; None where there is no other.

        It grows with each turn: a broker that needs longer to restore many queues gets there, too.
        """
        if not self.is_among_several:
            return None
        return float(min(_PATIENCE_SECONDS * 2**self._num_turns, _MOST_PATIENCE_SECONDS))

    def succeed(self, now: float) -> None:
        """The connection is there, with all that belongs to it."""
        self._there_since = now
        self._num_turns = 0
        self.errors = {}
        for each in self._refusals.values():
            each.note(None, now)

    def fail(self, error: BrokerError, now: float) -> None:
        """There was none, or it ended."""
        self.errors[self.address] = error
        self._refusals[self.address].note(error, now)

    def pause(self, now: float) -> float:
        """How many seconds to wait before the next one: none as long as an address is untried in this turn."""
        if now - self._there_since >= LASTING_SECONDS:
            # One that breaks again and again is not tried without pause.
            self._delay, self._num_tried = _FIRST_DELAY_SECONDS, 1
        if self._num_tried < len(self._addresses):
            return 0.0
        self._num_tried = 0
        self._num_turns += 1
        delay = self._delay
        longest = _LONGEST_AMONG_SEVERAL_SECONDS if self.is_among_several else _LONGEST_DELAY_SECONDS
        self._delay = min(2 * delay, longest)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    @property
    def hopeless(self) -> BrokerUnreachable | None:
        """What time does not mend, such as a certificate that is not believed, where that is so at every address."""
        errors = list(self.errors.values())
        found = [each for each in errors if isinstance(each, BrokerUnreachable)]
        return found[0] if len(found) == len(self._addresses) else None

    @property
    def num_refused(self) -> int:
        """How often in a row the login was refused here."""
        return self._refusals[self.address].num

    def refusal(self, now: float) -> LoginRefused | None:
        """The broker's no to the login, once it is believed."""
        for address, error in list(self.errors.items()):
            if isinstance(error, LoginRefused) and self._refusals[address].are_believed(now):
                return error
        return None
