"""How the broker is reached, and as whom: its address, whose certificate is believed, and what this side shows."""

import os
import socket
import ssl
import stat
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from broker.errors import UsageError
from broker.link.address import (
    addresses_in,
    check_amqp_url,
    check_management_url,
    host_and_port,
    without_password,
)

_PRIVATE = stat.S_IRUSR | stat.S_IWUSR


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a process needs to reach its broker.

    Attributes:
        amqp_url: The broker's address, with the login; without one a client certificate is the login. Of a cluster it
            may be given as a list with commas, and is then the first of them.
        name: Whom it is meant for; None where nobody said.
        ca: Certificates, as PEM, of the authorities that sign for the broker; None: those that this machine knows.
        certificate: This side's own certificate, as PEM, and what it was signed by.
        key: Its private key, as PEM.
        management_url: Of the management page, or a list with commas; None: what belongs to the address.
        others: Further addresses of the same cluster, in all but host and port as the first.
    """

    amqp_url: str = field(repr=False)
    name: str | None = None
    ca: str | None = field(default=None, repr=False)
    certificate: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    management_url: str | None = field(default=None, repr=False)
    others: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check what can't be used.

        Raises:
            UsageError: An address can't be understood, or of certificate and key one is missing.
        """
        first, *others = addresses_in(check_amqp_url(",".join([self.amqp_url, *self.others])))
        object.__setattr__(self, "amqp_url", first)
        object.__setattr__(self, "others", tuple(others))
        if self.management_url is not None:
            object.__setattr__(self, "management_url", check_management_url(self.management_url))
        if (self.certificate is None) != (self.key is None):
            raise UsageError("A client certificate and its key belong together: expected both.")

    @property
    def amqp_urls(self) -> tuple[str, ...]:
        """All addresses, with the login."""
        return (self.amqp_url, *self.others)

    @property
    def address(self) -> str:
        """The broker's address as it may be shown; of a cluster all of them."""
        return without_password(",".join(self.amqp_urls))

    def at(self, *amqp_urls: str) -> "Access":
        """The same at other addresses, and with their login."""
        return replace(self, amqp_url=amqp_urls[0], others=amqp_urls[1:])

    @property
    def is_by_certificate(self) -> bool:
        """Whether the certificate says who this is, and no password does (SASL's EXTERNAL)."""
        return self.certificate is not None and urlsplit(self.amqp_url).username is None

    @property
    def account(self) -> str:
        """Whom the broker knows this side as."""
        if self.is_by_certificate:
            return common_name(str(self.certificate))
        return unquote(urlsplit(self.amqp_url).username or "guest")

    def named(self, name: str | None) -> str:
        """What a participant is called: as it says itself, or as it was invited.

        Raises:
            UsageError: Neither says anything, or they differ.
        """
        if name is None and self.name is None:
            raise UsageError("Expected --name, or an --invitation that says whom it is for.")
        if None not in (name, self.name) and name != self.name:
            raise UsageError(
                f"The invitation is for {self.name!r}, and --name says {name!r}. Leave --name out."
            )
        return str(name or self.name)

    def tls(self) -> ssl.SSLContext | None:
        """What checks the other side and shows this one, for AMQP and management page alike; None: Python's default.

        Raises:
            UsageError: What was given is no certificate, or its key is another one's.
        """
        if self.ca is None and self.certificate is None:
            return None
        try:
            context = ssl.create_default_context(cadata=self.ca)
            if self.certificate is not None:
                _show(context, self.certificate, str(self.key))
        except (ssl.SSLError, ValueError) as exc:
            raise UsageError(
                f"The certificates for {self.address} can't be used: {exc}. Expected PEM, and a key that is the "
                "certificate's and needs no password. Check --ca, --certificate and --key, or the invitation."
            ) from exc
        return context


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Python reads these from a file only: one that nobody else can open, for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "client.pem"
        write_private(path, f"{certificate}\n{key}\n")
        context.load_cert_chain(path, password=lambda: "")


def speaks_tls(amqp_url: str, *, seconds: float = 2.0) -> bool:
    """Whether what is at an address begins with TLS; nothing is believed of it, and nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(host_and_port(amqp_url), timeout=seconds) as stream:
            context.wrap_socket(stream).close()
    except OSError:
        return False
    return True


def common_name(certificate: str) -> str:
    """Whom a certificate is for; RabbitMQ takes that as the account's name.

    Raises:
        UsageError: It is none, or names nobody.
    """
    from cryptography import x509  # late: only who logs in by a certificate needs it
    from cryptography.x509.oid import NameOID

    try:
        subject = x509.load_pem_x509_certificate(certificate.encode()).subject
        return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (ValueError, IndexError) as exc:
        raise UsageError(f"The client certificate names nobody ({exc}). Expected a common name.") from exc


def reason_of(exc: Exception) -> str:
    """Without what the file holds: a TOML error never shows it, one of the system names the file alone."""
    return exc.strerror or type(exc).__name__ if isinstance(exc, OSError) else str(exc)


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone can read.

    Raises:
        UsageError: It can't be written, or is there already.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "w") as file:
            file.write(text)
    except OSError as exc:
        raise UsageError(f"{path} can't be written: {exc.strerror}") from exc


def read_pem(path: Path) -> str:
    """A certificate or a key out of a file.

    Raises:
        UsageError: There is none.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"{path} can't be read: {reason_of(exc)}. Expected a certificate or key as PEM."
        ) from exc
    if "-----BEGIN " not in text:
        raise UsageError(f"{path} is no certificate or key as PEM.")
    return text


def with_login(url: str, login: str | None) -> str:
    """An address with this login, USER:PASSWORD percent-encoded, in the place of its own; None: without any."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=place if login is None else f"{login}@{place}").geturl()


def with_host(url: str, host: str) -> str:
    """An address at another host."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=f"{login}{at}{f'[{host}]' if ':' in host else host}{port}").geturl()


def login_in(url: str) -> str | None:
    """USER:PASSWORD as an address has it, percent-encoded; None where it has none."""
    login, at, _ = urlsplit(url).netloc.rpartition("@")
    return login if at else None
