"""How much each tenant may ask of this process: requests and tokens a minute, and requests at once.

A limit refills evenly over the minute, so a tenant that used it up is let in again after a moment, not at
the next full minute. What is over a limit is refused at once and costs nothing; nobody waits here. The
counts belong to one process: tenants of several gateways have each of them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gptoss_gateway.errors import Limit, RateLimitedError
from gptoss_gateway.keys import Caller, TenantLimits

_MINUTE = 60.0


@dataclass(kw_only=True)
class _Bucket:
    """An amount that refills to ``limit`` within a minute; ``level`` is what is left of it at ``at``."""

    limit: int
    level: float
    at: float

    def follow(self, limit: int, now: float) -> None:
        """Refill up to now, and take over a limit that an administrator changed."""
        level = self.level + max(0.0, now - self.at) * self.limit / _MINUTE
        self.limit, self.level, self.at = limit, min(level, float(limit)), now

    def seconds_until(self, level: float) -> float:
        return max(0.0, level - self.level) * _MINUTE / self.limit

    def headers(self, what: str) -> dict[str, str]:
        return {
            f"x-ratelimit-limit-{what}": str(self.limit),
            f"x-ratelimit-remaining-{what}": str(max(0, math.floor(self.level))),
            f"x-ratelimit-reset-{what}": _duration(self.seconds_until(float(self.limit))),
        }


@dataclass(kw_only=True)
class _Account:
    running: int = 0
    requests: _Bucket | None = None
    tokens: _Bucket | None = None


class Limiter:
    """Every tenant's use, by name, so that a reload of the keys file forgets nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @contextlib.contextmanager
    def admitted(self, caller: Caller) -> Iterator[dict[str, str]]:
        """Count a request while it runs; gives the headers that tell its client where it stands.

        Raises:
            RateLimitedError: the tenant is at one of its limits.
        """
        limits = caller.limits
        account = self._accounts.setdefault(caller.tenant, _Account())
        self._follow(account, limits)
        if limits.concurrent is not None and account.running >= limits.concurrent:
            raise RateLimitedError(
                f"{limits.concurrent} requests of {caller.tenant!r} are open at this gateway, as many as its "
                "limits.concurrent allows: wait for one to end.",
                limit=Limit.CONCURRENT,
                tenant=caller.tenant,
                code="concurrency_limit_exceeded",
                retry_after=1,
                headers=self._headers(account, limits),
            )
        if account.tokens is not None and account.tokens.level <= 0:
            raise RateLimitedError(
                f"{caller.tenant!r} has used up its {account.tokens.limit} tokens a minute at this gateway "
                "(limits.tokensPerMinute): try again later.",
                limit=Limit.TOKENS,
                tenant=caller.tenant,
                retry_after=account.tokens.seconds_until(1),
                headers=self._headers(account, limits),
            )
        if account.requests is not None:
            if account.requests.level < 1:
                raise RateLimitedError(
                    f"{caller.tenant!r} has used up its {account.requests.limit} requests a minute at this gateway "
                    "(limits.requestsPerMinute): try again later.",
                    limit=Limit.REQUESTS,
                    tenant=caller.tenant,
                    retry_after=account.requests.seconds_until(1),
                    headers=self._headers(account, limits),
                )
            account.requests.level -= 1
        account.running += 1
        try:
            yield self._headers(account, limits)
        finally:
            account.running -= 1

    def charge(self, tenant: str, tokens: int) -> None:
        """Take off what a request has used."""
        account = self._accounts.get(tenant)
        if account is not None and account.tokens is not None:
            account.tokens.follow(account.tokens.limit, self._clock())
            account.tokens.level -= tokens

    def sweep(self) -> None:
        """Forget tenants that owe nothing and have nothing open; called once a second."""
        now = self._clock()
        for tenant, account in tuple(self._accounts.items()):
            buckets = [bucket for bucket in (account.requests, account.tokens) if bucket is not None]
            for bucket in buckets:
                bucket.follow(bucket.limit, now)
            if not account.running and all(bucket.level >= bucket.limit for bucket in buckets):
                del self._accounts[tenant]

    def _follow(self, account: _Account, limits: TenantLimits) -> None:
        account.requests = self._bucket(account.requests, limits.requests_per_minute)
        account.tokens = self._bucket(account.tokens, limits.tokens_per_minute)

    def _bucket(self, bucket: _Bucket | None, limit: int | None) -> _Bucket | None:
        if limit is None:
            return None
        now = self._clock()
        if bucket is None:
            return _Bucket(limit=limit, level=float(limit), at=now)
        bucket.follow(limit, now)
        return bucket

    @staticmethod
    def _headers(account: _Account, limits: TenantLimits) -> dict[str, str]:
        headers: dict[str, str] = {}
        if account.requests is not None:
            headers |= account.requests.headers("requests")
        if account.tokens is not None:
            headers |= account.tokens.headers("tokens")
        if limits.concurrent is not None:
            headers["x-ratelimit-limit-concurrent"] = str(limits.concurrent)
            headers["x-ratelimit-remaining-concurrent"] = str(max(0, limits.concurrent - account.running))
        return headers


def _duration(seconds: float) -> str:
    """Write a duration as OpenAI's API does: ``120ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
