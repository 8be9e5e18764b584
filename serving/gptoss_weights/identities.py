"""Sigstore identities: did the expected one sign, by the word of an instance that an administrator named?

The instance is a ``trusted_root.json``: its certificate authorities, its logs and its time-stamp
authorities, each with the time for which it counts. `sigstore` verifies against it, offline: the
certificate at the time when it signed, the promise of the certificate log in it, the log's promise,
checkpoint and proof of inclusion, and that the entry is of this very signature. What it leaves to
its callers, or takes lightly, is done here: one name in the certificate and one issuer, compared whole;
authorities and logs only within their own time; every claim of a time, not only one, within the
certificate's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_api.policy import SigstoreIdentity
from gptoss_weights import strictjson
from gptoss_weights.errors import InvalidPolicyError, MalformedSignatureError, UntrustedSignerError
from gptoss_weights.signature import PAYLOAD_TYPE, Bundle, key_fingerprint

MAX_ROOT_BYTES: Final = 256 * 1024
_MAX_ROOT_DEPTH: Final = 12
_MAX_IDENTITY: Final = 1024
# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER_RAW: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_OTHER_NAME: Final = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_INSTALL: Final = "install gptoss-operator[operator], which brings what verifies them"


@dataclass(frozen=True, kw_only=True, slots=True)
class Certified:
    """Whom a Sigstore certificate is made out to, and who vouched for that."""

    identity: str
    issuer: str


class SigstoreInstance:
    """A Sigstore instance as a trusted root describes it."""

    def __init__(self, authority: str, text: str) -> None:
        """Read a ``trusted_root.json``. ``authority`` is the policy's entry, for messages.

        Raises:
            InvalidPolicyError: it can't be read, or lacks authorities or logs.
        """
        self._authority = authority
        try:
            strictjson.parse(text.encode(), max_bytes=MAX_ROOT_BYTES, max_depth=_MAX_ROOT_DEPTH)
        except (strictjson.StrictJSONError, UnicodeEncodeError) as error:
            raise self._invalid("is not acceptable JSON") from error
        self._root = self._parsed(text)
        if not (self._root.certificate_authorities and self._root.tlogs and self._root.ctlogs):
            raise self._invalid("must list certificateAuthorities, tlogs and ctlogs")

    def check(self, bundle: Bundle, leaf: x509.Certificate, *, expected: SigstoreIdentity) -> frozenset[str]:
        """Check that the expected identity made a bundle; return the fingerprints of the keys that certified it.

        Raises:
            UntrustedSignerError: it did not, or the instance does not vouch for that.
            MalformedSignatureError: the certificate or a timestamp can't be read.
        """
        self._check_expected(certified(leaf), expected)
        times = self._times(bundle)
        if not all(leaf.not_valid_before_utc <= each <= leaf.not_valid_after_utc for each in times):
            raise self._untrusted("the signer's certificate was not valid at the time that the log or timestamp tells")
        root = _counting(self._root, times)
        if not (root.certificate_authorities and root.tlogs and root.ctlogs):
            raise self._untrusted("no certificate authority or no log of the trusted root counted when it was signed")
        self._verify(bundle, leaf, root)
        return _issuers(leaf, root)

    def _parsed(self, text: str) -> Any:
        try:
            from sigstore.models import TrustedRoot
            from sigstore_models.trustroot.v1 import TrustedRoot as Parsed
        except ImportError as error:
            raise InvalidPolicyError(f"authority {self._authority} expects Sigstore bundles; {_INSTALL}") from error
        try:
            root = Parsed.from_json(text)
            TrustedRoot(root).get_fulcio_certs()
            _counting(root, [datetime.now(UTC)])
        except Exception as error:
            raise self._invalid("is not a trusted_root.json of version 0.1") from error
        return root

    def _verify(self, bundle: Bundle, leaf: x509.Certificate, root: Any) -> None:
        from sigstore.errors import CertValidationError
        from sigstore.models import Bundle as SigstoreBundle
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier

        try:
            verifier = Verifier(trusted_root=TrustedRoot(root))
            kind, payload = verifier.verify_dsse(SigstoreBundle.from_json(bundle.raw), _Compared(leaf))
        except CertValidationError:
            raise self._untrusted(
                "no certificate authority of the trusted root issued the signer's certificate, which must have been "
                "valid when it signed"
            ) from None
        except Exception:  # noqa: BLE001 - whatever the library raises over hostile bytes, nobody vouches for them
            raise self._untrusted(
                "the trusted root does not vouch for the signature: certificate, the certificate log's promise in it, "
                "log entry and timestamps must be of this instance and of this signature"
            ) from None
        if kind != PAYLOAD_TYPE or payload != bundle.payload:
            raise MalformedSignatureError("model.sig is not acceptable: it can be read in two ways")

    def _times(self, bundle: Bundle) -> list[datetime]:
        """Return every time at which the signature claims to have been made. The library verifies the claims."""
        from rfc3161_client import decode_timestamp_response

        if bundle.log is None:
            raise self._untrusted("model.sig carries no entry of a transparency log; sign with Sigstore")
        try:
            stamped = [decode_timestamp_response(each).tst_info.gen_time for each in bundle.log.timestamps]
        except Exception as error:
            raise MalformedSignatureError(
                "model.sig is not acceptable: a timestamp in it can't be read; sign again"
            ) from error
        return [*stamped, *([bundle.log.integrated_at] if bundle.log.integrated_at is not None else [])]

    def _check_expected(self, found: Certified, expected: SigstoreIdentity) -> None:
        if found.issuer != expected.issuer:
            raise self._untrusted("another issuer than sigstore.issuer vouched for the signer's identity")
        if expected.identity is not None and expected.identity_reg_exp is None:
            same = found.identity == expected.identity
        elif expected.identity_reg_exp is not None and expected.identity is None:
            same = self._matches(expected.identity_reg_exp, found.identity)
        else:
            raise InvalidPolicyError(
                f"authority {self._authority} must hold exactly one of sigstore.identity and sigstore.identityRegExp"
            )
        if not same:
            raise self._untrusted("another identity than the expected one signed")

    def _matches(self, expression: str, identity: str) -> bool:
        try:
            import re2
        except ImportError as error:
            raise InvalidPolicyError(f"authority {self._authority} expects Sigstore bundles; {_INSTALL}") from error
        options = re2.Options()
        options.log_errors = False
        try:
            return re2.compile(expression, options).fullmatch(identity) is not None
        except re2.error as error:
            raise InvalidPolicyError(
                f"sigstore.identityRegExp of authority {self._authority} is not a regular expression of RE2; correct it"
            ) from error

    def _untrusted(self, problem: str) -> UntrustedSignerError:
        return UntrustedSignerError(
            f"{problem}, as authority {self._authority} asks; sign as the expected identity, or correct the policy"
        )

    def _invalid(self, problem: str) -> InvalidPolicyError:
        return InvalidPolicyError(
            f"sigstore.trustedRoot of authority {self._authority} {problem}; paste the instance's trusted_root.json"
        )


def certified(leaf: x509.Certificate) -> Certified:
    """Return whom a Sigstore certificate names. That says nothing yet about whether anybody trusts it.

    Raises:
        MalformedSignatureError: it does not name exactly one identity and one issuer, or its key is of another kind.
    """
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedSignatureError("model.sig is not acceptable: the key that Sigstore certified must be on P-256")
    try:
        names = list(leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        issuers = {
            _utf8_string(each.value.value) if each.oid == _ISSUER else each.value.value.decode()
            for each in leaf.extensions
            if each.oid in (_ISSUER, _ISSUER_RAW) and isinstance(each.value, x509.UnrecognizedExtension)
        }
        (identity,) = (_identity(each) for each in names)
        (issuer,) = issuers
    except Exception as error:
        raise MalformedSignatureError(
            "model.sig is not acceptable: the certificate must name exactly one identity (an e-mail address or a URI) "
            "and one issuer, as Sigstore's do"
        ) from error
    return Certified(identity=identity, issuer=issuer)


class _Compared:
    """The library's way to ask for the identity: it must be that of the certificate that we compared."""

    def __init__(self, leaf: x509.Certificate) -> None:
        self._leaf = leaf

    def verify(self, cert: x509.Certificate) -> None:
        """Accept the certificate that was compared, and no other."""
        if cert != self._leaf:
            raise ValueError("two readings of one bundle")


def _identity(name: x509.GeneralName) -> str:
    match name:
        case x509.RFC822Name(value=value) | x509.UniformResourceIdentifier(value=value):
            found = value
        case x509.OtherName(type_id=kind, value=value) if kind == _OTHER_NAME:
            found = _utf8_string(value)
        case _:
            raise ValueError("a name of another kind")
    if not found.isprintable() or not 1 <= len(found) <= _MAX_IDENTITY:
        raise ValueError("no name that can be shown")
    return found


def _utf8_string(der: bytes) -> str:
    from cryptography.hazmat import asn1

    return asn1.decode_der(str, der)


def _counting(root: Any, times: Sequence[datetime]) -> Any:
    """Return the trusted root with those authorities and logs that counted at all of these times."""

    def counted(period: Any) -> bool:
        if period is None:
            return True
        return all(period.start <= each and (period.end is None or each <= period.end) for each in times)

    return root.model_copy(
        update={
            "certificate_authorities": [each for each in root.certificate_authorities if counted(each.valid_for)],
            "tlogs": [each for each in root.tlogs if counted(each.public_key.valid_for)],
            "ctlogs": [each for each in root.ctlogs if counted(each.public_key.valid_for)],
        }
    )


def _issuers(leaf: x509.Certificate, root: Any) -> frozenset[str]:
    """Return the fingerprints of the keys in the trusted root that certified a leaf, directly or not."""
    authorities = [
        x509.load_der_x509_certificate(each.raw_bytes)
        for authority in root.certificate_authorities
        for each in authority.cert_chain.certificates
    ]
    found: set[str] = set()
    remaining: list[x509.Certificate] = [leaf]
    while remaining:
        below = remaining.pop()
        for each in authorities:
            fingerprint = key_fingerprint(each.public_key())
            if fingerprint not in found and _issued(below, each):
                found.add(fingerprint)
                remaining.append(each)
    return frozenset(found)


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except Exception:  # noqa: BLE001 - another name, another key, or a kind of key that can't sign
        return False
    return True
