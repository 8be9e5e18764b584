"""How much each tenant may ask of this process: requests and tokens a minute, and requests at once.

A limit refills evenly over the minute, so a tenant that used it up is let in again after a moment, not at
the next full minute. What is over a limit is refused at once and costs nothing; nobody waits here. The
counts belong to one process, and so does a share of each limit: all processes have the same one.
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
    """An amount of which ``share`` refills within a minute; ``level`` is what is left of it at ``at``."""

    share: float
    level: float
    at: float

    @property
    def most(self) -> float:
        """What it is full at. One is asked for at a time, however small the share."""
        return max(1.0, self.share)

    def follow(self, share: float, now: float) -> None:
        """Refill up to now, and take over a share that has changed."""
        level = self.level + max(0.0, now - self.at) * self.share / _MINUTE
        self.share, self.at = share, now
        self.level = min(level, self.most)

    def seconds_until(self, level: float) -> float:
        return max(0.0, level - self.level) * _MINUTE / self.share

    def headers(self, what: str) -> dict[str, str]:
        return {
            f"x-ratelimit-limit-{what}": str(math.floor(self.most)),
            f"x-ratelimit-remaining-{what}": str(max(0, math.floor(self.level))),
            f"x-ratelimit-reset-{what}": _duration(self.seconds_until(self.most)),
        }


@dataclass(kw_only=True)
class _Account:
    running: int = 0
    requests: _Bucket | None = None
    tokens: _Bucket | None = None


class Limiter:
    """Every tenant's use, by name, so that a reload of the keys file forgets nothing.

    ``processes`` tells among how many the limits are divided.
    """

    def __init__(self, clock: Callable[[], float], *, processes: Callable[[], int]) -> None:
        self._clock = clock
        self._processes = processes
        self._accounts: dict[str, _Account] = {}

    @contextlib.contextmanager
    def admitted(self, caller: Caller) -> Iterator[dict[str, str]]:
        """Count a request while it runs; gives the headers that tell its client where it stands.

        Raises:
            RateLimitedError: the tenant is at one of its limits.
        """
        limits, processes = caller.limits, self._processes()
        account = self._accounts.setdefault(caller.tenant, _Account())
        self._follow(account, limits, processes)
        at_once = None if limits.concurrent is None else math.ceil(limits.concurrent / processes)
        if at_once is not None and account.running >= at_once:
            raise RateLimitedError(
                f"{account.running} requests of {caller.tenant!r} are open at this gateway, as many as its "
                f"limits.concurrent ({_divided(limits.concurrent, processes)}) allows: wait for one to end.",
                limit=Limit.CONCURRENT,
                tenant=caller.tenant,
                code="concurrency_limit_exceeded",
                retry_after=1,
                headers=self._headers(account, at_once),
            )
        if account.tokens is not None and account.tokens.level <= 0:
            raise RateLimitedError(
                f"{caller.tenant!r} has used up its tokens a minute at this gateway "
                f"(limits.tokensPerMinute: {_divided(limits.tokens_per_minute, processes)}): try again later.",
                limit=Limit.TOKENS,
                tenant=caller.tenant,
                retry_after=account.tokens.seconds_until(1),
                headers=self._headers(account, at_once),
            )
        if account.requests is not None:
            if account.requests.level < 1:
                raise RateLimitedError(
                    f"{caller.tenant!r} has used up its requests a minute at this gateway "
                    f"(limits.requestsPerMinute: {_divided(limits.requests_per_minute, processes)}): try again later.",
                    limit=Limit.REQUESTS,
                    tenant=caller.tenant,
                    retry_after=account.requests.seconds_until(1),
                    headers=self._headers(account, at_once),
                )
            account.requests.level -= 1
        account.running += 1
        try:
            yield self._headers(account, at_once)
        finally:
            account.running -= 1

    def charge(self, tenant: str, tokens: int) -> None:
        """Take off what a request has used."""
        account = self._accounts.get(tenant)
        if account is not None and account.tokens is not None:
            account.tokens.follow(account.tokens.share, self._clock())
            account.tokens.level -= tokens

    def sweep(self) -> None:
        """Forget tenants that owe nothing and have nothing open; called once a second."""
        now = self._clock()
        for tenant, account in tuple(self._accounts.items()):
            buckets = [bucket for bucket in (account.requests, account.tokens) if bucket is not None]
            for bucket in buckets:
                bucket.follow(bucket.share, now)
            if not account.running and all(bucket.level >= bucket.most for bucket in buckets):
                del self._accounts[tenant]

    def _follow(self, account: _Account, limits: TenantLimits, processes: int) -> None:
        account.requests = self._bucket(account.requests, limits.requests_per_minute, processes)
        account.tokens = self._bucket(account.tokens, limits.tokens_per_minute, processes)

    def _bucket(self, bucket: _Bucket | None, limit: int | None, processes: int) -> _Bucket | None:
        if limit is None:
            return None
        share, now = limit / processes, self._clock()
        if bucket is None:
            return _Bucket(share=share, level=max(1.0, share), at=now)
        bucket.follow(share, now)
        return bucket

    @staticmethod
    def _headers(account: _Account, at_once: int | None) -> dict[str, str]:
        headers: dict[str, str] = {}
        if account.requests is not None:
            headers |= account.requests.headers("requests")
        if account.tokens is not None:
            headers |= account.tokens.headers("tokens")
        if at_once is not None:
            headers["x-ratelimit-limit-concurrent"] = str(at_once)
            headers["x-ratelimit-remaining-concurrent"] = str(max(0, at_once - account.running))
        return headers


def _divided(limit: int | None, processes: int) -> str:
    return f"{limit}" if processes == 1 else f"{limit}, divided among {processes} gateway processes"


def _duration(seconds: float) -> str:
    """Write a duration as OpenAI's API does: ``120ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
