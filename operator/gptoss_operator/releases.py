"""Keeps the highest accepted release of each model in its policy's status, before anything starts with it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from gptoss_api.policy import AcceptedRelease, WeightTrustPolicySpec, WeightTrustPolicyStatus
from gptoss_operator.boundary import Kubernetes
from gptoss_operator.cache import Cache, Kind
from gptoss_operator.leadership import Leadership
from gptoss_weights.errors import InvalidPolicyError, PolicyNotFoundError
from gptoss_weights.releases import check_release

_MOST = 128
"""Models that a policy's status remembers; the bound of its schema."""


class ReleaseLedger:
    """Writes what was accepted into policies' status. Who may not write, starts nothing and records nothing."""

    def __init__(
        self,
        *,
        cache: Cache,
        kubernetes: Kubernetes,
        leadership: Leadership,
        seen: Callable[[Kind, Mapping[str, Any]], None],
    ) -> None:
        self._cache = cache
        self._kubernetes = kubernetes
        self._leadership = leadership
        self._seen = seen
        self._lock = asyncio.Lock()

    async def record(self, policy: str, *, model: str, manifest_digest: str, wall: str) -> None:
        """Record a release as the highest accepted one, unless it is already.

        Raises:
            TrustError: a higher one was accepted meanwhile, or the policy is gone or can't be read.
            KubeError: the API server did not take it, or the policy was changed meanwhile.
        """
        async with self._lock:
            raw = self._cache.get(Kind.POLICY, "", policy)
            if raw is None:
                raise PolicyNotFoundError(f"WeightTrustPolicy {policy} is gone; create it again")
            try:
                spec = WeightTrustPolicySpec.model_validate(raw["spec"])
                status = WeightTrustPolicyStatus.model_validate(raw.get("status") or {})
            except ValidationError as error:
                raise InvalidPolicyError(f"WeightTrustPolicy {policy} can't be read; mend it") from error
            if not check_release(spec, status, model=model, manifest_digest=manifest_digest):
                return
            if not self._leadership.may_write():
                return
            accepted = AcceptedRelease(model=model, manifest_digest=manifest_digest, accepted_at=wall)
            others = [each for each in status.releases if each.model != model]
            if len(others) >= _MOST:
                listed = {each.model for each in spec.releases}
                others = [each for each in others if each.model in listed]
            new = WeightTrustPolicyStatus(releases=(*others, accepted))
            written = await self._kubernetes.write_policy_status(raw, new.model_dump(by_alias=True, mode="json"))
        self._seen(Kind.POLICY, written)
