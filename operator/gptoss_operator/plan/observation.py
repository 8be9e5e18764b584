"""What a plan is made from: one frozen picture of a deployment and its surroundings."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.deployment_status import GptOssDeploymentStatus, PullStatus
from gptoss_api.hardware import Accelerator
from gptoss_operator.plan.demand import Demand
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from gptoss_operator.plan.schedules import Floor, floor_at


@dataclass(frozen=True, kw_only=True)
class Distrusted:
    """Signature or policy forbid the weights, or the source can't be read.

    ``retryable``: it may pass by itself, such as an object store that doesn't answer.
    """

    reason: str
    message: str
    retryable: bool = False


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """Signature and policy allow the weights.

    Attributes:
        manifest_digest: ``sha256:…`` that replicas are pinned to.
        signer: fingerprint of the key that signed.
        authority: entry of the policy that matched.
        identity: whom the certificate that signed was made out to, None for a key.
        policy: name of the policy.
        source: mark of the manifest and of the listed files' versions (``plan.sources``).
        checked_at: time of day of the first check with this result.
        valid_until: time of day after which this may not be relied on any more, None if it does not end.
        waived: why no authority vouches, where mode Audit waives that.
        raises_release: it is a higher release than the policy's status records.
        doubt: why a later look failed although nothing is known to be wrong.
        weight_bytes: size of the safetensors files that nodes fetch, None if the source does not tell it.
    """

    manifest_digest: str
    signer: str
    authority: str
    policy: str
    source: str
    checked_at: str
    identity: str | None = None
    valid_until: datetime | None = None
    waived: str | None = None
    raises_release: bool = False
    doubt: Distrusted | None = None
    weight_bytes: int | None = None


Trust = Trusted | Distrusted | None
"""None while the first check is under way."""


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """What was accepted before is denied now. ``drain``: what runs is to be stopped, not only kept from growing."""

    reason: str
    message: str
    drain: bool


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes that are alike.

    Attributes:
        candidates: what each of their accelerators may be, the smallest memory first.
        count: accelerators of one node; None if nobody tells.
    """

    candidates: tuple[Accelerator, ...]
    count: int | None

    @property
    def order(self) -> tuple[int, str, int]:
        """By memory, so that a list of kinds has one order."""
        return self.candidates[0].memory_bytes, self.candidates[0].name, self.count or 0


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a cluster tells of its accelerators.

    Attributes:
        where: the cluster, for messages.
        kinds: its nodes with accelerators that are known, in a fixed order; none if it tells of none.
        strangers: types that it has and that are not known here.
        how_to_tell: what somebody can do where this is not enough.
        unseen: which accelerators count although no node has them yet.
    """

    where: str
    kinds: tuple[NodeKind, ...] = ()
    strangers: tuple[str, ...] = ()
    how_to_tell: str = "an administrator can say what it has in rayClusters[].hardware of the operator's settings"
    unseen: str = ""


class Presence(StrEnum):
    """Whether an application is on its Ray cluster."""

    UNKNOWN = "Unknown"
    ABSENT = "Absent"
    PRESENT = "Present"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why Ray gave an application up; ``reason`` is empty where no node named one."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Remains:
    """What is left of a deployment's pods where none is wanted: each holds what it was given until it is gone.

    Attributes:
        waiting: what they wait for.
        unheeded: what it means if that goes on, where somebody has yet to tell them to go; None if all were told.
    """

    waiting: Failure
    unheeded: Failure | None = None


FETCHING = Failure(reason=Reason.FETCHING_WEIGHTS, message="the weights are being fetched and verified")


@dataclass(frozen=True, kw_only=True)
class ApplicationView:
    """A deployment's application as last seen on its Ray cluster.

    Attributes:
        presence: whether it is there.
        status: Ray's word for it, such as RUNNING.
        deployed: the configuration Ray runs, None where it tells none.
        answering: whether its own API answers; None if not asked yet.
        failure: why it failed, for the attempt that is under way.
        ready: replicas that run.
        wanted: replicas Ray wants.
        terminating: replicas that are not wanted any more and whose pods are still there.
        remains: what is left of it where it is ABSENT, None if nothing is.
        obstacle: what keeps it from starting now, though it may pass.
        pull: how far a pull for it is, None if none is known to run.
        conflict: why it was left out of the cluster's configuration.
        trouble: reason and message of a problem of the whole cluster.
        images: what its replicas run, as their nodes tell it: more than one if they differ.
        flaw: reason and message of something that is not as it should be, though nothing stops for it.
    """

    presence: Presence = Presence.UNKNOWN
    status: str = ""
    deployed: Mapping[str, Any] | None = None
    answering: bool | None = None
    failure: Failure | None = None
    ready: int = 0
    wanted: int = 0
    terminating: int = 0
    remains: Remains | None = None
    obstacle: Failure | None = None
    pull: PullStatus | None = None
    conflict: str | None = None
    trouble: tuple[str, str] | None = None
    images: tuple[str, ...] = ()
    flaw: tuple[str, str] | None = None


KUBERAY = "ray.io/rayservice"
"""Stands where a Ray cluster's name stands; no cluster can be named so."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the deployment runs, or why it can't: then ``cluster`` is empty."""

    cluster: str = ""
    reason: str = ""
    message: str = ""

    @property
    def on_kuberay(self) -> bool:
        """Whether KubeRay runs it."""
        return self.cluster == KUBERAY


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is remembered between plans of one deployment, on our own clock. Lost with the process.

    Attributes:
        awake_since: last moment that counts as demand for staying awake.
        start_began: when the running start or roll-out began.
        attempt: counts starts, so that an old failure isn't taken for a new one.
        slept_at: when it went to sleep, or was first seen asleep; later activity wakes it.
        draining: epoch of a drain that this process began.
        drain_began: when.
        failures: engine starts that failed in a row without a named reason.
        retry_at: when the next one is tried.
        wake_began: when the running wake's demand was seen.
        stage: stage of the running wake.
        stage_began: when it began.
        unheeded_since: when something was left that nobody had told to go.
    """

    awake_since: float
    start_began: float | None = None
    attempt: int = 1
    slept_at: float | None = None
    draining: int | None = None
    drain_began: float | None = None
    failures: int = 0
    retry_at: float | None = None
    wake_began: float | None = None
    stage: str | None = None
    stage_began: float | None = None
    unheeded_since: float | None = None


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One deployment and its surroundings at one moment.

    Attributes:
        deployment: the parsed object.
        status: its status as last written.
        placement: its Ray cluster.
        application: its application there.
        hardware: the accelerators that it may run on, None if they were not looked at yet.
        trust: what is known of its weights.
        revocation: why the weights that run, or ran last, are denied now.
        demand: what gateways say.
        rivals: other deployments of the namespace that claim the same served name.
        may_start: a start is permitted now (`maxConcurrentStarts`).
        now: seconds on our own clock.
        wall: time of day, RFC 3339.
    """

    deployment: GptOssDeployment
    status: GptOssDeploymentStatus
    placement: Placement
    application: ApplicationView
    trust: Trust
    demand: Demand
    hardware: Hardware | None = None
    revocation: Revocation | None = None
    rivals: tuple[str, ...] = ()
    may_start: bool = True
    now: float
    wall: str

    @cached_property
    def floor(self) -> Floor:
        """The replicas that must stay up now."""
        return floor_at(self.deployment.spec.scaling, self.wall)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The operator's settings that plans depend on."""

    installation: str
    import_path: str
    gateway_url: str
    kube_ray: KubeRaySite | None = None
