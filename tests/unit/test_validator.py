"""Who is heard: by the account that the broker vouches for; who isn't is told in the log."""

import pytest

from broker.link.memory import MemoryBroker, MemoryLink
from broker.link.seam import Delivery, Queue, dead_queue, outgoing
from broker.link.validator import MaySend, Validator, may_send_to_coordinator, may_send_to_worker
from broker.wire import names
from broker.wire.messages import Left, Message, RollCall, SwarmDeclined


def heard(message: Message, *, of: str, by: str, may_send: MaySend) -> tuple[int, Message | None]:
    """What a role logged in as `by` makes of a message of the account `of`; and how many went to `dead`."""
    broker = MemoryBroker()
    sender, reader = MemoryLink(broker, account=of), MemoryLink(broker, account=by)
    reader.declare([Queue(name="here", keys=("here",)), dead_queue()])
    reader.consume(["here"], prefetch=0)
    validator = Validator(reader, may_send)
    sender.publish([outgoing(message, "here")])
    delivery = reader.receive(1)
    assert isinstance(delivery, Delivery)
    found = validator.open(delivery)
    return validator.num_dead, found


@pytest.mark.parametrize(
    ("of", "by", "is_heard"),
    [
        ("guest", "guest", True),
        ("hospital-1", "coordinator", True),
        ("guest", "coordinator", False),
        ("hospital-2", "coordinator", False),
        ("hospital-1.1-3", "coordinator", False),
        ("hospital-1", "guest", False),
    ],
)
def test_a_coordinator_hears_its_own_account_or_as_coordinator_each_workers(
    of: str, by: str, is_heard: bool
) -> None:
    """A coordinator as guest would send rounds that an invited worker rejects: it does not take it for a member."""
    num_dead, found = heard(Left(worker="hospital-1"), of=of, by=by, may_send=may_send_to_coordinator)
    assert (found is not None, num_dead) == (is_heard, 0 if is_heard else 1)


@pytest.mark.parametrize(
    ("of", "by", "is_heard"),
    [
        ("guest", "guest", True),
        ("coordinator", "hospital-1", True),
        ("guest", "hospital-1", False),
        ("hospital-2", "hospital-1", False),
    ],
)
def test_a_worker_hears_its_own_account_or_the_coordinators(of: str, by: str, is_heard: bool) -> None:
    """Rounds come from the coordinator alone, or on a laptop from the account that all share."""
    _, found = heard(RollCall(), of=of, by=by, may_send=may_send_to_worker)
    assert (found is not None) == is_heard


@pytest.mark.parametrize(
    ("account", "reader", "numbers", "may"),
    [
        ("lab.1-2", "lab", [1, 2], True),
        ("lab.1-2", "lab", [1, 3], False),
        ("lab.1-2", "evil", [1], False),
        ("evil", "lab", [1], False),
    ],
)
def test_a_swarms_process_declines_for_its_own_workers_alone(
    account: str, reader: str, numbers: list[int], may: bool
) -> None:
    """One word for many would else end the rounds of others."""
    word = SwarmDeclined(
        worker=reader, numbers=names.pack_numbers(numbers), run_id="r", round_number=1, attempt=1, reason="no"
    )
    assert may_send_to_coordinator(word, account) is may


@pytest.mark.parametrize(
    ("of", "by", "may_send", "message"),
    [
        ("hospital-1", "guest", may_send_to_coordinator, Left(worker="hospital-1")),
        ("guest", "hospital-1", may_send_to_worker, RollCall()),
    ],
)
def test_two_that_can_not_work_together_say_so_on_both_sides(
    of: str, by: str, may_send: MaySend, message: Message, caplog: pytest.LogCaptureFixture
) -> None:
    """Who it was, who this is, and what to type: neither waits without a word."""
    heard(message, of=of, by=by, may_send=may_send)
    assert f"The account {of!r} may not send this {message.TYPE}" in caplog.text
    assert f"logged in as {by!r}" in caplog.text
    assert "`broker invite coordinator`" in caplog.text
