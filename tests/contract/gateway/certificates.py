"""Authorities and certificates for tests, in files as cert-manager's Secrets lay them out when mounted."""

import datetime
import ipaddress
import itertools
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_ISSUED = itertools.count(1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate).serial_number


class Authority:
    """Whoever signs certificates."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.pem = _pem(_signed(self._name, self._name, self._key.public_key(), self._key, authority=True))

    def issue(self, name: str = "gateway", *, days: int = 30) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed(_name(name), self._name, key.public_key(), self._key, authority=False, days=days)
        return Pair(_pem(certificate), _key_pem(key, serialization.NoEncryption()))

    def trusting(self, client: Path | None = None) -> ssl.SSLContext:
        """Return a client's context that trusts this authority; ``client`` holds its own certificate and key."""
        context = ssl.create_default_context(cadata=self.pem.decode())
        if client is not None:
            context.load_cert_chain(client)
        return context


class Mounted:
    """A mounted Secret: names are links through ``..data``, which is switched in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version = itertools.count()
        folder.mkdir()

    def put(self, **files: bytes) -> None:
        """Show new contents, all at once; ``tls_crt`` stands for tls.crt."""
        version = self.folder / f"..{next(self._version)}"
        version.mkdir()
        for name, content in files.items():
            (version / name.replace("_", ".")).write_bytes(content)
            link = self.folder / name.replace("_", ".")
            if not link.is_symlink():
                link.symlink_to(Path("..data") / link.name)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.replace(self.folder / "..data")

    def pair(self, pair: Pair, **more: bytes) -> None:
        self.put(tls_crt=pair.certificate, tls_key=pair.key, **more)


def encrypted(pair: Pair) -> bytes:
    """Return a pair's key as nobody can read it without its password."""
    key = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return _key_pem(key, serialization.BestAvailableEncryption(b"password"))


def _signed(subject, issuer, public_key, key, *, authority: bool, days: int = 30) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
        .serial_number(next(_ISSUED))
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if not authority:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    return builder.sign(key, hashes.SHA256())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
