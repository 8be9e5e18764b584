"""Signature and policy, checked before anything is started and looked at again while it matters.

Checks block, so they run in threads; a reconcile reads what the last one found and is called again
when that changes. What fails is looked at again after 30 s, then ever less often up to 10 min.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from weakref import WeakValueDictionary

from pydantic import ValidationError

from gptoss_api.conditions import Reason, TrustReason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.deployment_status import WeightsStatus
from gptoss_api.names import CREDENTIALS_SECRET, RETRY_ANNOTATION
from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec, WeightTrustPolicyStatus
from gptoss_kube.errors import KubeError
from gptoss_operator.cache import Cache, Kind
from gptoss_operator.clock import Clock
from gptoss_operator.keys import DeploymentKey
from gptoss_operator.metrics import Metrics
from gptoss_operator.plan.observation import Distrusted, Revocation, Trust, Trusted
from gptoss_operator.releases import ReleaseLedger
from gptoss_operator.signature_check import Check, policy_of
from gptoss_operator.threads import Threads, Turn
from gptoss_weights.errors import AccessDeniedError, SourceError, WeightsError
from gptoss_weights.policy import revocation

_log = logging.getLogger(__name__)
_WITH_CREDENTIALS = ("s3://", "az://", "hf://")
FIRST_LOOK_SECONDS = 30.0
LAST_LOOK_SECONDS = 600.0
_CHECK_SECONDS = 120.0
_CHECKS_AT_ONCE = 8
_CHECKS_OF_A_NAMESPACE = 4
"""Sources that hang are those of whoever named them: other namespaces' checks go on."""
_ANEW_SECONDS = 30.0
"""What a check has to find what runs signed anew by somebody else, before the denial of its signer counts."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything a check's answer depends on, but the source itself."""

    uid: str
    generation: int
    policies: int
    labels: frozenset[tuple[str, str]]
    retry: str | None


@dataclass
class _Entry:
    question: Question
    answer: Trust = None
    look_at: float = 0.0
    pause: float = FIRST_LOOK_SECONDS
    task: asyncio.Task[None] | None = None


class TrustDesk:
    """Answers whether a deployment's weights are trusted, from memory, and keeps the memory fresh.

    Args:
        check: the blocking check.
        cache: holds policies and the namespaces' labels.
        changed: called with the key of a deployment whose answer has changed.
        ledger: records releases that were accepted, before an answer that accepts them is given.
        credentials: reads a namespace's own credentials, which count more than the operator's.
    """

    def __init__(
        self,
        *,
        check: Check,
        cache: Cache,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[DeploymentKey], object],
        ledger: ReleaseLedger,
        credentials: Callable[[str], Awaitable[Mapping[str, str]]],
    ) -> None:
        self._check = check
        self._cache = cache
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._ledger = ledger
        self._credentials = credentials
        self._entries: dict[DeploymentKey, _Entry] = {}
        self._denied_since: dict[DeploymentKey, float] = {}
        self._parsed: tuple[int, list[WeightTrustPolicy]] | None = None
        self._turns: WeakValueDictionary[tuple[DeploymentKey, str], Turn] = WeakValueDictionary()
        self._threads = Threads(_CHECKS_AT_ONCE, name="trust", each=_CHECKS_OF_A_NAMESPACE)

    def answer(self, key: DeploymentKey, deployment: GptOssDeployment, *, eager: bool) -> tuple[Trust, float]:
        """Return what is known now, and seconds until another look is due.

        ``eager``: something waits for the source to be mended, so look more often.
        """
        question = Question(
            uid=deployment.uid,
            generation=deployment.generation,
            policies=self._cache.policies_version,
            labels=frozenset(self._cache.namespace_labels(deployment.namespace).items()),
            retry=deployment.annotations.get(RETRY_ANNOTATION),
        )
        entry = self._entries.get(key)
        if entry is None or entry.question != question:
            if entry is not None and entry.task is not None:
                entry.task.cancel()
            entry = self._entries[key] = _Entry(question=question)
        now = self._clock.now()
        if _lapsed(entry.answer, self._clock.wall()):
            # Nothing may start by the word of an authority that has come to its end meanwhile.
            entry.answer, entry.look_at = None, now
        if eager and isinstance(entry.answer, Trusted):
            entry.look_at = min(entry.look_at, now + entry.pause)
        if entry.task is None and now >= entry.look_at:
            entry.task = asyncio.get_running_loop().create_task(self._look(key, entry, deployment, eager=eager))
        return entry.answer, max(0.5, entry.look_at - now)

    def revocation(
        self, key: DeploymentKey, deployment: GptOssDeployment, running: WeightsStatus | None
    ) -> Revocation | None:
        """Return why the weights that a deployment runs, or ran last, are denied now.

        Asks the cached policies only, at every look: neither a source that can't be reached nor a check that is
        still under way hides it. But the same manifest may have been signed anew before its signer was denied, and
        only the check finds that: it has `_ANEW_SECONDS` for it, once.
        """
        found = self._denial(deployment, running)
        if found is None:
            self._denied_since.pop(key, None)
            return None
        now = self._clock.now()
        since = self._denied_since.setdefault(key, now)
        entry = self._entries.get(key)
        checked = entry is not None and entry.answer is not None
        signed_anew = found.reason != TrustReason.DENIED_DIGEST and not checked and now - since < _ANEW_SECONDS
        return None if signed_anew else found

    def forget(self, key: DeploymentKey) -> None:
        """The deployment is gone."""
        self._denied_since.pop(key, None)
        entry = self._entries.pop(key, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    async def close(self) -> None:
        """End all checks."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _denial(self, deployment: GptOssDeployment, running: WeightsStatus | None) -> Revocation | None:
        if running is None:
            return None
        try:
            policy = policy_of(deployment, self._policies(), self._cache)
        except (WeightsError, ValidationError):
            return None  # Nothing new starts without a readable policy; what runs goes on.
        found = revocation(
            policy.spec,
            manifest_digest=running.manifest_digest,
            signer=running.signer,
            identity=running.identity,
        )
        if found is None:
            return None
        return Revocation(reason=found.reason, message=found.message, drain=policy.spec.on_revoked == "Drain")

    async def _look(self, key: DeploymentKey, entry: _Entry, deployment: GptOssDeployment, *, eager: bool) -> None:
        before = entry.answer
        try:
            entry.answer = await self._ask(key, deployment, before)
        finally:
            entry.task = None
            settled = _settled(entry.answer) and not eager
            same = _settled(before) == _settled(entry.answer) and _source(before) == _source(entry.answer)
            again = before is not None and same and not settled
            entry.pause = min(LAST_LOOK_SECONDS, entry.pause * 2) if again else FIRST_LOOK_SECONDS
            entry.look_at = self._clock.now() + (LAST_LOOK_SECONDS if settled else entry.pause)
            entry.look_at = min(entry.look_at, self._clock.now() + _remaining(entry.answer, self._clock.wall()))
        # Called even if nothing changed: the reconcile then plans the next look.
        self._changed(key)

    async def _ask(self, key: DeploymentKey, deployment: GptOssDeployment, before: Trust) -> Trust:
        source = key, deployment.spec.model.uri
        try:
            await self._earlier_look(source)
            # Whoever waits for a turn waits for others' sources, which says nothing of their own.
            async with self._threads.turn(deployment.namespace) as turn, asyncio.timeout(_CHECK_SECONDS):
                self._turns[source] = turn
                policies, credentials = self._policies(), await self._credentials_for(deployment)
                found = await turn.run(self._check, deployment, policies, self._clock.wall(), credentials)
                if found.raises_release:
                    found = await self._recorded(found, deployment)
        except WeightsError as error:
            # A place that refuses or fails may be mended without a change of what is signed.
            no = Distrusted(reason=error.reason, message=error.message, retryable=isinstance(error, SourceError))
        except KubeError as error:
            no = Distrusted(
                reason=TrustReason.RELEASE_NOT_RECORDED,
                message="the release could not be recorded in the WeightTrustPolicy's status, so that a later rollback "
                f"would not be noticed ({type(error).__name__}); it is tried again",
                retryable=True,
            )
        except TimeoutError:
            no = Distrusted(
                reason=TrustReason.SOURCE_UNAVAILABLE,
                message="the source of the weights did not answer in time",
                retryable=True,
            )
        except ValidationError as error:
            no = Distrusted(
                reason=TrustReason.INVALID_POLICY,
                message="a WeightTrustPolicy can't be read "
                f"({error.error_count()} faults); an administrator must mend it",
            )
        except Exception:  # noqa: BLE001 - fail closed, whatever a library raises
            _log.exception("the check of %s failed", deployment.qualified_name)
            no = Distrusted(
                reason=TrustReason.SOURCE_UNAVAILABLE,
                message="the check of the weights failed; see the operator's log",
                retryable=True,
            )
        else:
            self._metrics.trust_checks.labels("Trusted" if found.waived is None else Reason.SIGNER_WAIVED).inc()
            if isinstance(before, Trusted) and replace(before, doubt=None, checked_at="") == replace(
                found, checked_at=""
            ):
                return replace(found, checked_at=before.checked_at)
            return found
        self._metrics.trust_checks.labels(no.reason).inc()
        if no.retryable and isinstance(before, Trusted):
            return replace(before, doubt=no)
        return no

    async def _earlier_look(self, source: tuple[DeploymentKey, str]) -> None:
        """Wait for the thread of an earlier look at the same source: one that hangs is not asked by a second one.

        Raises:
            TimeoutError: the source has had its time since that look began.
        """
        earlier = self._turns.get(source)
        if earlier is not None and earlier.began is not None and not earlier.ended.is_set():
            async with asyncio.timeout_at(earlier.began + _CHECK_SECONDS):
                await earlier.ended.wait()

    async def _credentials_for(self, deployment: GptOssDeployment) -> Mapping[str, str]:
        """Return the namespace's credentials where they are needed: asked for anew each time, and kept nowhere."""
        if not deployment.spec.model.uri.startswith(_WITH_CREDENTIALS):
            return {}
        try:
            return await self._credentials(deployment.namespace)
        except KubeError as error:
            raise AccessDeniedError(
                f"the Secret {CREDENTIALS_SECRET} of the namespace can't be read ({type(error).__name__}); "
                "the operator needs the right to get it by this name"
            ) from error

    async def _recorded(self, found: Trusted, deployment: GptOssDeployment) -> Trusted:
        await self._ledger.record(
            found.policy,
            model=deployment.spec.subject,
            manifest_digest=found.manifest_digest,
            wall=self._clock.wall(),
        )
        return replace(found, raises_release=False)

    def _policies(self) -> list[WeightTrustPolicy]:
        """Return all policies, parsed once per change; pydantic's ValidationError says what can't be read."""
        version = self._cache.policies_version
        if self._parsed is None or self._parsed[0] != version:
            policies = [
                WeightTrustPolicy(
                    name=raw["metadata"]["name"],
                    spec=WeightTrustPolicySpec.model_validate(raw["spec"]),
                    status=WeightTrustPolicyStatus.model_validate(raw.get("status") or {}),
                )
                for raw in self._cache.all(Kind.POLICY)
            ]
            self._parsed = version, policies
        return self._parsed[1]


def _remaining(answer: Trust, wall: str) -> float:
    """Return the seconds until an answer lapses."""
    if not isinstance(answer, Trusted) or answer.valid_until is None:
        return float("inf")
    return (answer.valid_until - datetime.fromisoformat(wall)).total_seconds()


def _lapsed(answer: Trust, wall: str) -> bool:
    return _remaining(answer, wall) <= 0


def _settled(answer: Trust) -> bool:
    return isinstance(answer, Trusted) and answer.doubt is None


def _source(answer: Trust) -> str | None:
    return answer.source if isinstance(answer, Trusted) else None
