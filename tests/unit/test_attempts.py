"""Several addresses of one broker, tried in turn; time is passed in."""

import pytest

from broker.errors import BrokerError, BrokerUnreachable, LinkLost, LoginRefused
from broker.link.access import Access
from broker.link.attempts import Attempts
from broker.link.rabbitmq.settings import LinkSettings

NODES = ("amqp://a/", "amqp://b/", "amqp://c/")
AWAY, NO = LinkLost("away"), LoginRefused("no")


def tried(attempts: Attempts, error: BrokerError = AWAY, *, now: float = 0.0) -> float:
    """One try that fails; the pause after it."""
    attempts.begin()
    attempts.fail(error, now)
    return attempts.pause(now)


def test_a_pause_comes_after_a_full_turn_alone() -> None:
    """With three addresses two tries follow at once; each address is tried once a turn."""
    attempts = Attempts(NODES)
    turns = []
    for _ in range(3):
        pauses = []
        for _ in NODES:
            pauses.append(tried(attempts))
            turns.append(attempts.address)
        assert pauses[:2] == [0.0, 0.0]
        assert pauses[2] > 0
    assert sorted(turns[:3]) == sorted(NODES)
    assert turns[:3] * 3 == turns


def test_a_cluster_is_tried_again_within_seconds() -> None:
    """Pauses grow to 2.5 s behind several addresses, and to 10 s behind one, as ever."""
    cluster, alone = Attempts(NODES), Attempts(NODES[:1])
    among = [tried(cluster) for _ in range(60)]
    single = [tried(alone) for _ in range(20)]
    assert 1.2 < max(among) <= 2.5
    assert 5.0 <= max(single) <= 10.0
    assert 0.1 <= single[0] <= 0.2
    assert min(single) > 0


def test_not_all_begin_with_the_same_address() -> None:
    """Of a hundred processes with one list some begin with each; otherwise one node carries all. Both connections of
    one begin with the same: what shows on the one, that its node answers nothing, is true of the other."""
    first = set()
    for _ in range(100):
        settings = LinkSettings(access=Access(amqp_url=",".join(NODES)), name="test")
        assert sorted(settings.addresses) == sorted(settings.access.amqp_urls)
        attempts = Attempts(settings.addresses)
        attempts.begin()
        first.add(attempts.address)
    assert first == set(settings.access.amqp_urls)


def test_when_a_node_dies_the_others_are_tried_at_once() -> None:
    """The one that was lost counts as tried in this turn; one whose connections break at once gets its pauses."""
    attempts = Attempts(NODES)
    attempts.begin()
    attempts.succeed(0.0)
    attempts.fail(AWAY, 100.0)
    assert attempts.pause(100.0) == 0.0
    assert tried(attempts, now=100.0) == 0.0
    assert tried(attempts, now=100.0) > 0.0
    pauses = []
    for at in range(6):
        attempts.begin()
        attempts.succeed(200.0 + at)
        attempts.fail(AWAY, 200.5 + at)
        pauses.append(attempts.pause(200.5 + at))
    assert len([each for each in pauses if each > 0]) == 2


def test_a_dead_machine_costs_seconds_and_a_slow_cluster_is_given_more() -> None:
    """Patience with one address grows with each turn that brought nothing; a single address has all the time."""
    assert Attempts(NODES[:1]).patience is None
    attempts = Attempts(NODES)
    patience = []
    for _ in range(6):
        for _ in NODES:
            patience.append(attempts.patience)
            tried(attempts)
    assert patience[:7] == [4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 16.0]
    assert patience[-1] == 64.0
    attempts.begin()
    attempts.succeed(0.0)
    assert attempts.patience == 4.0


def test_a_login_that_one_node_refuses_is_refused_whatever_the_others_do() -> None:
    """Its nodes know the same accounts: those that are away don't make the no doubtful."""
    attempts = Attempts(NODES)
    for _ in range(3):
        for _ in NODES:
            attempts.begin()
            attempts.fail(NO if attempts.address == NODES[1] else AWAY, 0.0)
            attempts.pause(0.0)
    assert attempts.refusal(0.0) is NO


@pytest.mark.parametrize("later", [29.0, 30.0])
def test_a_login_that_was_taken_anywhere_is_given_time(later: float) -> None:
    """As with one address: after a connection a no counts only once it has lasted for 30 s."""
    attempts = Attempts(NODES)
    attempts.begin()
    attempts.succeed(0.0)
    for at in (100.0, 110.0, 120.0, 100.0 + later):
        for _ in NODES:
            tried(attempts, NO, now=at)
    assert (attempts.refusal(100.0 + later) is NO) == (later >= 30.0)


def test_why_each_failed_is_known_until_there_is_a_connection() -> None:
    """What is said to a person names every address, not just the last."""
    attempts = Attempts(NODES)
    for each in range(3):
        tried(attempts, LinkLost(f"cause {each}"))
    assert sorted(str(each) for each in attempts.errors.values()) == ["cause 0", "cause 1", "cause 2"]
    attempts.begin()
    attempts.succeed(1.0)
    assert attempts.errors == {}


def test_what_time_does_not_mend_ends_it_where_it_is_so_everywhere() -> None:
    """A certificate that is not believed at one node is no reason not to wait for another one; with one address it
    ends the start at once, as ever."""
    untrusted = BrokerUnreachable("not trusted")
    alone, cluster = Attempts(NODES[:1]), Attempts(NODES)
    tried(alone, untrusted)
    assert alone.hopeless is untrusted
    for error in (untrusted, AWAY, untrusted):
        tried(cluster, error)
    assert cluster.hopeless is None
    for _ in NODES:
        tried(cluster, untrusted)
    assert cluster.hopeless is untrusted
