"""Replicas on an existing Ray cluster, shared by many deployments and by strangers.

Deployments ask; one reconcile of the cluster looks, merges all wishes into the cluster's one
configuration and writes it if it differs. What it sees flows back to the deployments it concerns.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gptoss_api.application import ROUTER_DEPLOYMENT, is_ours
from gptoss_api.clusters import RayCluster
from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.names import application_name, route_prefix
from gptoss_api.pull_report import MAX_REPORT_BYTES
from gptoss_operator.keys import ClusterKey, DeploymentKey, Key
from gptoss_operator.leadership import Leadership
from gptoss_operator.plan.applications import (
    DELETING,
    DEPLOY_FAILED,
    Keep,
    Present,
    Wish,
    covers,
    plan_cluster,
)
from gptoss_operator.plan.observation import FETCHING, ApplicationView, Failure, Hardware, Presence
from gptoss_operator.substrates.dashboard import ClusterError, ClusterRefusedError, RayDashboard
from gptoss_operator.substrates.failures import failure_of
from gptoss_operator.substrates.nodes import hardware_of
from gptoss_operator.substrates.probes import Probes
from gptoss_operator.substrates.protocol import Outcome
from gptoss_operator.substrates.pulls import Pulling, Pulls

MOVING_SECONDS = 1.0
SETTLED_SECONDS = 15.0
_AFTER_WRITE_SECONDS = 0.3
NODES_SECONDS = 15.0
"""Between two looks at the cluster's nodes."""


class RayServe:
    """The substrate of one Ray cluster."""

    def __init__(
        self,
        cluster: RayCluster,
        *,
        installation: str,
        dashboard: RayDashboard,
        leadership: Leadership,
        news: Callable[[], object],
    ) -> None:
        self._cluster = cluster
        self._installation = installation
        self._dashboard = dashboard
        self._leadership = leadership
        self._wishes: dict[DeploymentKey, Wish] = {}
        self._views: dict[DeploymentKey, ApplicationView] = {}
        self._details: Mapping[str, Any] | None = None
        self._failed_attempts: dict[str, int] = {}
        self._news = news
        self._probes = Probes(ask=dashboard.answers, news=news)
        self._pulls = Pulls(read=partial(dashboard.small_log, limit=MAX_REPORT_BYTES), news=news)
        self._trouble: tuple[str, str] | None = None
        self._unreachable = 0
        self._hardware: Hardware | None = None
        self._told_hardware: Hardware | None = None
        self._nodes_due = 0.0
        self._learning: asyncio.Task[None] | None = None
        self._conflicts: Mapping[str, str] = {}
        self._losers: Mapping[DeploymentKey, DeploymentKey] = {}

    def key(self, deployment: DeploymentKey) -> Key:  # noqa: ARG002 - all share one configuration
        """Return the cluster's key."""
        return ClusterKey(self._cluster.name)

    def ask(self, key: DeploymentKey, wish: Wish) -> None:
        """Remember what a deployment wants."""
        self._wishes[key] = wish

    def asked(self, key: DeploymentKey) -> Wish | None:
        """Return what it wants, None if it was never planned by this process."""
        return self._wishes.get(key)

    def forget(self, key: DeploymentKey) -> bool:
        """The deployment is gone: what it had may go too."""
        self._views.pop(key, None)
        return self._wishes.pop(key, None) is not None

    def view(self, key: DeploymentKey) -> ApplicationView:
        """Return what was last seen of a deployment's application."""
        if self._details is None:
            return ApplicationView(trouble=self._trouble)
        name = self._name(key)
        application = self._details["applications"].get(name)
        conflict = self._conflict(key, name)
        if application is None or application.get("status") == DELETING or conflict is not None:
            return ApplicationView(presence=Presence.ABSENT, conflict=conflict, trouble=self._trouble)
        config = application.get("deployed_app_config")
        if config is None or not is_ours({**config, "name": name}, self._installation):
            return ApplicationView(presence=Presence.ABSENT, trouble=self._trouble)
        ready, wanted = _replicas(application)
        pull = self._pulls.of(name)
        return ApplicationView(
            presence=Presence.PRESENT,
            status=str(application.get("status") or ""),
            deployed=config,
            answering=self._probes.answering(name),
            failure=self._failure(key, name, application),
            ready=ready,
            wanted=wanted,
            obstacle=FETCHING if pull is not None else None,
            pull=pull,
            trouble=self._trouble,
        )

    def hardware(self, deployment: GptOssDeployment) -> Hardware | None:  # noqa: ARG002 - the same for all
        """Return the cluster's accelerators, None if they were not looked at yet."""
        return self._hardware

    async def close(self) -> None:
        """End what runs beside reconciles."""
        await self._probes.close()
        await self._pulls.close()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait({self._learning})

    async def reconcile(self, key: Key, *, complete: Callable[[], bool]) -> Outcome:  # noqa: ARG002 - its own
        """Look at the cluster, and bring about what is wanted."""
        try:
            details = await self._dashboard.applications()
        except ClusterError as error:
            self._details, self._conflicts = None, {}
            self._trouble = (Reason.CLUSTER_UNREACHABLE, f"{error}; what was known of it is kept.")
            return self._failed()
        self._unreachable = 0
        await self._look_at_nodes()
        self._details = details
        claims = self._claims(details)
        self._losers = {key: claims[self._name(key)] for key in self._wishes if claims[self._name(key)] != key}
        self._note_failures(details, claims)
        planned = plan_cluster(
            details,
            {name: self._wishes[key] for name, key in claims.items()},
            self._failed_attempts,
            installation=self._installation,
            complete=complete,
            http_options=self._http_options(),
        )
        self._conflicts, self._trouble = planned.conflicts, planned.trouble
        wrote = planned.document is not None and self._leadership.may_write()
        if planned.document is not None and wrote:
            # From here on what it takes away must not be taken for something that serves.
            self._details = self._expected(details, planned.document)
            try:
                await self._dashboard.put_applications(planned.document, within=self._leadership.write_seconds())
            except ClusterError as error:
                self._details = details
                refused = isinstance(error, ClusterRefusedError)
                reason = Reason.CONFIGURATION_REFUSED if refused else Reason.CLUSTER_UNREACHABLE
                self._trouble = (reason, f"{error}; it is tried again.")
                return self._failed()
        self._probes.look(self._prefixes(self._details), steady=_running(self._details))
        self._pulls.look(self._starting(self._details))
        silent = any(
            isinstance(wish, Present) and self._probes.answering(self._name(key)) is not True
            for key, wish in self._wishes.items()
        )
        moving = planned.moving or silent
        return self._outcome(
            look_again=_AFTER_WRITE_SECONDS if wrote else MOVING_SECONDS if moving else SETTLED_SECONDS, wrote=wrote
        )

    async def _look_at_nodes(self) -> None:
        """Have the cluster's accelerators learnt: once before anything is planned, later beside the reconcile."""
        now = asyncio.get_running_loop().time()
        if self._hardware is None:
            self._nodes_due = now + NODES_SECONDS
            await self._learn_nodes()
        elif now >= self._nodes_due and (self._learning is None or self._learning.done()):
            self._nodes_due = now + NODES_SECONDS
            self._learning = asyncio.create_task(self._learn_nodes(), name=f"nodes of {self._cluster.name}")

    async def _learn_nodes(self) -> None:
        # What an administrator says needs no look.
        nodes = await self._dashboard.nodes() if self._cluster.hardware is None else ()
        before = self._hardware
        if nodes is not None or before is None:
            self._hardware = hardware_of(self._cluster, nodes or ())
        if before not in (None, self._hardware):
            self._news()

    def _failed(self) -> Outcome:
        self._unreachable += 1
        return self._outcome(look_again=min(SETTLED_SECONDS, MOVING_SECONDS * self._unreachable))

    def _outcome(self, *, look_again: float, wrote: bool = False) -> Outcome:
        views = {key: self.view(key) for key in self._wishes}
        others = self._told_hardware != self._hardware
        changed = frozenset(key for key, view in views.items() if others or self._views.get(key) != view)
        self._views, self._told_hardware = views, self._hardware
        return Outcome(changed=changed, look_again=look_again, wrote=wrote, trouble=self._trouble)

    def _expected(self, details: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
        """What Ray will show once it has taken the document in; until then its old answer would mislead."""
        written = {config["name"]: config for config in document["applications"]}
        applications = {}
        for name, application in details["applications"].items():
            config = application.get("deployed_app_config")
            if name in written or config is None or not is_ours({**config, "name": name}, self._installation):
                applications[name] = application
        for name, config in written.items():
            known = applications.get(name)
            if known is None:
                self._probes.forget(name)
            if known is None or not covers(known.get("deployed_app_config"), config):
                deployments = (known or {}).get("deployments") or {}
                applications[name] = {"status": "DEPLOYING", "deployed_app_config": config, "deployments": deployments}
        return {**details, "applications": applications}

    def _conflict(self, key: DeploymentKey, name: str) -> str | None:
        winner = self._losers.get(key)
        if winner is not None:
            return f"{winner} has the same application name {name} on the Ray cluster; give one of the two another name"
        return self._conflicts.get(name)

    def _name(self, key: DeploymentKey) -> str:
        return application_name(self._installation, key.namespace, key.name)

    def _claims(self, details: Mapping[str, Any]) -> dict[str, DeploymentKey]:
        """Who holds which application name.

        Of two with one name, the one whose application runs keeps it; one that asks for nothing claims nothing.
        """
        claims: dict[str, DeploymentKey] = {}
        for key in sorted(self._wishes, key=lambda key: (isinstance(self._wishes[key], Keep), key)):
            name = self._name(key)
            if name not in claims or _runs_for(details, name, key):
                claims[name] = key
        return claims

    def _note_failures(self, details: Mapping[str, Any], claims: Mapping[str, DeploymentKey]) -> None:
        for name, application in details["applications"].items():
            key = claims.get(name)
            wish = self._wishes.get(key) if key is not None else None
            if application.get("status") != DEPLOY_FAILED:
                self._failed_attempts.pop(name, None)
            elif isinstance(wish, Present) and covers(application.get("deployed_app_config"), wish.config):
                self._failed_attempts.setdefault(name, wish.attempt)
        for name in self._failed_attempts.keys() - details["applications"].keys():
            del self._failed_attempts[name]

    def _failure(self, key: DeploymentKey, name: str, application: Mapping[str, Any]) -> Failure | None:
        wish = self._wishes.get(key)
        if not isinstance(wish, Present) or self._failed_attempts.get(name) != wish.attempt:
            return None
        return failure_of(application)

    def _prefixes(self, details: Mapping[str, Any]) -> dict[str, str]:
        """Route prefixes of the engines that may answer, by application name."""
        prefixes = {}
        for key in self._wishes.keys() - self._losers.keys():
            application = details["applications"].get(self._name(key))
            if application is not None and application.get("status") not in {DELETING, "NOT_STARTED"}:
                prefixes[self._name(key)] = route_prefix(key.namespace, key.name)
        return prefixes

    def _starting(self, details: Mapping[str, Any]) -> dict[str, Pulling]:
        """Where replicas of ours start, by application name."""
        found = {}
        for key in self._wishes.keys() - self._losers.keys():
            application = details["applications"].get(self._name(key)) or {}
            pulling = Pulling.of(application.get("deployed_app_config"), _starting_on(application))
            if pulling is not None:
                found[self._name(key)] = pulling
        return found

    def _http_options(self) -> Mapping[str, Any]:
        address = urlsplit(self._cluster.serve_url)
        loopback = address.hostname in {"127.0.0.1", "localhost", "::1"}
        return {"host": "127.0.0.1" if loopback else "0.0.0.0", "port": address.port or 80}  # noqa: S104


def _running(details: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, each in details["applications"].items() if each.get("status") == "RUNNING")


def _runs_for(details: Mapping[str, Any], name: str, key: DeploymentKey) -> bool:
    application = (details.get("applications") or {}).get(name) or {}
    arguments = (application.get("deployed_app_config") or {}).get("args") or {}
    return bool(arguments.get("namespace") == key.namespace and arguments.get("name") == key.name)


def _starting_on(application: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        str(replica["node_id"])
        for name, deployment in (application.get("deployments") or {}).items()
        if name != ROUTER_DEPLOYMENT
        for replica in deployment.get("replicas") or []
        if replica.get("state") == "STARTING" and replica.get("node_id")
    )


def _replicas(application: Mapping[str, Any]) -> tuple[int, int]:
    ready = wanted = 0
    for name, deployment in (application.get("deployments") or {}).items():
        if name == ROUTER_DEPLOYMENT:
            continue
        ready += sum(replica.get("state") == "RUNNING" for replica in deployment.get("replicas") or [])
        wanted += int(deployment.get("target_num_replicas") or 0)
    return ready, wanted
