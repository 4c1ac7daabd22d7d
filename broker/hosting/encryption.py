"""A private broker that others reach: what it listens on, with which certificates, and who may log in by one."""

import socket
from dataclasses import dataclass
from pathlib import Path

from broker.errors import UsageError
from broker.hosting.certificates import CA, SERVER, Pair, make_server, names_in
from broker.link.access import read_pem
from broker.link.address import is_loopback

SERVER_DAYS = 825


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """TLS alone, for AMQP and management page; nothing listens without.

    Attributes:
        folder: Of server.pem, server-key.pem and, unless an authority that everybody knows signed them, ca.pem.
        names: What the broker's certificate is for.
        listen: The address to listen on.
        takes_clients: Whether a certificate that ca.pem signed logs in as the account that it names.
    """

    folder: str
    names: tuple[str, ...]
    listen: str = "127.0.0.1"
    takes_clients: bool = False

    @property
    def local_name(self) -> str:
        """What this machine calls it, so that the certificate fits."""
        return next((name for name in ("localhost", "127.0.0.1", "::1") if name in self.names), self.names[0])

    @property
    def public_name(self) -> str:
        """What others call it."""
        return next((name for name in self.names if not is_loopback(name)), self.names[0])

    @property
    def ca(self) -> str | None:
        """The authority's certificate, as PEM."""
        path = Path(self.folder) / f"{CA}.pem"
        return read_pem(path) if path.exists() else None

    @property
    def plugins(self) -> list[str]:
        """What it needs besides the management page."""
        return ["rabbitmq_auth_mechanism_ssl"] if self.takes_clients else []

    def lines(self, port: int, management_port: int) -> list[str]:
        """What rabbitmq.conf says of it."""
        server = Pair(Path(self.folder), SERVER)
        files = {"certfile": server.certificate, "keyfile": server.key}
        if self.ca is not None:
            files["cacertfile"] = Path(self.folder) / f"{CA}.pem"
        mechanisms = ["PLAIN", *(["EXTERNAL"] if self.takes_clients else [])]
        return [
            "listeners.tcp = none",
            f"listeners.ssl.1 = {self.listen}:{port}",
            f"management.ssl.ip = {self.listen}",
            f"management.ssl.port = {management_port}",
            *(f"ssl_options.{option} = {path}" for option, path in files.items()),
            *(f"management.ssl.{option} = {path}" for option, path in files.items()),
            f"ssl_options.verify = {'verify_peer' if self.takes_clients else 'verify_none'}",
            "ssl_options.fail_if_no_peer_cert = false",
            "ssl_cert_login_from = common_name",
            *(f"auth_mechanisms.{number} = {each}" for number, each in enumerate(mechanisms, 1)),
        ]


def encrypted(
    folder: Path, names: tuple[str, ...], *, listen: str, takes_clients: bool, is_given: bool
) -> Encryption:
    """Have certificates in a folder: those that are there, or, in the broker's own, made for these names.

    Args:
        folder: Where they are, or shall be.
        names: Host names and addresses that sites reach it by; this machine's own are added.
        listen: The address to listen on.
        takes_clients: Whether sites may log in by certificate.
        is_given: They are a person's own: none is made.

    Raises:
        UsageError: Some lack, or can't be used.
    """
    server = Pair(folder, SERVER)
    if not server.is_there and is_given:
        raise UsageError(
            f"Expected {server.certificate.name} and {server.key.name} in {folder}: `broker certs` makes them."
        )
    if not is_given and not (server.is_there and set(names) <= set(names_in(server.certificate))):
        make_server(folder, [*dict.fromkeys([*names, *_own_names()])], days=SERVER_DAYS)
    found = names_in(server.certificate)
    if not found:
        raise UsageError(f"{server.certificate} is for no single host. Expected one that names this machine.")
    made = Encryption(folder=str(folder), names=found, listen=listen, takes_clients=takes_clients)
    if takes_clients and made.ca is None:
        raise UsageError(f"Expected {CA}.pem in {folder}: the authority that signs the sites' certificates.")
    return made


def _own_names() -> list[str]:
    return [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
