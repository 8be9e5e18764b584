"""Against rollback: an old release stays validly signed for ever, so its place in the order of releases counts."""

from gptoss_api.policy import WeightTrustPolicySpec, WeightTrustPolicyStatus
from gptoss_weights.errors import InvalidPolicyError, RollbackError, UnlistedReleaseError


def check_release(
    policy: WeightTrustPolicySpec, accepted: WeightTrustPolicyStatus, *, model: str, manifest_digest: str
) -> bool:
    """Check a manifest against the releases of its model; return whether it is the highest so far.

    Raises:
        UnlistedReleaseError: the model's releases are listed, and this is none of them.
        RollbackError: a higher one was accepted before.
        InvalidPolicyError: the one that was accepted before is not listed any more, so nothing can be compared.
    """
    releases = next((each for each in policy.releases if each.model == model), None)
    if releases is None:
        return False
    # Listed twice, the last place counts: that is how an administrator goes back.
    place = {digest: index for index, digest in enumerate(releases.manifest_digests)}
    if manifest_digest not in place:
        raise UnlistedReleaseError(
            f"manifest {manifest_digest} is not among the WeightTrustPolicy's releases of {model}; "
            "release it there, or put a released one back"
        )
    highest = next((each.manifest_digest for each in accepted.releases if each.model == model), None)
    if highest is None:
        return True
    if highest not in place:
        raise InvalidPolicyError(
            f"release {highest} of {model} was accepted before and is not listed any more; "
            "put it back into the policy's releases, before the ones that may follow it"
        )
    if place[manifest_digest] < place[highest]:
        raise RollbackError(
            f"manifest {manifest_digest} of {model} is older than {highest}, which was accepted before; "
            "publish the newer one, or list the older one again, last, to go back"
        )
    return manifest_digest != highest
