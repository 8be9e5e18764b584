"""Certificate chains: does a root that an administrator named vouch for the key that signed, now?

The roots are the policy's and no others: neither the system's nor the web's. The chain is built and
checked by `cryptography`'s RFC 5280 verification against the time of the decision, never against a
date that the chain itself tells. Beyond that the leaf must be made for signing code, must not be an
authority itself, and must carry the very identity that the policy expects.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from gptoss_api.policy import CertificateChain
from gptoss_weights.errors import InvalidPolicyError, MalformedSignatureError, UntrustedSignerError

_MAX_INTERMEDIATES: Final = 4
_SIGNING: Final = frozenset({ExtendedKeyUsageOID.CODE_SIGNING})


def read_chain(certificates: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """Read the DER certificates of a bundle, the signer's first.

    Raises:
        MalformedSignatureError: one of them is no certificate, or the signer's key is of another kind.
    """
    try:
        chain = tuple(x509.load_der_x509_certificate(each) for each in certificates)
        key = chain[0].public_key()
        for each in chain:
            each.extensions  # noqa: B018 - read on access; a broken one is refused here
    except Exception as error:
        raise MalformedSignatureError(
            "model.sig is not acceptable: a certificate in it can't be read; sign the folder again"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise MalformedSignatureError(
            "model.sig is not acceptable: the certificate's key must be an elliptic-curve key on P-256, P-384 or P-521"
        )
    return chain


def read_roots(authority: str, pem: str) -> tuple[x509.Certificate, ...]:
    """Read a policy's roots.

    Raises:
        InvalidPolicyError: there are none, or one of them is not a certificate authority's.
    """
    try:
        roots = tuple(x509.load_pem_x509_certificates(pem.encode()))
        authorities = [_is_authority(root) for root in roots]
    except Exception as error:
        raise InvalidPolicyError(
            f"certificate.rootsPEM of authority {authority} can't be read; paste PEM certificates"
        ) from error
    if not all(authorities):
        raise InvalidPolicyError(
            f"certificate.rootsPEM of authority {authority} holds a certificate that is not a certificate authority's "
            "(BasicConstraints CA); paste the authority's own, not a signer's"
        )
    return roots


def check_chain(
    chain: Sequence[x509.Certificate],
    *,
    roots: Sequence[x509.Certificate],
    expected: CertificateChain,
    authority: str,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Check that a root vouches for the chain's first certificate; return the path to that root, signer first.

    Raises:
        UntrustedSignerError: it does not; the message says what was missed.
    """
    leaf = chain[0]
    _check_identity(leaf, expected, authority)
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise UntrustedSignerError(
            f"the signer's certificate is not valid now, as authority {authority} asks; sign with a current certificate"
        )
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(now)
        .max_chain_depth(_MAX_INTERMEDIATES)
        .extension_policies(ca_policy=_of_authorities(), ee_policy=_of_signers())
        .build_client_verifier()
    )
    try:
        return tuple(verifier.verify(leaf, list(chain[1:])).chain)
    except (VerificationError, ValueError):
        raise UntrustedSignerError(
            f"no root of authority {authority} vouches for the signer's certificate: the chain must be complete, "
            "valid now, made of certificate authorities, and end in a certificate for code signing"
        ) from None


def names_of(leaf: x509.Certificate) -> tuple[str, ...]:
    """Return what a certificate calls its holder: the subject, and the names as policies write them."""
    return (leaf.subject.rfc4514_string(), *_alternative_names(leaf))


def signs_code(leaf: x509.Certificate) -> bool:
    """Tell whether a certificate is made for signing code, as authorities ask of signers."""
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return usage.digital_signature and bool(_SIGNING & set(purposes))


def _check_identity(leaf: x509.Certificate, expected: CertificateChain, authority: str) -> None:
    if expected.subject is not None and leaf.subject.rfc4514_string() != expected.subject:
        raise UntrustedSignerError(
            f"the signer's certificate is made out to another subject than certificate.subject of authority "
            f"{authority}; sign with the expected certificate, or correct the policy"
        )
    if expected.subject_alt_name is not None and expected.subject_alt_name not in _alternative_names(leaf):
        raise UntrustedSignerError(
            f"the signer's certificate does not carry certificate.subjectAltName of authority {authority}; "
            "sign with the expected certificate, or correct the policy"
        )


def _alternative_names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        f"{prefix}:{value}"
        for prefix, kind in (("URI", x509.UniformResourceIdentifier), ("email", x509.RFC822Name), ("DNS", x509.DNSName))
        for value in names.get_values_for_type(kind)
    ]


def _of_signers() -> ExtensionPolicy:
    return (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _no_authority)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
        .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _signs_code)
    )


def _of_authorities() -> ExtensionPolicy:
    # The web's rules, but for the purpose: an authority that is bound to purposes must be bound to ours.
    return ExtensionPolicy.webpki_defaults_ca().may_be_present(
        x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_issue_for_code
    )


def _no_authority(_: Policy, __: x509.Certificate, found: x509.BasicConstraints | None) -> None:
    if found is not None and found.ca:
        raise ValueError("a certificate authority's certificate does not sign weights")


def _signs(_: Policy, __: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.digital_signature:
        raise ValueError("KeyUsage lacks digitalSignature")


def _signs_code(_: Policy, __: x509.Certificate, found: x509.ExtendedKeyUsage) -> None:
    if not _SIGNING & set(found):
        raise ValueError("ExtendedKeyUsage lacks codeSigning")


def _may_issue_for_code(_: Policy, __: x509.Certificate, found: x509.ExtendedKeyUsage | None) -> None:
    if found is not None and not {*_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(found):
        raise ValueError("ExtendedKeyUsage of the authority lacks codeSigning")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
