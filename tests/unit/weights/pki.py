"""Real certificate chains, each right or wrong in one way."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.unit.weights.builders import bundle

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
CODE_SIGNING = (ExtendedKeyUsageOID.CODE_SIGNING,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
IDENTITY = "URI:spiffe://acme/release"


@dataclass(frozen=True)
class Holder:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def write(self, path: Path) -> Path:
        path.write_text(self.pem)
        return path


def issue(
    name: str,
    *,
    by: Holder | None = None,
    authority: bool = False,
    path_length: int | None = None,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    digital_signature: bool | None = None,
    names: Sequence[x509.GeneralName] | None = None,
    not_before: datetime = NOW - YEAR,
    not_after: datetime = NOW + YEAR,
    key: Any = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> Holder:
    """Issue a certificate, by itself if nobody else does. Signers sign and carry a name, authorities don't."""
    if digital_signature is None:
        digital_signature = not authority
    if names is None:
        names = () if authority else (x509.UniformResourceIdentifier("spiffe://acme/release"),)
    key = key or ec.generate_private_key(ec.SECP256R1())
    signing_key = by.key if by else key
    subject = _name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) + 1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=digital_signature,
                content_commitment=False,
                key_encipherment=not digital_signature and not authority,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return Holder(builder.sign(signing_key, hashes.SHA256()), key)


def signer(name: str, *, by: Holder, **changes: Any) -> Holder:
    return issue(name, **{"by": by, "purposes": CODE_SIGNING, **changes})


def signed_bundle(chain: Sequence[Holder], payload: Any = None) -> dict[str, Any]:
    """A bundle that is signed with the chain's first certificate and carries them all."""
    document = bundle(payload, key=chain[0].key)
    certificates = [{"rawBytes": base64.b64encode(each.der).decode()} for each in chain]
    document["verificationMaterial"] = {"x509CertificateChain": {"certificates": certificates}, "tlogEntries": []}
    return document


def certificate_authority(*roots: Holder, name: str = "acme", **expected: Any) -> dict[str, Any]:
    """An authority of a policy that trusts these roots."""
    chain = {"rootsPEM": "".join(root.pem for root in roots), **(expected or {"subjectAltName": IDENTITY})}
    return {"name": name, "models": ["gpt-oss-*"], "certificate": chain}


def _name(name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
