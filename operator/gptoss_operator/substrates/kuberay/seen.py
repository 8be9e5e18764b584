"""A RayService as far as it matters: what we asked for, and what KubeRay says of it. Pure.

KubeRay's status lags and lies in known ways (measured with 1.7): ``observedGeneration`` is not followed,
the active cluster's applications are empty during an upgrade, everything is wiped when it suspends. So
what runs is told by the labels of pods, and what is wanted by our own annotation.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_operator.plan.rayservice.workload import REVISION_LABEL, UID_LABEL, Raw

_CLUSTER_TROUBLE = ("ReplicaFailure",)


@dataclass(frozen=True, kw_only=True)
class SeenRayService:
    """One RayService.

    Attributes:
        uid: its own uid.
        owner_uid: uid of the deployment it was made for; None if it isn't ours.
        generation: counts changes of its specification, by whomever.
        deleting: it is on its way out.
        suspend: what is asked for.
        suspended: KubeRay has taken everything away.
        suspending: KubeRay is doing so, and what it says of clusters is of the past.
        config: Ray's configuration of our application, with the revision it runs in; None if unreadable.
        active: name of the cluster that KubeRay sends requests to.
        pending: name of the one that is being made.
        applications: what Ray says of applications, by cluster.
        noticed: KubeRay has said something since it was asked for what is asked for now.
        refused: why KubeRay takes no note of it.
        cluster_trouble: why a cluster's pods could not be made.
    """

    uid: str
    owner_uid: str | None
    generation: int
    deleting: bool
    suspend: bool
    suspended: bool
    suspending: bool
    config: Mapping[str, Any] | None
    active: str | None
    pending: str | None
    applications: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    noticed: bool = True
    refused: str | None = None
    cluster_trouble: str | None = None

    @property
    def revision(self) -> str | None:
        """The revision that is asked for."""
        return (self.config or {}).get("revision")

    @property
    def cluster_left(self) -> bool:
        """Whether a Ray cluster may still be there although none is asked for."""
        return self.suspending or self.newest is not None

    @property
    def newest(self) -> str | None:
        """The cluster that is being made, else the one that serves."""
        return self.pending or self.active


def seen_rayservice(raw: Mapping[str, Any]) -> SeenRayService:
    """Read a raw RayService."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    suspending = _true(conditions, "Suspending")
    suspended = _true(conditions, "Suspended")
    active, pending = status.get("activeServiceStatus") or {}, status.get("pendingServiceStatus") or {}
    over = suspending or suspended
    ready = conditions.get("Ready") or {}
    return SeenRayService(
        uid=metadata["uid"],
        owner_uid=(metadata.get("labels") or {}).get(UID_LABEL),
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        suspend=spec.get("suspend") is True,
        suspended=suspended,
        suspending=suspending,
        config=_config(spec.get("serveConfigV2"), (metadata.get("annotations") or {}).get(REVISION_LABEL)),
        active=None if over else active.get("rayClusterName") or None,
        pending=None if over else pending.get("rayClusterName") or None,
        applications={}
        if over
        else {
            each["rayClusterName"]: each.get("applicationStatuses") or {}
            for each in (active, pending)
            if each.get("rayClusterName")
        },
        noticed=bool(conditions or active or pending) and (spec.get("suspend") is True or not over),
        refused=ready.get("message") if ready.get("reason") == "ValidationFailed" else None,
        cluster_trouble=_cluster_trouble([pending, active]),
    )


def lean(raw: Raw) -> Raw:
    """Leave out the pod templates: most of an object, and never looked at."""
    spec = raw.get("spec") or {}
    metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
    kept = {name: spec[name] for name in ("suspend", "serveConfigV2") if name in spec}
    return {"metadata": metadata, "spec": kept, "status": raw.get("status") or {}}


def _config(serve_config: Any, revision: str | None) -> Mapping[str, Any] | None:
    try:
        (application,) = json.loads(serve_config)["applications"]
    except (TypeError, ValueError, KeyError):
        return None
    return {**application, "revision": revision} if isinstance(application, dict) else None


def _cluster_trouble(services: Sequence[Mapping[str, Any]]) -> str | None:
    for service in services:
        for each in (service.get("rayClusterStatus") or {}).get("conditions") or ():
            if each.get("type") in _CLUSTER_TROUBLE and each.get("status") == "True":
                return str(each.get("message") or each.get("reason"))
    return None


def _true(conditions: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return (conditions.get(name) or {}).get("status") == "True"
