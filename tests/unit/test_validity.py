"""Certificates are warned of before they expire: at the start, and once a day."""

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from broker.link.access import Access
from broker.link.validity import CertificateWatch, Validity, Whose, days_until

ACCESS = Access(amqp_url="amqps://w:secret@fl.example.org/%2F")
DAY = 86_400.0


def valid(days: int, whose: Whose = "broker") -> Validity:
    return Validity(whose=whose, subject="fl.example.org", expires_at=2e9, days_left=days)


def watched(
    caplog: pytest.LogCaptureFixture, *looks: Callable[[], list[Validity]]
) -> tuple[CertificateWatch, list[float]]:
    """Look so often; how long was waited after each."""
    left, waited = [*looks], list[float]()

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return not left

    watch = CertificateWatch(ACCESS, look=lambda _access: left.pop(0)(), wait=wait)
    with caplog.at_level(logging.INFO):
        watch.keep_looking()
    return watch, waited


def test_days_are_told_at_the_start_and_once_a_day(caplog: pytest.LogCaptureFixture) -> None:
    """A line each; below thirty days a warning besides, with what to type. What was seen last is kept for /metrics."""
    watch, waited = watched(caplog, lambda: [valid(30), valid(3000, "authority")], lambda: [valid(29)])
    assert waited == [DAY, DAY]
    assert [each.days_left for each in watch.seen] == [29]
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["INFO", "INFO", "WARNING"]
    assert "broker's certificate (fl.example.org) expires in 30 days, the authority's" in told[0][1]
    assert "expires in 29 days, on 2033-05-18" in told[2][1]
    assert "broker certs --out DIR --renew" in told[2][1]


def test_a_broker_that_is_away_is_looked_at_again_within_the_hour(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said of that: the connection does. What was seen before stays."""

    def away() -> list[Validity]:
        raise ConnectionRefusedError

    watch, waited = watched(caplog, lambda: [valid(99)], away)
    assert waited == [DAY, DAY / 24]
    assert [each.days_left for each in watch.seen] == [99]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_one_that_has_expired_is_said_while_the_connection_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing ends a connection that began before: without a word, the next restart would be the end of it."""

    def expired() -> list[Validity]:
        error = ssl.SSLCertVerificationError()
        error.verify_code, error.verify_message = 10, "certificate has expired"
        raise error

    watched(caplog, expired)
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert "is not valid now (certificate has expired)" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_without_tls_nobody_looks() -> None:
    """A laptop's broker has no certificate."""
    watch = CertificateWatch(
        Access(amqp_url="amqp://guest:guest@localhost/"), look=lambda _: pytest.fail("looked")
    )
    with watch:
        assert watch.seen == ()


def test_days_are_whole_days_that_are_left() -> None:
    """The last day has none left, and what is over has less than none."""
    now = datetime.now(UTC)
    moments = [now + timedelta(days=2, hours=1), now + timedelta(hours=23), now - timedelta(hours=1)]
    assert [days_until(each.timestamp()) for each in moments] == [2, 0, -1]
