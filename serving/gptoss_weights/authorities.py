"""Who signed, and which of a policy's authorities vouch for that signer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_api.policy import Authority, CertificateChain, SigstoreIdentity, SigstoreRoot
from gptoss_weights.certificates import check_chain, names_of, read_chain, read_roots
from gptoss_weights.errors import BrokenSignatureError, InvalidPolicyError, UntrustedSignerError
from gptoss_weights.identities import SigstoreInstance, certified
from gptoss_weights.signature import Bundle, TrustedKey, find_signer, is_signed_by, key_fingerprint, recovered_key


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Whose signature holds. That says nothing yet about whether anybody trusts it.

    Attributes:
        fingerprint: ``sha256:`` and the SHA-256 of the signing key's SubjectPublicKeyInfo.
        chain: the certificates that came with the signature, the signer's first; empty for a bare key.
        names: what the signer's certificate calls it; empty for a bare key.
    """

    fingerprint: str
    chain: tuple[x509.Certificate, ...] = ()
    names: frozenset[str] = frozenset()

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of the signing key and of every key in its chain: denying one denies the signer."""
        return frozenset({self.fingerprint, *(key_fingerprint(each.public_key()) for each in self.chain)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Voucher:
    """An authority that vouches for a signer.

    Attributes:
        authority: the policy's entry.
        until: when its certificates stop to count; None for those that counted when they signed, and for keys.
        identity: whom the signer's certificate is made out to, as the authority expects it; None for a key.
        fingerprints: the keys by which it vouches, up to its root.
    """

    authority: Authority
    until: datetime | None = None
    identity: str | None = None
    fingerprints: frozenset[str] = frozenset()


class Authorities:
    """A policy's authorities with their keys and roots, read at once: one that can't be read closes the policy."""

    def __init__(self, authorities: Sequence[Authority], *, trusted_roots: Mapping[str, str]) -> None:
        """Read keys and roots. ``trusted_roots`` are the texts of those that authorities name.

        Raises:
            InvalidPolicyError: one of them can't be read, or an authority does not hold exactly one kind.
        """
        self._keys: list[tuple[Authority, TrustedKey]] = []
        self._roots: list[tuple[Authority, CertificateChain, tuple[x509.Certificate, ...]]] = []
        self._instances: list[tuple[Authority, SigstoreIdentity, SigstoreInstance]] = []
        for each in authorities:
            _check_log_wish(each)
            match each:
                case Authority(key=key, certificate=None, sigstore=None) if key is not None:
                    self._keys.append((each, TrustedKey.from_pem(each.name, key.public_key)))
                case Authority(key=None, certificate=chain, sigstore=None) if chain is not None:
                    self._roots.append((each, chain, read_roots(each.name, chain.roots)))
                case Authority(key=None, certificate=None, sigstore=identity) if identity is not None:
                    text = trusted_root_text(each.name, identity.trusted_root, trusted_roots)
                    self._instances.append((each, identity, SigstoreInstance(each.name, text)))
                case _:
                    raise InvalidPolicyError(
                        f"authority {each.name} must hold exactly one of key, certificate and sigstore; "
                        "correct the policy"
                    )

    def signer(self, bundle: Bundle) -> Signer:
        """Tell who made a bundle's signature, whether anybody here knows them or not.

        Raises:
            BrokenSignatureError: the signature does not hold.
            MalformedSignatureError: its certificates can't be read.
        """
        if not bundle.certificates:
            held = [key for _, key in self._keys if key.hint == bundle.key_hint]
            if held:
                return Signer(fingerprint=find_signer(bundle, held).fingerprint)
            return Signer(fingerprint=key_fingerprint(recovered_key(bundle)))
        chain = read_chain(bundle.certificates)
        key = chain[0].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not is_signed_by(bundle, key):
            raise BrokenSignatureError(
                "the signature does not hold for the certificate that model.sig carries; sign the folder again"
            )
        names = names_of(chain[0]) if bundle.log is None else (certified(chain[0]).identity,)
        return Signer(fingerprint=key_fingerprint(key), chain=chain, names=frozenset(names))

    def vouching(self, signer: Signer, bundle: Bundle, *, now: datetime) -> list[Voucher]:
        """Return the authorities that vouch for a signer: at least one.

        Raises:
            UntrustedSignerError: none does.
        """
        if not signer.chain:
            return self._by_key(signer)
        if bundle.log is not None:
            return self._by_identity(signer, bundle)
        return self._by_root(signer, now)

    def _by_key(self, signer: Signer) -> list[Voucher]:
        vouchers = [Voucher(authority=each) for each, key in self._keys if key.fingerprint == signer.fingerprint]
        if not vouchers:
            raise UntrustedSignerError(
                f"model.sig was made with a key that no authority of the policy holds, {signer.fingerprint}; "
                "sign with a trusted key, or add the signer's public key to the policy's authorities"
            )
        return vouchers

    def _by_root(self, signer: Signer, now: datetime) -> list[Voucher]:
        if not self._roots:
            raise UntrustedSignerError(
                "model.sig is signed with a certificate, and no authority of the policy holds roots; "
                "sign with a trusted key, or add an authority with certificate.rootsPEM"
            )
        vouchers: list[Voucher] = []
        refusals: list[UntrustedSignerError] = []
        for each, expected, roots in self._roots:
            try:
                path = check_chain(signer.chain, roots=roots, expected=expected, authority=each.name, now=now)
            except UntrustedSignerError as error:
                refusals.append(error)
            else:
                vouchers.append(
                    Voucher(
                        authority=each,
                        until=min(part.not_valid_after_utc for part in path),
                        identity=expected.subject_alt_name or expected.subject,
                        fingerprints=frozenset(key_fingerprint(part.public_key()) for part in path),
                    )
                )
        if not vouchers:
            raise refusals[0]
        return vouchers

    def _by_identity(self, signer: Signer, bundle: Bundle) -> list[Voucher]:
        if not self._instances:
            raise UntrustedSignerError(
                "model.sig is signed with a certificate of Sigstore, and no authority of the policy expects one; "
                "sign with a trusted key, or add an authority with sigstore"
            )
        vouchers: list[Voucher] = []
        refusals: list[UntrustedSignerError] = []
        for each, expected, instance in self._instances:
            try:
                fingerprints = instance.check(bundle, signer.chain[0], expected=expected)
            except UntrustedSignerError as error:
                refusals.append(error)
            else:
                (identity,) = signer.names
                vouchers.append(Voucher(authority=each, identity=identity, fingerprints=fingerprints))
        if not vouchers:
            raise refusals[0]
        return vouchers


def trusted_root_text(authority: str, root: SigstoreRoot, named: Mapping[str, str]) -> str:
    """Return the text of a trusted root: the policy's own, or the one that it names.

    Raises:
        InvalidPolicyError: it holds neither or both, or the name is unknown.
    """
    match root:
        case SigstoreRoot(inline=str(text), name=None):
            return text
        case SigstoreRoot(inline=None, name=str(name)) if name in named:
            return named[name]
        case SigstoreRoot(inline=None, name=str(name)):
            raise InvalidPolicyError(
                f"sigstore.trustedRoot.name of authority {authority} is {name}, which sigstoreTrustedRoots of the "
                "operator's settings does not hold, or whose file can't be read; add it, or correct the policy"
            )
        case _:
            raise InvalidPolicyError(
                f"sigstore.trustedRoot of authority {authority} must hold exactly one of inline and name"
            )


def _check_log_wish(authority: Authority) -> None:
    """Refuse what the API server refuses too, unless its schema is older: a wish that can't be granted."""
    unlogged = authority.sigstore is not None and not authority.sigstore.require_transparency_log
    logged = authority.certificate is not None and authority.certificate.require_transparency_log
    if unlogged or logged:
        raise InvalidPolicyError(
            f"requireTransparencyLog of authority {authority.name} must be true for sigstore and absent or false for a "
            "certificate, whose bundles carry no log entry; correct the policy"
        )
