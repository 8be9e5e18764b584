"""The substrate of KubeRay: each deployment is worked on for itself, under its own key.

What is asked for is written to the RayService; what is seen of it, of its pods and of the engine's own
answers becomes the same view that the Ray Serve substrate gives.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.kuberay import engine_service
from gptoss_kube.errors import Forbidden, Invalid, StatusError
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.keys import DeploymentKey, Key, RayServiceKey
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.leadership import Leadership
from gptoss_operator.plan.applications import Keep, Present, Wish
from gptoss_operator.plan.observation import ApplicationView, Hardware, Presence
from gptoss_operator.plan.rayservice.render import CLUSTER_LABEL, NOWHERE, Rendered, leading_to, serve_config
from gptoss_operator.plan.rayservice.workload import UID_LABEL, Raw
from gptoss_operator.substrates.kuberay.follow import KubeRayObjects
from gptoss_operator.substrates.kuberay.nodes import hardware_for
from gptoss_operator.substrates.kuberay.pods import advice_on, fetching_at
from gptoss_operator.substrates.kuberay.seen import SeenRayService, seen_rayservice
from gptoss_operator.substrates.kuberay.steps import Step, leads_to, next_step
from gptoss_operator.substrates.kuberay.traits import (
    cluster_of,
    takes_requests,
)
from gptoss_operator.substrates.kuberay.views import asleep_view, awake_view
from gptoss_operator.substrates.probes import Probes
from gptoss_operator.substrates.protocol import Outcome
from gptoss_operator.substrates.pulls import Pulling, Pulls

MOVING_SECONDS = 1.0
SETTLED_SECONDS = 15.0
RESTING_SECONDS = 300.0
MISSING_SECONDS = 5.0
REFUSED_SECONDS = 30.0
MENDING_SECONDS = 10.0
"""Between two repairs around one deployment: whoever changes things again and again is not fought harder."""


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """What the API server does not take; until then (the loop's time) it is not asked again for the same."""

    wish: Wish | None
    message: str
    until: float


@dataclass
class _Kept:
    """What is kept in mind of one RayService.

    Attributes:
        generation: the last one that was written here.
        leads: the Ray cluster that the deployment's Service leads to: "" is none, None is not known.
        given_up: Ray clusters whose applications no longer count, for they were told to sleep.
        refusal: why the API server does not take the RayService.
        unmended: why it does not take what stands around it.
        mended_at: when that was last put back, in the loop's time.
    """

    generation: int | None = None
    leads: str | None = None
    given_up: frozenset[str] = frozenset()
    refusal: _Refusal | None = None
    unmended: _Refusal | None = None
    mended_at: float = -MENDING_SECONDS


class KubeRay:
    """All deployments that KubeRay runs."""

    def __init__(
        self,
        settings: KubeRaySettings,
        objects: KubeRayObjects,
        *,
        tokens: AcceptedTokens,
        ask_engine: Callable[[str], Awaitable[bool]],
        read_report: Callable[[str, str], Awaitable[str | None]],
        leadership: Leadership,
        news: Callable[[RayServiceKey], object],
    ) -> None:
        """``ask_engine`` tells whether an engine answers under a URL.

        ``read_report`` gets a pod's address and the name of a report on its pull, and returns its text, None if it
        does not answer so.
        """
        self._settings = settings
        self._objects = objects
        self._tokens = tokens
        self._leadership = leadership
        self._wishes: dict[DeploymentKey, Wish] = {}
        self._views: dict[DeploymentKey, ApplicationView] = {}
        self._kept: defaultdict[RayServiceKey, _Kept] = defaultdict(_Kept)
        self._urls: dict[str, str] = {}
        self._pulling: dict[str, Pulling] = {}
        self._probes = Probes(ask=ask_engine, news=lambda: self._answered(news))
        self._pulls = Pulls(read=read_report, news=lambda: self._answered(news))

    async def start(self) -> None:
        """Begin to follow RayServices and pods."""
        await self._objects.start()

    async def close(self) -> None:
        """End what runs beside reconciles."""
        await self._probes.close()
        await self._pulls.close()
        await self._objects.close()

    def key(self, deployment: DeploymentKey) -> Key:
        """Return the key under which a deployment is worked on."""
        return RayServiceKey(deployment.namespace, deployment.name)

    def ask(self, key: DeploymentKey, wish: Wish) -> None:
        """Remember what a deployment wants."""
        self._wishes[key] = wish

    def asked(self, key: DeploymentKey) -> Wish | None:
        """Return what it wants, None if it was never planned by this process."""
        return self._wishes.get(key)

    def forget(self, key: DeploymentKey) -> bool:
        """The deployment is gone; Kubernetes takes away what it owned."""
        rayservice = RayServiceKey(key.namespace, key.name)
        self._views.pop(key, None)
        self._kept.pop(rayservice, None)
        self._urls.pop(str(key), None)
        self._pulling.pop(str(key), None)
        self._probes.forget(str(key))
        self._objects.children.forget(rayservice)
        return self._wishes.pop(key, None) is not None

    def view(self, key: DeploymentKey) -> ApplicationView:
        """Return what was last seen of a deployment's application."""
        view = self._view(key)
        return replace(view, flaw=self._objects.flaw() or self._tokens.fault() or view.flaw)

    def hardware(self, deployment: GptOssDeployment) -> Hardware | None:
        """Return the accelerators that a deployment may run on, None if nodes were not looked at yet."""
        nodes = self._objects.nodes()
        return hardware_for(deployment.spec, self._settings, nodes) if nodes is not None else None

    def _view(self, key: DeploymentKey) -> ApplicationView:
        trouble = self._objects.trouble() or (None if self._tokens.hashes() else self._tokens.fault())
        if trouble is not None or not self._objects.synced:
            return ApplicationView(trouble=trouble)
        rayservice = RayServiceKey(key.namespace, key.name)
        seen = self._seen(rayservice)
        kept = self._kept[rayservice]
        refusal = kept.refusal or kept.unmended
        if refusal is not None:
            trouble = (Reason.CONFIGURATION_REFUSED, refusal.message)
        if seen is not None and seen.owner_uid is None:
            conflict = (
                f"there is a RayService {key} that this operator did not make; remove it or give this deployment "
                "another name"
            )
            return ApplicationView(presence=Presence.ABSENT, conflict=conflict)
        pods = self._objects.pods(rayservice)
        if seen is None or seen.suspend or seen.deleting:
            return asleep_view(seen, pods, trouble=trouble, waited_for=self._waits_for_pods(key))
        return awake_view(
            seen,
            pods,
            leads=kept.leads or None,
            given_up=kept.given_up,
            answering=self._probes.answering(str(key)),
            pull=self._pulls.of(str(key)),
            trouble=trouble,
        )

    def _waits_for_pods(self, key: DeploymentKey) -> bool:
        """Tell whether what is wanted starts only once nothing of what was before is left."""
        wish = self._wishes.get(key)
        return isinstance(wish, Present) and wish.rendered is not None and not wish.rendered.blue_green

    async def reconcile(self, key: Key, *, complete: Callable[[], bool]) -> Outcome:  # noqa: ARG002 - all are alone
        """Look at one deployment's RayService, and bring about what is wanted; raises KubeError."""
        if not isinstance(key, RayServiceKey):
            raise TypeError(f"{key} is no RayService")
        deployment = DeploymentKey(key.namespace, key.name)
        await self._objects.look_at_version()
        if self._objects.trouble() is not None or not self._objects.synced:
            missing = self._objects.trouble() is not None
            return self._outcome(deployment, look_again=MISSING_SECONDS if missing else MOVING_SECONDS)
        wrote = await self._step(key, self._wishes.get(deployment))
        wrote |= await self._lead(key, self._wishes.get(deployment))
        wrote |= await self._mend(key, self._wishes.get(deployment))
        self._look(deployment, key)
        wish = self._wishes.get(deployment)
        outcome = self._outcome(deployment, look_again=self._look_again(deployment, key, wish), wrote=wrote)
        if wish is None and self._seen(key) is None:
            self.forget(deployment)  # or every deployment that ever was would be looked at, and kept in mind, for ever
            return replace(outcome, look_again=None)
        return outcome

    def _look_again(self, deployment: DeploymentKey, key: RayServiceKey, wish: Wish | None) -> float:
        if isinstance(wish, Present) and not self._settled(deployment):
            return MOVING_SECONDS
        seen = self._seen(key)
        asleep = seen is None or seen.suspend
        # News of a sleeping one comes by itself; a thousand of them cost nothing.
        return RESTING_SECONDS if asleep and not isinstance(wish, Present) else SETTLED_SECONDS

    async def _step(self, key: RayServiceKey, wish: Wish | None) -> bool:
        seen, kept = self._seen(key), self._kept[key]
        if kept.refusal is not None and kept.refusal.wish != wish:
            kept.refusal = None  # nobody asks for that any more
        if seen is not None and isinstance(wish, Present) and not _is_for(seen, wish):
            return False  # another's, or an earlier deployment's on its way out
        pods_left = bool(self._objects.pods(key))
        step = next_step(wish, seen, applied_generation=kept.generation, pods_left=pods_left)
        if step in {Step.NOTHING, Step.WAIT} or not self._leadership.may_write():
            return False
        if kept.refusal is not None and asyncio.get_running_loop().time() < kept.refusal.until:
            return False
        try:
            await self._write(key, step, wish, seen)
        except (Invalid, Forbidden) as error:
            kept.refusal = _refusal(wish, error)
            return False
        kept.refusal = None
        written = self._seen(key)
        if written is not None:
            kept.generation = written.generation
        return True

    async def _write(self, key: RayServiceKey, step: Step, wish: Wish | None, seen: SeenRayService | None) -> None:
        if step is Step.SUSPEND and seen is not None:
            self._kept[key].given_up = frozenset(seen.applications)
            await self._lead_nowhere(key)
            await self._objects.patch(key, {"suspend": True}, uid=seen.uid)
            return
        if step is Step.RECONFIGURE and seen is not None and isinstance(wish, Present):
            application = {name: value for name, value in wish.config.items() if name != "revision"}
            await self._objects.patch(key, {"serveConfigV2": serve_config(application)}, uid=seen.uid)
            return
        if not isinstance(wish, Present) or wish.rendered is None:
            return
        rendered = wish.rendered
        if seen is None or seen.suspend or step is Step.APPLY_SUSPENDED:
            # Whatever answered is not what is meant now.
            self._probes.forget(str(DeploymentKey(key.namespace, key.name)))
        await self._surroundings(rendered)
        if step is Step.RESUME and seen is not None:
            await self._objects.patch(key, {"suspend": False}, uid=seen.uid)
            return
        document = rendered.rayservice
        if step is Step.APPLY_SUSPENDED:
            await self._lead_nowhere(key)
            document = {**document, "spec": {**document["spec"], "suspend": True}}
        await self._objects.apply_rayservice(document)

    async def _surroundings(self, rendered: Rendered) -> None:
        """Bring about everything around a RayService; it is there before the first pod."""
        token = {**rendered.rayservice["metadata"], "name": rendered.token_secret}
        token.pop("annotations", None)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._objects.make_token(token))
                for document in rendered.others:
                    group.create_task(self._objects.children.apply(document))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _lead(self, key: RayServiceKey, wish: Wish | None) -> bool:
        """Let the deployment's Service lead to the cluster that serves."""
        if not isinstance(wish, Present) or wish.rendered is None or not self._leadership.may_write():
            return False
        seen = self._seen(key)
        if seen is None or not _is_for(seen, wish):
            return False
        kept = self._kept[key]
        before = kept.leads or None
        serving = frozenset(cluster_of(pod) for pod in self._objects.pods(key) if takes_requests(pod))
        to = leads_to(seen, before, serving)
        if kept.leads is not None and to == before:
            return False
        await self._objects.children.apply(leading_to(wish.rendered.service, to))
        kept.leads = to or ""
        if to != before:
            self._probes.forget(str(DeploymentKey(key.namespace, key.name)))
        return True

    async def _mend(self, key: RayServiceKey, wish: Wish | None) -> bool:
        """Put back what others took away or changed around a RayService that is awake."""
        amiss, now = self._objects.children.amiss(self._around(key, wish)), asyncio.get_running_loop().time()
        kept = self._kept[key]
        if not amiss:
            kept.unmended = None
            return False
        if now < kept.mended_at + MENDING_SECONDS or not self._leadership.may_write():
            return False
        kept.mended_at = now
        try:
            for document in amiss:
                await self._objects.children.apply(document)
        except (Invalid, Forbidden) as error:
            kept.unmended = _refusal(wish, error)
            return False
        kept.unmended = None
        return True

    def _around(self, key: RayServiceKey, wish: Wish | None) -> list[Raw]:
        """Return what should stand around a RayService: nothing unless it is awake."""
        seen = self._seen(key)
        if seen is None or seen.suspend or seen.deleting:
            return []
        if not isinstance(wish, Present) or wish.rendered is None:
            tokens = wish.gateway_tokens if isinstance(wish, Present | Keep) else None
            # Only what runs on by itself needs them: of all else around it nobody can say how it should be.
            return [dict(tokens)] if tokens and tokens["metadata"]["labels"][UID_LABEL] == seen.owner_uid else []
        if not _is_for(seen, wish):
            return []
        leads = self._kept[key].leads
        service = [leading_to(wish.rendered.service, leads or None)] if leads is not None else []
        return [*wish.rendered.others, *service]

    async def _lead_nowhere(self, key: RayServiceKey) -> None:
        await self._objects.lead_nowhere(key.namespace, engine_service(key.name), {CLUSTER_LABEL: NOWHERE})
        self._kept[key].leads = ""

    def _look(self, deployment: DeploymentKey, key: RayServiceKey) -> None:
        name = str(deployment)
        if self._kept[key].leads:
            self._urls[name] = self._settings.engine_url(key.namespace, key.name)
        else:
            self._urls.pop(name, None)
        pulling = self._fetching(key)
        if pulling is not None:
            self._pulling[name] = pulling
        else:
            self._pulling.pop(name, None)
        self._pulls.look(self._pulling)
        steady = {other for other in self._urls if other != name}
        self._probes.look(self._urls, steady=steady if not self._settled(deployment) else self._urls.keys())

    def _fetching(self, key: RayServiceKey) -> Pulling | None:
        """Return where weights are fetched now for what starts."""
        seen = self._seen(key)
        if seen is None or seen.suspend or seen.newest is None:
            return None
        addresses = fetching_at(pod for pod in self._objects.pods(key) if cluster_of(pod) == seen.newest)
        return Pulling.of(seen.config, addresses)

    def _answered(self, news: Callable[[RayServiceKey], object]) -> None:
        for deployment in self._wishes:
            asked = str(deployment) in self._urls or str(deployment) in self._pulling
            if asked and self._views.get(deployment) != self.view(deployment):
                news(RayServiceKey(deployment.namespace, deployment.name))

    def _settled(self, deployment: DeploymentKey) -> bool:
        view = self.view(deployment)
        return view.answering is True and view.status == "RUNNING" and view.failure is None

    def _seen(self, key: RayServiceKey) -> SeenRayService | None:
        raw = self._objects.rayservice(key)
        return seen_rayservice(raw) if raw is not None else None

    def _outcome(self, deployment: DeploymentKey, *, look_again: float, wrote: bool = False) -> Outcome:
        view = self.view(deployment)
        changed = frozenset({deployment}) if self._views.get(deployment) != view else frozenset()
        self._views[deployment] = view
        return Outcome(changed=changed, look_again=look_again, wrote=wrote, trouble=self._objects.trouble())


def _refusal(wish: Wish | None, error: StatusError) -> _Refusal:
    # A right, a quota or an admission policy may change without us, and both errors may be a policy's.
    until = asyncio.get_running_loop().time() + REFUSED_SECONDS
    text = f"the API server refuses what is asked of KubeRay: {error}"[:600].rstrip(".")
    return _Refusal(wish=wish, message=f"{text}; {advice_on(str(error))}", until=until)


def _is_for(seen: SeenRayService, wish: Present) -> bool:
    if wish.rendered is None:
        return seen.owner_uid is not None
    return bool(seen.owner_uid == wish.rendered.rayservice["metadata"]["labels"][UID_LABEL])
