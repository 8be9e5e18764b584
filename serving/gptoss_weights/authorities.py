"""Who signed, and which of a policy's authorities vouch for that signer."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_api.policy import Authority, CertificateChain
from gptoss_weights.certificates import check_chain, read_chain, read_roots
from gptoss_weights.errors import BrokenSignatureError, InvalidPolicyError, UntrustedSignerError
from gptoss_weights.signature import Bundle, TrustedKey, find_signer, is_signed_by, key_fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Whose signature holds. That says nothing yet about whether anybody trusts it.

    Attributes:
        fingerprint: ``sha256:`` and the SHA-256 of the signing key's SubjectPublicKeyInfo.
        chain: the certificates that came with the signature, the signer's first; empty for a bare key.
    """

    fingerprint: str
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of the signing key and of every key in its chain: denying one denies the signer."""
        return frozenset({self.fingerprint, *(key_fingerprint(each.public_key()) for each in self.chain)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Voucher:
    """An authority that vouches for a signer, and until when its certificates do."""

    authority: Authority
    until: datetime | None = None


class Authorities:
    """A policy's authorities with their keys and roots, read at once: one that can't be read closes the policy."""

    def __init__(self, authorities: Sequence[Authority]) -> None:
        """Read keys and roots.

        Raises:
            InvalidPolicyError: one of them can't be read, or an authority has neither or both.
        """
        self._keys: list[tuple[Authority, TrustedKey]] = []
        self._roots: list[tuple[Authority, CertificateChain, tuple[x509.Certificate, ...]]] = []
        for each in authorities:
            match each:
                case Authority(key=key, certificate=None) if key is not None:
                    self._keys.append((each, TrustedKey.from_pem(each.name, key.public_key)))
                case Authority(key=None, certificate=chain) if chain is not None:
                    self._roots.append((each, chain, read_roots(each.name, chain.roots)))
                case _:
                    raise InvalidPolicyError(
                        f"authority {each.name} must hold exactly one of key and certificate; correct the policy"
                    )

    def signer(self, bundle: Bundle) -> Signer:
        """Tell who made a bundle's signature.

        Raises:
            BrokenSignatureError: the signature does not hold.
            UntrustedSignerError: it names a key that nobody here holds.
            MalformedSignatureError: its certificates can't be read.
        """
        if not bundle.certificates:
            return Signer(fingerprint=find_signer(bundle, [key for _, key in self._keys]).fingerprint)
        chain = read_chain(bundle.certificates)
        key = chain[0].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not is_signed_by(bundle, key):
            raise BrokenSignatureError(
                "the signature does not hold for the certificate that model.sig carries; sign the folder again"
            )
        return Signer(fingerprint=key_fingerprint(key), chain=chain)

    def vouching(self, signer: Signer, *, now: datetime) -> list[Voucher]:
        """Return the authorities that vouch for a signer: at least one.

        Raises:
            UntrustedSignerError: none does.
        """
        if not signer.chain:
            return [Voucher(authority=each) for each, key in self._keys if key.fingerprint == signer.fingerprint]
        if not self._roots:
            raise UntrustedSignerError(
                "model.sig is signed with a certificate, and no authority of the policy holds roots; "
                "sign with a trusted key, or add an authority with certificate.rootsPEM"
            )
        vouchers: list[Voucher] = []
        refusals: list[UntrustedSignerError] = []
        for each, expected, roots in self._roots:
            try:
                until = check_chain(signer.chain, roots=roots, expected=expected, authority=each.name, now=now)
            except UntrustedSignerError as error:
                refusals.append(error)
            else:
                vouchers.append(Voucher(authority=each, until=until))
        if not vouchers:
            raise refusals[0]
        return vouchers
