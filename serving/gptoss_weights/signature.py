"""Signatures: strict reading of bundles, and verification of those that are signed with a key.

A bundle is JSON of media type ``application/vnd.dev.sigstore.bundle.v0.3+json`` that holds a DSSE
envelope (https://github.com/secure-systems-lab/dsse) over a manifest. Exactly one signature, exactly
the current encoding: signatures of signers before version 1.0 are refused, and so are bundles that
two readers could understand differently. Nothing of the payload is read before its signature holds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from gptoss_weights import strictjson
from gptoss_weights.errors import (
    BrokenSignatureError,
    InvalidPolicyError,
    MalformedSignatureError,
    UntrustedSignerError,
)
from gptoss_weights.logentry import LogEntry, read_log_entry
from gptoss_weights.manifest import MAX_PAYLOAD_BYTES, Manifest, manifest_digest, parse_manifest
from gptoss_weights.members import base64_bytes, exact_keys, malformed
from gptoss_weights.recovery import candidate_keys

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_BUNDLE_BYTES: Final = 2 * MAX_PAYLOAD_BYTES
_MAX_DEPTH: Final = 8
_MAX_SIGNATURE_BYTES: Final = 256
_MAX_CERTIFICATES: Final = 8
_MAX_CERTIFICATE_BYTES: Final = 16 * 1024
_CURVES: Final[dict[str, type[hashes.HashAlgorithm]]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_KEY_CURVES: Final = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle as read. Nothing in it is trusted yet.

    ``key_hint`` is the SHA-256 of the signing key's PEM text, which says which key to try and proves
    nothing; None in a bundle that carries ``certificates`` instead, DER, the signer's first. ``log`` is there
    if Sigstore certified the signer: then there is one certificate. ``manifest_digest`` is that of the
    payload, ``raw`` the whole text.
    """

    payload: bytes
    signature: bytes
    key_hint: str | None
    certificates: tuple[bytes, ...] = ()
    log: LogEntry | None = None
    manifest_digest: str
    raw: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustedKey:
    """A public key and the name under which it is trusted.

    ``fingerprint`` is ``sha256:`` and the SHA-256 of the SubjectPublicKeyInfo in DER.
    """

    name: str
    key: ec.EllipticCurvePublicKey
    fingerprint: str
    hint: str

    @classmethod
    def from_pem(cls, name: str, pem: str) -> "TrustedKey":
        """Read a PEM public key.

        Raises:
            InvalidPolicyError: it is not an elliptic-curve key on P-256, P-384 or P-521.
        """
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise InvalidPolicyError(
                f"the key of {name} is not a PEM public key; paste what `gptoss weights keygen` wrote to .pub"
            ) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
            raise InvalidPolicyError(f"the key of {name} must be an elliptic-curve key on P-256, P-384 or P-521")
        return cls(name=name, key=key, fingerprint=key_fingerprint(key), hint=key_hint(key))


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedManifest:
    """A manifest whose signature holds, and the key that made it."""

    manifest: Manifest
    key: TrustedKey


def parse_bundle(raw: bytes) -> Bundle:
    """Read the text of a ``model.sig``.

    Raises:
        MalformedSignatureError: it is not a strict bundle of one signature.
    """
    try:
        document = strictjson.parse(raw, max_bytes=MAX_BUNDLE_BYTES, max_depth=_MAX_DEPTH)
    except strictjson.StrictJSONError as error:
        raise MalformedSignatureError(f"model.sig {error}; sign the folder again") from error
    exact_keys(document, "the bundle", {"mediaType", "verificationMaterial", "dsseEnvelope"})
    if document["mediaType"] != BUNDLE_MEDIA_TYPE:
        malformed("mediaType is not Sigstore's bundle v0.3")
    hint, certificates, log = _material(document["verificationMaterial"])
    envelope = document["dsseEnvelope"]
    exact_keys(envelope, "dsseEnvelope", {"payload", "payloadType", "signatures"})
    if envelope["payloadType"] != PAYLOAD_TYPE:
        malformed("payloadType is not in-toto's")
    payload = base64_bytes(envelope["payload"], "payload", MAX_PAYLOAD_BYTES)
    return Bundle(
        payload=payload,
        signature=_signature(envelope["signatures"]),
        key_hint=hint,
        certificates=certificates,
        log=log,
        raw=raw,
        manifest_digest=manifest_digest(payload),
    )


def verify_bundle(bundle: Bundle, keys: Sequence[TrustedKey]) -> VerifiedManifest:
    """Verify a bundle against the keys that are trusted, then read its manifest.

    Raises:
        UntrustedSignerError: none of the keys made the signature over these bytes.
        MalformedManifestError, ForbiddenContentError: the signed manifest is not acceptable.
    """
    signer = find_signer(bundle, keys)
    return VerifiedManifest(manifest=parse_manifest(bundle.payload), key=signer)


def find_signer(bundle: Bundle, keys: Sequence[TrustedKey]) -> TrustedKey:
    """Return which of the keys made a bundle's signature.

    Raises:
        BrokenSignatureError: the bundle names one of them, which did not make it.
        UntrustedSignerError: none of them.
    """
    if bundle.key_hint is None:
        raise UntrustedSignerError("model.sig is signed with a certificate, not with a trusted key; sign with a key")
    candidates = [key for key in keys if key.hint == bundle.key_hint]
    if not candidates:
        raise UntrustedSignerError(
            "model.sig was made with a key that no authority of the policy holds; "
            "sign with a trusted key, or add the signer's public key to the policy's authorities"
        )
    for candidate in candidates:
        if is_signed_by(bundle, candidate.key):
            return candidate
    raise BrokenSignatureError(
        f"model.sig names the key of {candidates[0].name}, but its signature does not hold; sign the folder again"
    )


def recovered_key(bundle: Bundle) -> ec.EllipticCurvePublicKey:
    """Return the key that a bundle hints at, computed from its signature: it need not be anybody's that we know.

    Raises:
        BrokenSignatureError: no such key made the signature.
    """
    signed = pre_authentication_encoding(bundle.payload)
    for curve in _KEY_CURVES:
        digest = hashes.Hash(_CURVES[curve.name]())
        digest.update(signed)
        for key in candidate_keys(bundle.signature, digest.finalize(), curve):
            if key_hint(key) == bundle.key_hint and is_signed_by(bundle, key):
                return key
    raise BrokenSignatureError(
        "model.sig names a key of which its signature is not; sign the folder again, with a current signer"
    )


def is_signed_by(bundle: Bundle, key: ec.EllipticCurvePublicKey) -> bool:
    """Tell whether a key made a bundle's signature. Keys of other curves than ours make none."""
    if key.curve.name not in _CURVES:
        return False
    try:
        key.verify(bundle.signature, pre_authentication_encoding(bundle.payload), signature_algorithm(key))
    except InvalidSignature:
        return False
    return True


def pre_authentication_encoding(payload: bytes) -> bytes:
    """Return what is signed: DSSE's PAE of an in-toto payload."""
    return f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload


def signature_algorithm(key: ec.EllipticCurvePublicKey) -> ec.ECDSA:
    """Return the one algorithm of a curve: ECDSA with SHA-256, SHA-384 or SHA-512."""
    return ec.ECDSA(_CURVES[key.curve.name]())


def key_fingerprint(key: PublicKeyTypes) -> str:
    """Return ``sha256:`` and the SHA-256 of the SubjectPublicKeyInfo in DER."""
    return "sha256:" + hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the hint that a bundle carries: the SHA-256 of the key's PEM text, as hex."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _material(material: Any) -> tuple[str | None, tuple[bytes, ...], LogEntry | None]:
    """Return the key's hint, or the certificates, or the certificate and what a log says about it."""
    kinds = ("publicKey", "x509CertificateChain", "certificate")
    if not isinstance(material, dict) or not material.keys() <= {*kinds, "tlogEntries", "timestampVerificationData"}:
        malformed("verificationMaterial must name a public key or certificates, and nothing unknown beside")
    if sum(kind in material for kind in kinds) != 1:
        malformed("verificationMaterial must hold exactly one of publicKey, x509CertificateChain and certificate")
    if "certificate" in material:
        return None, (_certificate(material["certificate"]),), read_log_entry(material)
    if material.get("tlogEntries", []) != [] or "timestampVerificationData" in material:
        malformed("tlogEntries must be empty in a bundle that is signed with a key or a certificate chain")
    if "publicKey" in material:
        return _key_hint(material["publicKey"]), (), None
    return None, _certificates(material["x509CertificateChain"]), None


def _key_hint(public_key: Any) -> str:
    exact_keys(public_key, "publicKey", {"hint"})
    hint = public_key["hint"]
    if not isinstance(hint, str) or len(hint) != hashlib.sha256().digest_size * 2:
        malformed("publicKey.hint must be the SHA-256 of the key; sign again with a current signer")
    return hint


def _certificates(chain: Any) -> tuple[bytes, ...]:
    exact_keys(chain, "x509CertificateChain", {"certificates"})
    certificates = chain["certificates"]
    if not isinstance(certificates, list) or not 1 <= len(certificates) <= _MAX_CERTIFICATES:
        malformed(f"x509CertificateChain must hold 1 to {_MAX_CERTIFICATES} certificates")
    return tuple(_certificate(each) for each in certificates)


def _certificate(certificate: Any) -> bytes:
    exact_keys(certificate, "a certificate", {"rawBytes"})
    return base64_bytes(certificate["rawBytes"], "a certificate", _MAX_CERTIFICATE_BYTES)


def _signature(signatures: Any) -> bytes:
    if not isinstance(signatures, list) or len(signatures) != 1:
        malformed("there must be exactly one signature")
    if not isinstance(signatures[0], dict) or not {"sig"} <= signatures[0].keys() <= {"sig", "keyid"}:
        malformed("a signature must hold sig and at most keyid")
    if not isinstance(signatures[0].get("keyid", ""), str):
        malformed("keyid must be text")
    return base64_bytes(signatures[0]["sig"], "sig", _MAX_SIGNATURE_BYTES)
