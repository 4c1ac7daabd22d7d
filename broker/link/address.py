"""The addresses that a person gives: judged before anything is tried, and never shown with any part of a password."""

import ipaddress
import re
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from broker.errors import UsageError

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})  #: names of this machine

_BETWEEN = re.compile(
    r"\s*,\s*(?=(?:amqps?|https?)://)", re.IGNORECASE
)  #: the next address of a list begins here
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SAFE = re.compile(r"(?:[^\s\x00-\x1f\x7f/?#\[\]@%]|%[0-9A-Fa-f]{2})*")  #: needs no percent-encoding
_PLACE = re.compile(r"(?P<host>\[[^\]]*\]|[^:/?#]*)(?P<port>:[^/?#]*)?(?P<path>[^?#]*)(?P<query>\?[^#]*)?")
_LAST_PORT = 65535
_HOST = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)
_OTHER_NAMES = (62, 64)  #: OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and …_IP_ADDRESS_MISMATCH
_OTHER_TIMES = (9, 10)  #: X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
_PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of address: what it is called, what it looks like, and the option that gives it."""

    title: str
    schemes: tuple[str, str]
    example: str
    hint: str


_AMQP = _Kind(
    "The broker's address", ("amqp", "amqps"),
    "amqp://USER:PASSWORD@HOST:5672/%2F", "Check --amqp-url or AMQP_URL.",
)  # fmt: skip
_MANAGEMENT = _Kind(
    "The management page's address", ("http", "https"),
    "http://USER:PASSWORD@HOST:15672", "Check --management-url.",
)  # fmt: skip


def addresses_in(urls: str) -> list[str]:
    """The addresses in a list with commas between them: a cluster has several."""
    return _BETWEEN.split(urls.strip())


def check_amqp_url(url: str) -> str:
    """Return a broker's address without the blanks around it, if it can be understood in one way.

    Of a cluster it may be a list, with commas: then each is judged, and all must lead to the same.

    Raises:
        UsageError: It can't; the message says what to change, and shows no part of the password.
    """
    found = [_checked(each, _AMQP) for each in addresses_in(url)]
    _check_are_alike(found, _AMQP)
    return ",".join(dict.fromkeys(found))


def check_management_url(url: str) -> str:
    """The same for the address of a management page."""
    found = [_checked(each, _MANAGEMENT) for each in addresses_in(url)]
    _check_are_alike(found, _MANAGEMENT)
    return ",".join(found)


def _check_are_alike(urls: list[str], kind: _Kind) -> None:
    """Refuse addresses of which only the first one's login would be used."""
    for other in urls[1:]:
        if _what_is_meant(other) != _what_is_meant(urls[0]):
            raise UsageError(
                f"The addresses {without_password(urls[0])!r} and {without_password(other)!r} differ in more than "
                "host and port. Expected the nodes of one cluster: the same login, virtual host and options, "
                f"all with TLS or all without. {kind.hint}"
            )


def _what_is_meant(url: str) -> tuple[str, str, str, str]:
    """All but where it is."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[0], parts.path, parts.query


def check_not_in_clear(urls: str) -> str:
    """Return an address (or several) that was understood, if nobody on the way can read what is sent to it.

    Raises:
        UsageError: Login and messages would travel in the clear, beyond this machine.
    """
    for url in addresses_in(urls):
        _check_not_in_clear(url)
    return urls


def _check_not_in_clear(url: str) -> None:
    parts = urlsplit(url)
    kind = _AMQP if parts.scheme in _AMQP.schemes else _MANAGEMENT
    secure = kind.schemes[1]
    if parts.scheme != secure and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{kind.title} {without_password(url)!r} sends the password and all else in the clear, and its host is "
            f"not this machine. Expected {secure}://. If nobody else can read along there, such as between containers "
            "or in a tunnel, say so with --insecure, or WARREN_INSECURE=1."
        )


def vhost_of(amqp_url: str) -> str:
    """The virtual host that an AMQP URL names; / where it names none."""
    return unquote(urlsplit(amqp_url).path.removeprefix("/")) or "/"


def host_and_port(amqp_url: str) -> tuple[str, int]:
    """The host and port that an AMQP URL names."""
    parts = urlsplit(amqp_url)
    return parts.hostname or "localhost", parts.port or _PORTS.get(parts.scheme, _PORTS["amqp"])


def check_host(name: str) -> str:
    """Return what others call a machine, if it is a host name or an address alone.

    Raises:
        UsageError: It is none, such as a whole URL, or a name with a port.
    """
    try:
        ipaddress.ip_address(name)
    except ValueError:
        try:
            is_name = _HOST.fullmatch(name.encode("idna").decode()) is not None
        except UnicodeError:
            is_name = False
        if not is_name:
            raise UsageError(
                f"{name!r:.80} is no host name and no address. Expected one such as fl.example.org or 192.0.2.7, "
                "without a port."
            ) from None
    return name


def is_loopback(host: str) -> bool:
    """Whether this names the machine itself, so that what is sent there travels over no network."""
    try:
        return host in LOCAL_HOSTS or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def not_trusted(where: str, error: ssl.SSLCertVerificationError | None = None) -> str:
    """What to say of a certificate that is not believed, and so of nothing that was sent there."""
    said = error.verify_message if error else "it failed the check"
    code = error.verify_code if error else 0
    if code in _OTHER_NAMES:
        return (
            f"The certificate at {where} is for another name ({said}); nothing was sent there. Expected the host in "
            "the address to be one of the certificate's names. Give such a name, or have the broker's certificate "
            "made for this one, too: broker certs --name HOST"
        )
    if code in _OTHER_TIMES:
        return (
            f"The certificate at {where} is not valid now ({said}); nothing was sent there. Expected one that is. "
            "Check this machine's clock; if that is right, the broker needs a new certificate."
        )
    return (
        f"The certificate at {where} is not trusted ({said}); nothing was sent there. Expected one for this host, "
        "signed by an authority that this machine knows. If it is signed by one of your own, give the authority's "
        "certificate: --ca /path/to/ca.pem, or SSL_CERT_FILE"
    )


def _checked(url: str, kind: _Kind) -> str:
    flaw = _flaw_in(url, kind)
    if flaw is not None:
        raise UsageError(
            f"{kind.title} {without_password(url)!r} {flaw}. Expected {kind.example}. {kind.hint}"
        )
    return url


def _flaw_in(url: str, kind: _Kind) -> str | None:
    scheme, login, place = _divided(url)
    if scheme.lower() not in kind.schemes:
        return f"does not begin with {' or '.join(f'{each}://' for each in kind.schemes)}"
    user, colon, password = (login or "").partition(":")
    if not (_SAFE.fullmatch(user) and _SAFE.fullmatch(password)):
        return _unencoded("user or password")
    if kind is _AMQP and login is not None and not colon:
        return "has a user without a password"
    return _flaw_in_place(place, kind) or _flaw_in_whole(url)


def _flaw_in_place(place: str, kind: _Kind) -> str | None:
    found = _PLACE.match(place)
    assert found is not None  # noqa: S101 - every part of the pattern may be empty
    if kind is _AMQP and "," in found["host"] + (found["port"] or "") + found["path"]:
        return "has a comma in it (%2C): of several addresses each is whole, with its scheme, login and virtual host"
    if not _is_host(found["host"]):
        return "has no host" if not found["host"] else "has a host that can't be one"
    if found["port"] and not _is_port(found["port"]):
        return f"has a port that is no number from 1 to {_LAST_PORT}"
    if found.end() < len(place) or (kind is _AMQP and not _SAFE.fullmatch(found["path"][1:])):
        return _unencoded("virtual host")
    return None


def _is_host(host: str) -> bool:
    try:
        host.encode("idna")  # what the system's resolver does first
    except UnicodeError:
        return False
    return bool(host.strip("[]")) and not re.search(r"[\s\x00-\x1f\x7f]", host)


def _is_port(port: str) -> bool:
    """Whether this is ":PORT"; a colon alone means the usual one."""
    digits = port[1:]
    return not digits or (digits.isascii() and digits.isdigit() and 1 <= int(digits) <= _LAST_PORT)


def _flaw_in_whole(url: str) -> str | None:
    """What Python itself refuses, such as letters that Unicode takes for '/' or '@'; its own text shows passwords."""
    try:
        url.encode()
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_whole = False
    return None if is_whole else _unencoded("user, password or host")


def _unencoded(where: str) -> str:
    return (
        f"has a character in its {where} that means something else there: percent-encode it "
        "(%40 for @, %3A for :, %2F for /, %3F for ?, %23 for #, %25 for %, %5B and %5D for [ and ], %20 for a blank)"
    )


def _divided(url: str) -> tuple[str, str | None, str]:
    """The scheme, the login (None without an "@") and the rest.

    An "@" or "/" that nobody encoded belongs to the password: it ends at the last "@", wherever that is.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        scheme, rest = "", url
    login, at, place = rest.rpartition("@")
    return scheme, (login if at else None), place


def without_password(urls: str) -> str:
    """The address (or several) as it may be shown in a log or an error, even one that can't be understood."""
    return ", ".join(_without_password(url) for url in addresses_in(urls))


def _without_password(url: str) -> str:
    scheme, login, place = _divided(url)
    user = "" if login is None else f"{login.partition(':')[0]}@"
    found = _PLACE.match(place)
    assert found is not None  # noqa: S101 - every part of the pattern may be empty
    shown = found["host"]
    if found["port"] and not found["port"][1:].isdigit():
        shown += ":..."  # USER:PASSWORD whose "@HOST" was forgotten looks like HOST:PORT
    else:
        shown += (found["port"] or "") + found["path"]
    return f"{scheme}://{user}{shown}" if scheme else f"{user}{shown}"
