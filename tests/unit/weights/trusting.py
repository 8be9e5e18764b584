"""A policy of all three kinds of authorities, good bundles under it, and the places in a document to spoil."""

from collections.abc import Iterator
from typing import Any

from gptoss_api.policy import WeightTrustPolicySpec
from tests.unit.weights.builders import bundle, policy, private_key, public_pem
from tests.unit.weights.instance import Instance
from tests.unit.weights.pki import certificate_authority, issue, signed_bundle, signer

_ROOT, _INSTANCE = issue("root", authority=True), Instance()
GOOD: dict[str, dict[str, Any]] = {
    "key": bundle(),
    "chain": signed_bundle([signer("release", by=_ROOT), _ROOT]),
    "promised": _INSTANCE.sign(),
    "stamped": _INSTANCE.sign_stamped(),
}


def trusting(**spec: Any) -> WeightTrustPolicySpec:
    """Return a policy that trusts the signer of each good bundle."""
    return policy(
        authorities=[
            {"name": "key", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_pem(private_key())}},
            certificate_authority(_ROOT),
            _INSTANCE.authority(),
        ],
        **spec,
    )


def paths_in(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each value of a JSON document stands, containers before what they hold."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths_in(value, (*path, key))
