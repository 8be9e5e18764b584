"""Trust: does a policy accept this bundle, from this place, as this model? Pure; no I/O.

Evaluation fails closed and in a fixed order: source, signature present and well-formed, denied digest,
signer, denied key or identity, authority, content, subject, pinned digest, release. A deployment can only
narrow what its policy allows, and a deny-list beats every authority. Mode Audit waives the signer and
nothing else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Final

from gptoss_api.policy import (
    LabelRequirement,
    LabelSelector,
    WeightTrustPolicy,
    WeightTrustPolicySpec,
    WeightTrustPolicyStatus,
)
from gptoss_weights.authorities import Authorities, Signer, Voucher
from gptoss_weights.errors import (
    AmbiguousPolicyError,
    AuditNotAllowedError,
    BrokenSignatureError,
    DeniedDigestError,
    DeniedIdentityError,
    DeniedKeyError,
    InvalidPolicyError,
    ManifestChangedError,
    NoPolicyError,
    PolicyNotFoundError,
    SourceNotAllowedError,
    SubjectMismatchError,
    TrustError,
    UnsignedError,
    UntrustedSignerError,
)
from gptoss_weights.location import Location
from gptoss_weights.manifest import Manifest, parse_manifest
from gptoss_weights.releases import check_release
from gptoss_weights.signature import Bundle, parse_bundle

_NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
_NOTHING_ACCEPTED: Final = WeightTrustPolicyStatus()
_NO_ROOTS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrowing:
    """What a deployment asks for within what its policy allows.

    Attributes:
        subject: name that the weights must be signed as.
        manifest_digest: the one manifest that may be used, if any is pinned.
        authority: the one authority of the policy that may have signed, if one is named.
        audit: the signer is waived, if the policy permits that.
    """

    subject: str
    manifest_digest: str | None = None
    authority: str | None = None
    audit: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustDecision:
    """Why a bundle is trusted: its digest, who signed it, and which authority vouches for that key.

    ``identity`` is whom the signer's certificate is made out to, None for a key.
    ``valid_until`` is when the authority or its certificates stop to count, None if they never do.
    ``waived`` says why no authority vouches, where mode Audit waives that; ``authority_name`` is empty then.
    ``raises_release``: of the model's releases it is the highest so far, which must be recorded before anything starts.
    """

    manifest_digest: str
    signer_fingerprint: str
    authority_name: str
    manifest: Manifest
    identity: str | None = None
    valid_until: datetime | None = None
    waived: str | None = None
    raises_release: bool = False


def select_policy(
    policies: Iterable[WeightTrustPolicy],
    *,
    namespace: str,
    namespace_labels: Mapping[str, str],
    policy_ref: str | None = None,
) -> WeightTrustPolicy:
    """Choose the one policy for a deployment of a namespace.

    A named policy must exist and select the namespace, so naming one never widens what an
    administrator allows. Without a name it is the one default policy that selects the namespace.

    Raises:
        PolicyNotFoundError: ``policy_ref`` names none.
        NoPolicyError: the named policy, or every default policy, leaves the namespace out.
        AmbiguousPolicyError: two default policies select the namespace.
    """
    known = list(policies)
    labels = {**namespace_labels, _NAMESPACE_LABEL: namespace}
    if policy_ref is not None:
        named = [policy for policy in known if policy.name == policy_ref]
        if not named:
            raise PolicyNotFoundError(
                f"there is no WeightTrustPolicy {policy_ref}; correct spec.verification.policyRef.name or create it"
            )
        if not _selects(named[0].spec.namespace_selector, labels):
            raise NoPolicyError(
                f"WeightTrustPolicy {policy_ref} does not select namespace {namespace}; "
                "ask an administrator to change its namespaceSelector, or name another"
            )
        return named[0]
    chosen = [p for p in known if p.spec.default and _selects(p.spec.namespace_selector, labels)]
    if not chosen:
        raise NoPolicyError(
            f"no default WeightTrustPolicy selects namespace {namespace}; "
            "ask an administrator for one with default: true, or name one in spec.verification.policyRef"
        )
    if len(chosen) > 1:
        raise AmbiguousPolicyError(
            f"more than one default WeightTrustPolicy selects namespace {namespace}: "
            f"{', '.join(sorted(policy.name for policy in chosen))}; leave one, or name one in "
            "spec.verification.policyRef"
        )
    return chosen[0]


def check_source(uri: str, policy: WeightTrustPolicySpec) -> Location:
    """Return the place that a URI names if the policy allows it. To be asked before anything is read.

    Raises:
        SourceNotAllowedError: the URI is malformed, or no source of the policy contains it.
        InvalidPolicyError: a source of the policy is no prefix.
    """
    location = Location.parse(uri)
    for source in policy.sources:
        try:
            prefix = Location.parse(source.prefix, prefix=True)
        except SourceNotAllowedError as error:
            raise InvalidPolicyError(
                "a sources[].prefix of the policy is not s3://bucket/prefix, az://container/prefix, hf://owner "
                "or file:///folder; correct it"
            ) from error
        if location.within(prefix):
            return location
    raise SourceNotAllowedError(
        "no sources[].prefix of the WeightTrustPolicy contains spec.model.uri; "
        "move the weights, or ask an administrator to allow their place"
    )


def evaluate(
    bundle: bytes | None,
    policy: WeightTrustPolicySpec,
    *,
    uri: str,
    narrowing: Narrowing,
    now: datetime,
    accepted: WeightTrustPolicyStatus = _NOTHING_ACCEPTED,
    trusted_roots: Mapping[str, str] = _NO_ROOTS,
) -> TrustDecision:
    """Decide whether a bundle is trusted. ``bundle`` is the text of ``model.sig``, None where there is none.

    ``accepted`` is the policy's status: the releases that were accepted before. ``trusted_roots`` are the texts
    of the Sigstore roots that the operator's settings name.

    Raises:
        TrustError: one of its kinds, whose message says what to change.
    """
    check_source(uri, policy)
    if narrowing.audit and not policy.allow_audit:
        raise AuditNotAllowedError(
            "the WeightTrustPolicy does not permit mode Audit; remove spec.verification.mode, "
            "or ask an administrator to set allowAudit"
        )
    if bundle is None:
        raise UnsignedError(
            "there is no model.sig beside the weights; sign the folder with `gptoss weights sign` and upload it"
        )
    parsed = parse_bundle(bundle)
    if parsed.manifest_digest in policy.denied.manifest_digests:
        raise _denied_digest(parsed.manifest_digest)
    signer, voucher, waived = _vouched(parsed, policy, narrowing, now, trusted_roots)
    manifest = parse_manifest(parsed.payload)
    if manifest.subject != narrowing.subject:
        raise SubjectMismatchError(
            f"the weights are signed as another model than {narrowing.subject}; "
            "correct spec.model.name, or sign them as that model"
        )
    if narrowing.manifest_digest not in (None, parsed.manifest_digest):
        raise ManifestChangedError(
            f"the manifest at the source is {parsed.manifest_digest}, not the pinned {narrowing.manifest_digest}; "
            "put the pinned weights back, or change spec.verification.manifestDigest"
        )
    higher = check_release(policy, accepted, model=manifest.subject, manifest_digest=parsed.manifest_digest)
    return TrustDecision(
        manifest_digest=parsed.manifest_digest,
        signer_fingerprint=signer.fingerprint,
        authority_name=voucher.authority.name if voucher is not None else "",
        identity=voucher.identity if voucher is not None else None,
        manifest=manifest,
        valid_until=_end(voucher) if voucher is not None else None,
        waived=waived,
        raises_release=higher and waived is None,
    )


def revocation(
    policy: WeightTrustPolicySpec, *, manifest_digest: str, signer: str, identity: str | None = None
) -> TrustError | None:
    """Return why what was accepted before is denied now, None if it is not.

    ``signer`` is the fingerprint of the key that signed it, empty if that was not recorded, ``identity`` whom its
    certificate is made out to, if there was one. Reads nothing, so that a source that can't be reached
    hides no revocation.
    """
    if manifest_digest in policy.denied.manifest_digests:
        return _denied_digest(manifest_digest)
    if signer in policy.denied.key_fingerprints:
        return _denied_key(signer)
    if identity is not None and _denies(policy, {identity}):
        return _denied_identity()
    return None


def _vouched(
    bundle: Bundle,
    policy: WeightTrustPolicySpec,
    narrowing: Narrowing,
    now: datetime,
    trusted_roots: Mapping[str, str],
) -> tuple[Signer, Voucher | None, str | None]:
    """Return the signer, who vouches for it, and why nobody does where that is waived.

    Raises:
        UntrustedSignerError, DeniedKeyError, DeniedIdentityError, InvalidPolicyError, MalformedSignatureError:
            as `evaluate`.
    """
    authorities = Authorities(policy.authorities, trusted_roots=trusted_roots)
    signer = authorities.signer(bundle)
    _refuse_denied(signer.fingerprints, signer.names, policy)
    try:
        vouching = authorities.vouching(signer, bundle, now=now)
        for each in vouching:
            # A signer leaves out of the bundle what it would rather not show, such as a denied intermediate.
            _refuse_denied(each.fingerprints, frozenset(), policy)
        voucher = _responsible(vouching, subject=narrowing.subject, only=narrowing.authority, now=now)
    except BrokenSignatureError:
        raise
    except UntrustedSignerError as error:
        if not narrowing.audit:
            raise
        return signer, None, error.message
    return signer, voucher, None


def _refuse_denied(fingerprints: frozenset[str], names: frozenset[str], policy: WeightTrustPolicySpec) -> None:
    denied = fingerprints.intersection(policy.denied.key_fingerprints)
    if denied:
        raise _denied_key(min(denied))
    if _denies(policy, names):
        raise _denied_identity()


def _denies(policy: WeightTrustPolicySpec, names: Iterable[str]) -> bool:
    # Providers let people write their own address in other letters: that must be no way around the list.
    denied = {each.casefold() for each in policy.denied.identities}
    return any(name.casefold() in denied for name in names)


def _denied_digest(digest: str) -> DeniedDigestError:
    return DeniedDigestError(
        f"manifest {digest} is on the WeightTrustPolicy's denied.manifestDigests; publish and sign other weights"
    )


def _denied_key(fingerprint: str) -> DeniedKeyError:
    return DeniedKeyError(
        f"key {fingerprint} is on the WeightTrustPolicy's denied.keyFingerprints; sign with another key"
    )


def _denied_identity() -> DeniedIdentityError:
    return DeniedIdentityError(
        "the identity that signed is on the WeightTrustPolicy's denied.identities; sign as another identity"
    )


def _responsible(vouching: list[Voucher], *, subject: str, only: str | None, now: datetime) -> Voucher:
    """Choose among those that vouch for the signer; with several, the one that counts longest.

    Raises:
        UntrustedSignerError: none of them may sign this model, now, for this deployment.
    """
    named = [each for each in vouching if only in (None, each.authority.name)]
    if not named:
        raise UntrustedSignerError(
            f"authority {vouching[0].authority.name} signed, not {only}; sign as {only}, "
            "or change spec.verification.authority"
        )
    allowed = [each for each in named if any(fnmatchcase(subject, glob) for glob in each.authority.models)]
    if not allowed:
        raise UntrustedSignerError(
            f"authority {named[0].authority.name} signed, but may not sign {subject}; sign with another key, "
            "or add the model to the authority's models"
        )
    begun = [each for each in allowed if each.authority.not_before is None or each.authority.not_before <= now]
    if not begun:
        raise UntrustedSignerError(
            f"authority {allowed[0].authority.name} signed, but counts only from its notBefore on; wait, "
            "sign with another key, or move notBefore"
        )
    current = [each for each in begun if each.authority.not_after is None or now < each.authority.not_after]
    if not current:
        raise UntrustedSignerError(
            f"authority {begun[0].authority.name} signed, but its notAfter has passed; sign with a current key, "
            "or move notAfter"
        )
    return max(current, key=lambda each: _end(each) or datetime.max.replace(tzinfo=UTC))


def _end(voucher: Voucher) -> datetime | None:
    """When a voucher stops to count: with its authority, or with its certificates."""
    return min((end for end in (voucher.authority.not_after, voucher.until) if end is not None), default=None)


def _selects(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    if selector is None:
        return True
    exact = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return exact and all(_holds(requirement, labels) for requirement in selector.match_expressions)


def _holds(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    match requirement.operator:
        case "In":
            return labels.get(requirement.key) in requirement.values
        case "NotIn":
            return labels.get(requirement.key) not in requirement.values
        case "Exists":
            return requirement.key in labels
        case "DoesNotExist":
            return requirement.key not in labels
