"""How long the certificates of a connection are valid, told before they are not: nothing else warns of it."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from broker.link.access import Access, common_name
from broker.link.address import host_and_port, not_trusted

logger = logging.getLogger(__name__)

WARNING_DAYS = 30  #: that are left when it is time to see to it

_DAY = 86_400.0
_SOON = 3_600.0  #: until the next try where nothing could be seen
_SECONDS = 5.0

Whose = Literal["broker", "own", "authority"]

_CALLED: dict[Whose, str] = {
    "broker": "the broker's certificate",
    "own": "this side's own certificate",
    "authority": "the authority's certificate",
}
_ADVICE: dict[Whose, str] = {
    "broker": "Where it was made: broker certs --out DIR --renew",
    "own": "Ask for another one: broker invite NAME --new-password --by-certificate --invitation FILE",
    "authority": "Each site then needs an invitation with another one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """How long a certificate is valid.

    Attributes:
        whose: The broker's, this side's own, or that of the authority that signed the broker's.
        subject: Whom it names.
        expires_at: Its last moment, in seconds since 1970.
        days_left: Whole days until then; below 0 it is over.
    """

    whose: Whose
    subject: str
    expires_at: float
    days_left: int

    @property
    def is_short(self) -> bool:
        """Whether it is time to see to it."""
        return self.days_left < WARNING_DAYS

    @property
    def day(self) -> str:
        """Its last day, in UTC."""
        return datetime.fromtimestamp(self.expires_at, UTC).date().isoformat()

    @property
    def warning(self) -> str:
        """What to say when it is short."""
        called = _CALLED[self.whose]
        return (
            f"{called[0].upper()}{called[1:]} ({self.subject}) {ends_in(self.days_left)}, on {self.day}; afterwards "
            f"nobody connects by it. {_ADVICE[self.whose]}. See deploy/README.md, Certificates."
        )


def days_until(moment: float) -> int:
    """Whole days from now on."""
    return int((moment - time.time()) // _DAY)


def ends_in(days: int) -> str:
    """How long that is, in words."""
    return f"expires in {days} days" if days >= 0 else "has expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a broker shows of itself.

    Attributes:
        version: Of TLS, e.g. "TLSv1.3".
        certificate: Its own, in Python's words.
        authority: The certificate of who signed it, if this side has that.
    """

    version: str
    certificate: dict[str, Any]
    authority: dict[str, Any] | None


def shown_by_brokers(access: Access) -> list[Shown]:
    """What a broker with TLS shows, of a cluster each node that is there; nothing of one without.

    This connects, and sends no login.

    Raises:
        OSError: It gets so far with none.
    """
    shown: list[Shown] = []
    for url in access.amqp_urls:
        try:
            shown += _shown_at(url, access)
        except OSError as exc:
            failure = exc
    if not shown and urlsplit(access.amqp_url).scheme == "amqps":
        raise failure
    return shown


def _shown_at(amqp_url: str, access: Access) -> Iterator[Shown]:
    if urlsplit(amqp_url).scheme != "amqps":
        return
    context = access.tls() or ssl.create_default_context()
    host, port = host_and_port(amqp_url)
    with (
        socket.create_connection((host, port), timeout=_SECONDS) as stream,
        context.wrap_socket(stream, server_hostname=host) as secure,
    ):
        certificate: dict[str, Any] = dict(secure.getpeercert() or {})
        known: list[dict[str, Any]] = [dict(each) for each in context.get_ca_certs()]
        signers = (each for each in known if each["subject"] == certificate["issuer"])
        yield Shown(version=secure.version() or "", certificate=certificate, authority=next(signers, None))


def validities(access: Access) -> list[Validity]:
    """How long all certificates of a connection are valid; none of one without TLS. This connects.

    Raises:
        OSError: What the broker shows can't be seen.
    """
    return validities_of(access, shown_by_brokers(access))


def validities_of(access: Access, shown: Sequence[Shown]) -> list[Validity]:
    """The same, of what the broker has shown: nodes of a cluster may have the same certificate, or one each."""
    found = [
        *(_validity("broker", each.certificate) for each in shown),
        *([_validity("own", _own(access.certificate))] if access.certificate else []),
        *(_validity("authority", each.authority) for each in shown if each.authority),
    ]
    return list(dict.fromkeys(found))


def _validity(whose: Whose, certificate: Any) -> Validity:
    expires_at = float(ssl.cert_time_to_seconds(certificate["notAfter"]))
    subject = common_name_in(certificate.get("subject", ()))
    return Validity(whose=whose, subject=subject, expires_at=expires_at, days_left=days_until(expires_at))


def _own(certificate: str) -> dict[str, Any]:
    """This side's own, in the words in which Python tells of the other's."""
    from cryptography import x509  # late: only who logs in by a certificate needs it

    until = x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc
    name = ((("commonName", common_name(certificate)),),)
    return {"subject": name, "notAfter": f"{until:%b %d %H:%M:%S %Y} GMT"}


def common_name_in(name: Iterable[Any]) -> str:
    """Whom a certificate names, as Python tells it."""
    fields = dict(pair for part in name for pair in part)
    return fields.get("commonName") or fields.get("organizationName") or "?"


class CertificateWatch:
    """Looks once a day, in a thread of its own, how long the certificates of a connection are valid, and tells the log.

    Args:
        access: Whose; of an address without TLS nothing is looked for.
        look: Finds out.
        wait: Lets so many seconds go by; true once it is over.

    Attributes:
        seen: What was found last.
    """

    def __init__(
        self,
        access: Access,
        *,
        look: Callable[[Access], list[Validity]] = validities,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.seen: tuple[Validity, ...] = ()
        self._access = access
        self._look = look
        self._over = threading.Event()
        self._wait = wait or self._over.wait

    def __enter__(self) -> "CertificateWatch":
        if urlsplit(self._access.amqp_url).scheme == "amqps":
            threading.Thread(target=self.keep_looking, name="certificates", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def keep_looking(self) -> None:
        """Look until it is over."""
        while not self._wait(_DAY if self._has_looked() else _SOON):
            pass

    def _has_looked(self) -> bool:
        """Look, and say what was seen; whether that was anything."""
        try:
            self.seen = tuple(self._look(self._access))
        except (
            ssl.SSLCertVerificationError
        ) as exc:  # whoever is connected goes on, until that connection ends
            logger.warning("%s", not_trusted(self._access.address, exc))
            return True
        except OSError as exc:
            logger.debug("No certificate seen at %s: %s", self._access.address, exc)
            return False
        logger.info("Valid: %s.", described(self.seen))
        for each in self.seen:
            if each.is_short:
                logger.warning("%s", each.warning)
        return True


def described(seen: Iterable[Validity]) -> str:
    """How long each is valid, in a line."""
    return ", ".join(f"{_CALLED[each.whose]} ({each.subject}) {ends_in(each.days_left)}" for each in seen)
