"""Trust: does a policy accept this bundle, from this place, as this model? Pure; no I/O.

Evaluation fails closed and in a fixed order: source, signature present and well-formed, deny-list,
signer, content, subject, authority, pinned digest. A deployment can only narrow what its policy allows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from gptoss_api.policy import Authority, LabelRequirement, LabelSelector, WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_weights.errors import (
    AmbiguousPolicyError,
    DeniedDigestError,
    InvalidPolicyError,
    ManifestChangedError,
    NoPolicyError,
    PolicyNotFoundError,
    SourceNotAllowedError,
    SubjectMismatchError,
    UnsignedError,
    UntrustedSignerError,
)
from gptoss_weights.location import Location
from gptoss_weights.manifest import Manifest
from gptoss_weights.signature import TrustedKey, parse_bundle, verify_bundle

_NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustDecision:
    """Why a bundle is trusted: its digest, who signed it, and which authority vouches for that key."""

    manifest_digest: str
    signer_fingerprint: str
    authority_name: str
    manifest: Manifest


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
            prefix = Location.parse(source.prefix)
        except SourceNotAllowedError as error:
            raise InvalidPolicyError(
                "a sources[].prefix of the policy is not s3://bucket/prefix or file:///folder; correct it"
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
    model_name: str,
    pinned_digest: str | None = None,
) -> TrustDecision:
    """Decide whether a bundle is trusted. ``bundle`` is the text of ``model.sig``, None where there is none.

    Raises:
        TrustError: one of its kinds, whose message says what to change.
    """
    check_source(uri, policy)
    if bundle is None:
        raise UnsignedError(
            "there is no model.sig beside the weights; sign the folder with `gptoss weights sign` and upload it"
        )
    parsed = parse_bundle(bundle)
    if parsed.manifest_digest in policy.denied.manifest_digests:
        raise DeniedDigestError(
            f"manifest {parsed.manifest_digest} is on the WeightTrustPolicy's denied.manifestDigests; "
            "publish and sign other weights"
        )
    authorities = {authority.name: authority for authority in policy.authorities}
    keys = [TrustedKey.from_pem(authority.name, authority.key.public_key) for authority in policy.authorities]
    verified = verify_bundle(parsed, keys)
    manifest = verified.manifest
    if manifest.subject != model_name:
        raise SubjectMismatchError(
            f"the weights are signed as another model than {model_name}; "
            "correct spec.model.name, or sign them as that model"
        )
    same_key = [authorities[key.name] for key in keys if key.fingerprint == verified.key.fingerprint]
    authority = _responsible(same_key, manifest.subject)
    if pinned_digest is not None and parsed.manifest_digest != pinned_digest:
        raise ManifestChangedError(
            f"the manifest at the source is {parsed.manifest_digest}, not the pinned {pinned_digest}; "
            "put the pinned weights back, or change spec.verification.manifestDigest"
        )
    return TrustDecision(
        manifest_digest=parsed.manifest_digest,
        signer_fingerprint=verified.key.fingerprint,
        authority_name=authority.name,
        manifest=manifest,
    )


def _responsible(authorities: list[Authority], subject: str) -> Authority:
    for authority in authorities:
        if any(fnmatchcase(subject, glob) for glob in authority.models):
            return authority
    raise UntrustedSignerError(
        f"authority {authorities[0].name} signed, but may not sign {subject}; sign with another key, "
        "or add the model to the authority's models"
    )


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
