"""A private Sigstore instance: certificate authority, certificate log and transparency log with keys of their own.

Written from the formats (RFC 6962, Rekor's entries, signed notes), not with the library that verifies them.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.unit.weights.builders import bundle
from tests.unit.weights.pki import CODE_SIGNING, Holder, issue
from tests.unit.weights.stamps import Stamps

SIGNED = datetime(2026, 5, 1, 12, tzinfo=UTC)
"""When everything is signed, unless a test says otherwise: a month before decisions are made."""
WORKFLOW = "https://git.example/acme/weights/.ci/release.yaml@refs/heads/main"
ISSUER = "https://token.actions.example"
START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTES = timedelta(minutes=10)
_ISSUER_RAW = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_PROMISES = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA256_ECDSA = b"\x04\x03"


def new_key() -> Any:
    return ec.generate_private_key(ec.SECP256R1())


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def spki(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Any) -> bytes:
    return hashlib.sha256(spki(key)).digest()


def signed(key: Any, message: bytes) -> bytes:
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def utf8_string(text: str) -> bytes:
    return b"\x0c" + _length(len(text.encode())) + text.encode()


@dataclass
class Instance:
    """The instance, and what of it a trusted root tells."""

    root: Holder = field(default_factory=lambda: _authority("root"))
    certificate_log: Any = field(default_factory=new_key)
    log: Any = field(default_factory=new_key)
    origin: str = "log.example - 42"
    stamps: Stamps = field(default_factory=lambda: Stamps(START))

    def __post_init__(self) -> None:
        self.intermediate = _authority("intermediate", by=self.root, purposes=CODE_SIGNING)

    def certify(
        self,
        identity: str = WORKFLOW,
        *,
        issuer: str = ISSUER,
        raw_issuer: str | None = None,
        at: datetime = SIGNED,
        by: Holder | None = None,
        certificate_log: Any = None,
        names: Sequence[x509.GeneralName] | None = None,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        **changes: Any,
    ) -> Holder:
        """A certificate for ten minutes, with the certificate log's promise in it."""
        authority = by or self.intermediate
        name = x509.RFC822Name(identity) if "://" not in identity else x509.UniformResourceIdentifier(identity)
        extensions = [
            (x509.UnrecognizedExtension(_ISSUER_RAW, (raw_issuer or issuer).encode()), False),
            (x509.UnrecognizedExtension(_ISSUER, utf8_string(issuer)), False),
            *extra,
        ]
        made = {
            "by": authority,
            "purposes": CODE_SIGNING,
            "names": [name] if names is None else names,
            "not_before": at - MINUTES / 2,
            "not_after": at + MINUTES / 2,
            "key": new_key(),
            **changes,
        }
        plain = issue("signer", extra=extensions, **made)
        promise = _promise(certificate_log or self.certificate_log, authority, plain.certificate, at)
        extensions.append((x509.UnrecognizedExtension(_PROMISES, promise), False))
        return issue("signer", extra=extensions, **made)

    def sign(
        self,
        payload: Any = None,
        *,
        holder: Holder | None = None,
        logged_at: datetime = SIGNED,
        log: Any = None,
        checkpoint_log: Any = None,
        **certified: Any,
    ) -> dict[str, Any]:
        """A bundle, signed and logged."""
        holder = holder or self.certify(**certified)
        document = bundle(payload, key=holder.key)
        entry = self.entry(
            self.body(document, holder), logged_at=logged_at, log=log or self.log, checkpoint_log=checkpoint_log
        )
        document["verificationMaterial"] = {
            "certificate": {"rawBytes": b64(holder.der)},
            "tlogEntries": [entry],
            "timestampVerificationData": {"rfc3161Timestamps": []},
        }
        return document

    def sign_stamped(
        self,
        payload: Any = None,
        *,
        at: datetime = SIGNED,
        stamp: Callable[[bytes], bytes] | None = None,
        **certified: Any,
    ) -> dict[str, Any]:
        """A bundle as Rekor 2 logs it: without a time of the log's own, with a time-stamp authority's beside it."""
        holder = self.certify(**certified)
        document = bundle(payload, key=holder.key)
        envelope = document["dsseEnvelope"]
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        raw = base64.b64decode(envelope["payload"])
        encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(raw), raw)
        verifier = {"keyDetails": "PKIX_ECDSA_P256_SHA_256", "x509Certificate": {"rawBytes": b64(holder.der)}}
        recorded = {
            "data": {"algorithm": "SHA2_256", "digest": b64(hashlib.sha256(encoded).digest())},
            "signature": {"content": b64(signature), "verifier": verifier},
        }
        body = {"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": recorded}}
        entry = self.entry(compact(body))
        del entry["integratedTime"], entry["inclusionPromise"]
        entry["kindVersion"] = {"kind": "hashedrekord", "version": "0.0.2"}
        stamped = stamp(signature) if stamp else self.stamps.stamp(signature, at)
        document["verificationMaterial"] = {
            "certificate": {"rawBytes": b64(holder.der)},
            "tlogEntries": [entry],
            "timestampVerificationData": {"rfc3161Timestamps": [{"signedTimestamp": b64(stamped)}]},
        }
        return document

    def body(self, document: dict[str, Any], holder: Holder) -> bytes:
        """What the log records of an envelope."""
        envelope = document["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        verifier = holder.certificate.public_bytes(Encoding.PEM)
        return compact(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(compact(envelope)).hexdigest()},
                    "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                    "signatures": [{"signature": envelope["signatures"][0]["sig"], "verifier": b64(verifier)}],
                },
            }
        )

    def entry(
        self, body: bytes, *, logged_at: datetime = SIGNED, log: Any = None, checkpoint_log: Any = None
    ) -> dict[str, Any]:
        """The log's entry, in a tree of three: the proof has a step to the left and one to the right."""
        log = log or self.log
        first, second = _leaf(b"another entry"), _leaf(b"one more entry")
        root = _node(_node(first, _leaf(body)), second)
        seconds = int(logged_at.timestamp())
        promised = {"body": b64(body), "integratedTime": seconds, "logID": key_id(log).hex(), "logIndex": 1001}
        return {
            "logIndex": "1001",
            "logId": {"keyId": b64(key_id(log))},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": b64(signed(log, compact(promised)))},
            "inclusionProof": {
                "logIndex": "1",
                "rootHash": b64(root),
                "treeSize": "3",
                "hashes": [b64(first), b64(second)],
                "checkpoint": {"envelope": self.checkpoint(root, 3, checkpoint_log or log)},
            },
            "canonicalizedBody": b64(body),
        }

    def checkpoint(self, root: bytes, size: int, log: Any) -> str:
        """The log's signed note over its tree."""
        note = f"{self.origin}\n{size}\n{b64(root)}\n"
        return f"{note}\n\u2014 log.example {b64(key_id(log)[:4] + signed(log, note.encode()))}\n"

    def trusted_root(self, **spans: dict[str, str]) -> dict[str, Any]:
        """The instance's ``trusted_root.json``; ``spans`` are the times of authorities, ctlogs and tlogs."""
        open_ended = {"start": _zulu(START)}
        certificates = [{"rawBytes": b64(each.der)} for each in (self.intermediate, self.root)]
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [_log(self.log, "https://log.example", spans.get("tlogs", open_ended))],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "Acme", "commonName": "authority"},
                    "uri": "https://authority.example",
                    "certChain": {"certificates": certificates},
                    "validFor": spans.get("authorities", open_ended),
                }
            ],
            "ctlogs": [_log(self.certificate_log, "https://certificates.example", spans.get("ctlogs", open_ended))],
            "timestampAuthorities": [
                {
                    "subject": {"organization": "Acme", "commonName": "stamps"},
                    "uri": "https://stamps.example",
                    "certChain": {
                        "certificates": [{"rawBytes": b64(each.der)} for each in (self.stamps.signer, self.stamps.root)]
                    },
                    "validFor": spans.get("stamps", open_ended),
                }
            ],
        }

    def authority(self, name: str = "workflow", *, root: dict[str, Any] | None = None, **expected: Any) -> Any:
        """An authority of a policy that expects an identity of this instance."""
        sigstore = {
            "issuer": ISSUER,
            "trustedRoot": {"inline": json.dumps(root or self.trusted_root())},
            **({"identity": WORKFLOW} if "identityRegExp" not in expected else {}),
            **expected,
        }
        return {"name": name, "models": ["gpt-oss-*"], "sigstore": sigstore}


def trust_config(root: dict[str, Any]) -> dict[str, Any]:
    """What `model_signing` takes instead of the public instance: a trusted root, and no place to sign at."""
    return {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": root,
        "signingConfig": {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"},
    }


def span(start: datetime, end: datetime | None = None) -> dict[str, str]:
    return {"start": _zulu(start)} | ({"end": _zulu(end)} if end else {})


def _authority(name: str, **changes: Any) -> Holder:
    return issue(name, authority=True, not_before=START, not_after=START + timedelta(days=3650), **changes)


def _promise(key: Any, authority: Holder, certificate: x509.Certificate, at: datetime) -> bytes:
    """A list of one signed certificate timestamp, as RFC 6962 writes it, in an octet string."""
    body = certificate.tbs_certificate_bytes
    milliseconds = int(at.timestamp() * 1000)
    entry = key_id(authority.key) + len(body).to_bytes(3, "big") + body
    signature = signed(key, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + struct.pack("!H", 0))
    timestamp = (
        b"\x00" + key_id(key) + struct.pack("!QH", milliseconds, 0) + _SHA256_ECDSA + struct.pack("!H", len(signature))
    ) + signature
    listed = struct.pack("!H", len(timestamp)) + timestamp
    listed = struct.pack("!H", len(listed)) + listed
    return b"\x04" + _length(len(listed)) + listed


def _length(count: int) -> bytes:
    if count < 0x80:
        return bytes([count])
    raw = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(raw)]) + raw


def _leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _log(key: Any, url: str, valid_for: dict[str, str]) -> dict[str, Any]:
    return {
        "baseUrl": url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {"rawBytes": b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid_for},
        "logId": {"keyId": b64(key_id(key))},
    }


def _zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
