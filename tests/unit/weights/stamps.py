"""A time-stamp authority of one's own: signed time-stamp responses, written from RFC 3161 and RFC 5652."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.unit.weights.pki import Holder, issue

_SIGNED_DATA = "1.2.840.113549.1.7.2"
_STAMP = "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.47"
_SHA256 = "2.16.840.1.101.3.4.2.1"
_ECDSA_SHA256 = "1.2.840.10045.4.3.2"
_POLICY = "1.3.6.1.4.1.57264.2"


@dataclass
class Stamps:
    """The authority's root and the key that stamps."""

    start: datetime
    root: Holder = field(init=False)
    signer: Holder = field(init=False)

    def __post_init__(self) -> None:
        times = {"not_before": self.start, "not_after": self.start + timedelta(days=3650)}
        self.root = issue("stamps-root", authority=True, **times)
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        self.signer = issue("stamps", by=self.root, names=(), extra=[(purpose, True)], **times)

    def stamp(self, message: bytes, at: datetime, *, key: Any = None) -> bytes:
        """A response that says: this message existed at that time."""
        imprint = _sequence(_algorithm(_SHA256), _octets(hashlib.sha256(message).digest()))
        info = _sequence(
            _integer(1), _oid(_POLICY), imprint, _integer(7), _tagged(0x18, at.strftime("%Y%m%d%H%M%SZ").encode())
        )
        certificate_hash = _octets(hashlib.sha256(self.signer.der).digest())
        attributes = _set(
            _sequence(_oid(_CONTENT_TYPE), _set(_oid(_STAMP))),
            _sequence(_oid(_MESSAGE_DIGEST), _set(_octets(hashlib.sha256(info).digest()))),
            _sequence(_oid(_SIGNING_CERTIFICATE), _set(_sequence(_sequence(_sequence(certificate_hash))))),
        )
        signature = (key or self.signer.key).sign(attributes, ec.ECDSA(hashes.SHA256()))
        holder = self.signer.certificate
        signer_info = _sequence(
            _integer(1),
            _sequence(holder.issuer.public_bytes(), _integer(holder.serial_number)),
            _algorithm(_SHA256),
            b"\xa0" + attributes[1:],
            _algorithm(_ECDSA_SHA256),
            _octets(signature),
        )
        signed = _sequence(
            _integer(3),
            _set(_algorithm(_SHA256)),
            _sequence(_oid(_STAMP), _tagged(0xA0, _octets(info))),
            _tagged(0xA0, self.signer.der),
            _set(signer_info),
        )
        return _sequence(_sequence(_integer(0)), _sequence(_oid(_SIGNED_DATA), _tagged(0xA0, signed)))


def _tagged(tag: int, content: bytes) -> bytes:
    count = len(content)
    if count < 0x80:
        return bytes([tag, count]) + content
    length = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _set(*parts: bytes) -> bytes:
    return _tagged(0x31, b"".join(sorted(parts)))


def _octets(content: bytes) -> bytes:
    return _tagged(0x04, content)


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _algorithm(dotted: str) -> bytes:
    return _sequence(_oid(dotted))


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytearray([first * 40 + second])
    for part in rest:
        groups = [part & 0x7F]
        while part := part >> 7:
            groups.append(0x80 | part & 0x7F)
        content += bytes(reversed(groups))
    return _tagged(0x06, bytes(content))
