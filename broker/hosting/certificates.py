"""Certificates of a federation: an authority of its own, the broker's certificate, and one for each site that wants it.

The authority's key signs and does nothing else: it may be kept elsewhere once all certificates are made.
"""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.errors import UsageError
from broker.link.access import read_pem, write_private
from broker.link.address import check_host

_AUTHORITY_DAYS = 3650
_SKEW = timedelta(hours=1)  #: a site's clock may be late

CA, SERVER = "ca", "server"  #: what the authority's and the broker's files are called
_CLIENT, _REVOKED = "client", "revoked"  #: how those of sites begin, and of sites that are no longer invited


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its private key, in two files.

    Attributes:
        folder: Where they are.
        name: What they are called: NAME.pem and NAME-key.pem.
    """

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        """The certificate's file."""
        return self.folder / f"{self.name}.pem"

    @property
    def key(self) -> Path:
        """The private key's file."""
        return self.folder / f"{self.name}-key.pem"

    @property
    def is_there(self) -> bool:
        """Whether both are."""
        return self.certificate.is_file() and self.key.is_file()


def make_authority(folder: Path) -> Pair:
    """The authority of this folder; made if there is none, and never made anew: all rests on it."""
    pair = Pair(folder, CA)
    if pair.certificate.exists() or pair.key.exists():
        return pair
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise UsageError(
            f"{folder} can't be made: {exc.strerror}. Expected a folder that may be written to."
        ) from exc
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("Warren federation")
    builder = _builder(name, name, key, _AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write(pair, builder.sign(key, hashes.SHA256()), key)
    return pair


def make_server(folder: Path, names: list[str], *, days: int) -> Pair:
    """The broker's certificate for these host names and addresses; one that is there is replaced.

    Raises:
        UsageError: The authority's key is not in this folder, or a name can't be one.
    """
    if not names:
        raise UsageError("A broker's certificate needs a name: the one that sites reach it by.")
    alternatives = x509.SubjectAlternativeName([_host(check_host(name)) for name in names])
    return _signed(Pair(folder, SERVER), names[0], ExtendedKeyUsageOID.SERVER_AUTH, days, alternatives)


def make_client(folder: Path, account: str, *, days: int) -> Pair:
    """A certificate that logs in as this account; one that is there is replaced.

    Raises:
        UsageError: The authority's key is not in this folder.
    """
    return _signed(Pair(folder, f"{_CLIENT}-{account}"), account, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def renew_server(folder: Path, *, days: int) -> Pair:
    """The broker's certificate anew, for the names that it has, signed by the same authority.

    Raises:
        UsageError: There is none, or the authority's key is not in this folder.
    """
    names = [*names_in(Pair(folder, SERVER).certificate)]
    if not Pair(folder, CA).certificate.exists():
        raise UsageError(
            f"There is no {CA}.pem in {folder}: whoever signed that certificate makes the next one, too."
        )
    return make_server(folder, names, days=days)


def certificates_in(folder: Path) -> list[Path]:
    """Those that count: the authority's, the broker's, and the sites'."""
    sites = sorted(path for path in folder.glob(f"{_CLIENT}-*.pem") if not path.name.endswith("-key.pem"))
    its = (Pair(folder, name).certificate for name in (CA, SERVER))
    return [*(path for path in its if path.exists()), *sites]


def note_revoked(folder: Path, account: str) -> datetime | None:
    """Keep in mind that a site's certificate must never be let in again.

    Nothing that was signed can be called back: who has it is let in as soon as an account has its name.

    Returns:
        Until when it is valid; None: there was none here.
    """
    pair = Pair(folder, f"{_CLIENT}-{account}")
    if not pair.certificate.exists():
        return None
    pair.key.unlink(missing_ok=True)
    noted = _noted(folder, account)
    if not noted.exists() or end_of(noted) < end_of(pair.certificate):
        pair.certificate.replace(noted)
    return end_of(noted)


def check_not_revoked(folder: Path, account: str) -> None:
    """Judge whether an account of this name may be made where certificates log in.

    Raises:
        UsageError: A certificate of that name was revoked and is still valid: its holder would be let in again.
    """
    noted = _noted(folder, account)
    if noted.exists() and end_of(noted) > datetime.now(UTC):
        raise UsageError(
            f"The certificate of {account!r} was revoked and is valid until {end_of(noted).date()}: with an account of "
            "that name, whoever has it would be let in again. Choose another name; or, if nobody else can have it, "
            f"delete {noted}."
        )


def _noted(folder: Path, account: str) -> Path:
    return Pair(folder, f"{_REVOKED}-{account}").certificate


def names_in(certificate: Path) -> tuple[str, ...]:
    """The host names and addresses that a server's certificate is for.

    Raises:
        UsageError: It is none, or is for no host.
    """
    loaded = _loaded(certificate)
    try:
        found = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise UsageError(f"{certificate} names no host (a subject alternative name).") from exc
    hosts = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    return tuple(host for host in hosts if not host.startswith("*"))


def end_of(certificate: Path) -> datetime:
    """When a certificate expires."""
    return _loaded(certificate).not_valid_after_utc


def _loaded(certificate: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_pem(certificate).encode())
    except ValueError as exc:
        raise UsageError(f"{certificate} is no certificate: {exc}") from exc


def _signed(
    pair: Pair,
    name: str,
    purpose: x509.ObjectIdentifier,
    days: int,
    alternatives: x509.SubjectAlternativeName | None = None,
) -> Pair:
    authority = make_authority(pair.folder)
    signer, its_key = _loaded(authority.certificate), _key_of(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_named(name), signer.subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(its_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    _write(pair, builder.sign(its_key, hashes.SHA256()), key)
    return pair


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode())


def _key_of(authority: Pair) -> ec.EllipticCurvePrivateKey:
    if not authority.key.is_file():
        raise UsageError(
            f"The authority's key {authority.key} is not there: it has to sign. Put it there, or give certificates "
            "that another authority signed."
        )
    try:
        key = serialization.load_pem_private_key(authority.key.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise UsageError(f"The authority's key {authority.key} can't be read: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"The authority's key {authority.key} is of another kind than `broker certs` makes.")
    return key


def _write(pair: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    aside = Pair(pair.folder, f".{pair.name}")
    for path in (aside.key, aside.certificate):
        path.unlink(missing_ok=True)
    write_private(aside.key, encoded.decode())
    aside.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    # A broker that is running reads them at any moment: both change at once, as nearly as that can be.
    aside.key.replace(pair.key)
    aside.certificate.replace(pair.certificate)
