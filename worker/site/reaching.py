"""Whether this site reaches its broker: certificate, login, its queue, the clock; nothing is declared, nothing sent."""

import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import urlsplit

from broker.command import management_url_for
from broker.errors import BrokerError, PublishRefused
from broker.link.access import Access
from broker.link.address import LOCAL_HOSTS, addresses_in
from broker.link.rabbitmq.rabbit_link import RabbitLink
from broker.link.rabbitmq.settings import LinkSettings
from broker.link.validity import (
    Shown,
    Validity,
    common_name_in,
    days_until,
    described,
    shown_by_brokers,
    validities_of,
)
from broker.wire import names
from worker.site.check import line

logger = logging.getLogger(__name__)

_Fact = TypeVar("_Fact")

_COORDINATOR_TEXTS = {
    True: "there",
    False: "none reads its queue now",
    None: "unknown: the broker tells this account nothing of its queue",
}

_SECONDS = 5.0
_STRANGE_SECONDS = (
    30.0  #: a clock that is so wrong has certificates expire early, and logs that nobody can compare
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What the broker shows of itself.

    Attributes:
        version: E.g. "TLSv1.3".
        subject: Whom its certificate is for.
        issuer: Who signed it.
        valid_until: The last moment of the certificate, in UTC.
        days_left: Until then.
    """

    version: str
    subject: str
    issuer: str
    valid_until: str
    days_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """What was found at the broker's address.

    Attributes:
        address: Without its password.
        account: Whom the broker knows this site as.
        problem: Why it can't be used; None if it can.
        is_login_accepted: Whether the broker took the login.
        tls: None without TLS, or where it does not get so far.
        certificates: How long that of the broker, this side's own and the authority's are valid.
        num_readers: How many processes read this worker's queue; None where there is no such queue yet.
        has_coordinator: Whether a coordinator reads its queue now; None where that can't be known.
        clock_seconds: This machine's time minus the broker's; None where the broker tells none.
        problems_at: Of several addresses those that can't be used, and why; the others are tried in turn.
    """

    address: str
    account: str
    problem: str | None = None
    is_login_accepted: bool = False
    tls: Tls | None = None
    certificates: tuple[Validity, ...] = ()
    num_readers: int | None = None
    has_coordinator: bool | None = None
    clock_seconds: float | None = None
    problems_at: dict[str, str] = field(default_factory=dict)


def reach(access: Access, worker: str, *, connect_seconds: float) -> BrokerFacts:
    """Log in at the broker, look, and leave.

    Args:
        access: Where it is, and as whom.
        worker: Whose queue is looked for.
        connect_seconds: How long it is tried.
    """
    known: dict[str, Any] = {"address": access.address, "account": access.account, **dict(_seen(access))}
    link = RabbitLink(LinkSettings(access=access, name=f"check {worker}", connect_seconds=connect_seconds))
    try:
        link.open()
        known["is_login_accepted"] = True
        known["num_readers"] = link.consumers(names.worker_queue(worker))
        known["has_coordinator"] = _has_coordinator(link)
    except BrokerError as exc:
        known["problem"] = str(exc)
    finally:
        link.close()
    return BrokerFacts(
        **known,
        clock_seconds=_first(_clock_seconds_at(access, url) for url in _management_urls(access)),
        problems_at=_problems_at(access, worker, min(connect_seconds, _SECONDS)),
    )


def _has_coordinator(link: RabbitLink) -> bool | None:
    """RabbitMQ 4.3 tells an invited account nothing of a queue that it has no right to; older ones do."""
    try:
        return bool(link.consumers(names.COORDINATOR))
    except PublishRefused:
        return None


def _first(found: Iterator[_Fact | None]) -> _Fact | None:
    """Of a cluster's nodes one is as good as another."""
    return next((each for each in found if each is not None), None)


def _management_urls(access: Access) -> list[str]:
    return addresses_in(management_url_for(",".join(access.amqp_urls), access.management_url))


def _problems_at(access: Access, worker: str, seconds: float) -> dict[str, str]:
    """Of several addresses each by itself."""
    problems = {}
    for url in access.amqp_urls if access.others else ():
        at = access.at(url)
        link = RabbitLink(LinkSettings(access=at, name=f"check {worker}", connect_seconds=seconds))
        try:
            link.open()
        except BrokerError as exc:
            problems[at.address] = str(exc)
        finally:
            link.close()
    return problems


def _seen(access: Access) -> Iterator[tuple[str, Any]]:
    """What a broker with TLS shows; why it shows nothing, connecting says."""
    try:
        shown = shown_by_brokers(access)
    except OSError as exc:
        logger.debug("No TLS at %s: %s", access.address, exc)
        return
    if shown:
        yield "tls", _tls(shown[0])
        yield "certificates", tuple(validities_of(access, shown))


def _tls(shown: Shown) -> Tls:
    until = ssl.cert_time_to_seconds(shown.certificate["notAfter"])
    return Tls(
        version=shown.version,
        subject=common_name_in(shown.certificate.get("subject", ())),
        issuer=common_name_in(shown.certificate.get("issuer", ())),
        valid_until=datetime.fromtimestamp(until, UTC).isoformat(timespec="seconds"),
        days_left=days_until(until),
    )


def _clock_seconds_at(access: Access, management_url: str) -> float | None:
    """How far this machine's clock is ahead of the broker's, by what its management page writes on every answer.

    No login is sent: a page that asks for one says what time it is, too.
    """
    parts = urlsplit(management_url)
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOCAL_HOSTS else []
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=access.tls()), *proxies)
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - of an address that was checked to be http(s)
    before = time.time()
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as exc:
        with exc:
            date = exc.headers["Date"]
    except (OSError, HTTPException):
        return None
    return _difference(date, before, time.time())


def _difference(date: str | None, before: float, after: float) -> float | None:
    """Of whole seconds the middle is the best guess."""
    try:
        theirs = parsedate_to_datetime(str(date)).timestamp() + 0.5
    except ValueError:
        return None
    return round((before + after) / 2 - theirs, 1)


# In words


def lines_of(facts: BrokerFacts) -> Iterator[str]:
    """The table."""
    yield line("broker", facts.address)
    yield line("  TLS", _tls_text(facts))
    if facts.certificates:
        yield line("  valid", described(facts.certificates))
    for each in facts.certificates:
        if each.is_short:
            yield line("  warning", each.warning)
    if facts.problem is not None:
        yield line("  problem", facts.problem)
    for address, problem in facts.problems_at.items():
        yield line("  not at", f"{address}: {problem}")
    if facts.is_login_accepted:
        yield line("  login", f"accepted as {facts.account}")
        yield line("  queue", _queue_text(facts))
        yield line("  coordinator", _COORDINATOR_TEXTS[facts.has_coordinator])
    yield line("  clock", _clock_text(facts.clock_seconds))


def _tls_text(facts: BrokerFacts) -> str:
    if facts.tls is not None:
        tls = facts.tls
        return (
            f"{tls.version}, certificate of {tls.subject}, signed by {tls.issuer}, valid until {tls.valid_until} "
            f"({tls.days_left} days)"
        )
    return "not checked" if facts.address.startswith("amqps:") else "none: all travels in the clear"


def _queue_text(facts: BrokerFacts) -> str:
    if facts.num_readers is None:
        return "not there yet; a worker makes it where the account may, else `broker invite`"
    return "free" if not facts.num_readers else "read by another process: the name is in use"


def _clock_text(seconds: float | None) -> str:
    if seconds is None:
        return "difference to the broker's unknown: its management page is not reached from here"
    if abs(seconds) <= 1.0:
        return "as the broker's"
    side = "ahead of" if seconds > 0 else "behind"
    advice = ". Set it: certificates and logs go by it" if abs(seconds) > _STRANGE_SECONDS else ""
    return f"{abs(seconds):g} s {side} the broker's{advice}"
