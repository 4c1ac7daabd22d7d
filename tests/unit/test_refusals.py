"""When a refused login is believed; time is passed in."""

from broker.errors import LinkLost, LoginRefused
from broker.link.attempts import Refusals

NO, AWAY = LoginRefused("no"), LinkLost("away")


def test_a_wrong_password_is_told_at_once() -> None:
    """Three in a row, and nothing else ever: somebody has mistyped it, and waits at the terminal."""
    refusals = Refusals()
    for at in (0.0, 0.2):
        refusals.note(NO, at)
        assert not refusals.are_believed(at)
    refusals.note(NO, 0.6)
    assert refusals.are_believed(0.6)


def test_a_broker_that_has_just_come_up_is_given_time() -> None:
    """It was away, and may not have its accounts yet: a no is believed after 30 seconds of it."""
    refusals = Refusals()
    refusals.note(AWAY, 0.0)
    for at in (10.0, 11.0, 13.0, 39.0):
        refusals.note(NO, at)
    assert not refusals.are_believed(39.9)
    assert refusals.are_believed(40.0)


def test_a_login_that_was_taken_is_not_given_up_for_one_no() -> None:
    """A cut in the middle of a login looks like a refusal: long ago, and once, it says nothing."""
    refusals = Refusals()
    refusals.note(None, 0.0)
    refusals.note(NO, 10.0)
    assert not refusals.are_believed(1000.0)


def test_whatever_else_is_met_begins_the_count_anew() -> None:
    """Between two refusals the broker was away, or took the login."""
    for other in (AWAY, None):
        refusals = Refusals()
        for at in range(5):
            refusals.note(NO, at)
        refusals.note(other, 29.0)
        refusals.note(NO, 31.0)
        assert not refusals.are_believed(70.0)
