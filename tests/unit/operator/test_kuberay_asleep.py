"""Zero that is asked for and zero that is reached: what a status says of pods that nobody wants any more."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.leadership import AlwaysLeader
from gptoss_operator.plan.applications import Present
from gptoss_operator.plan.observation import Memory
from gptoss_operator.plan.planner import Plan, plan
from gptoss_operator.substrates.kuberay.seen import lean
from gptoss_operator.substrates.kuberay.substrate import KubeRay
from tests.builders import deployment
from tests.contract.operator.house import ManualClock
from tests.unit.operator.rayservices import UID, settings
from tests.unit.operator.test_kuberay_troubles import pod
from tests.unit.operator.test_kuberay_truth import CLUSTER, SITE, Cluster, _never, _silent, observed

Raw = dict[str, Any]
TOLD = {"deletionTimestamp": "2026-01-01T01:00:00Z"}
SUSPENDING = {"conditions": [{"type": "Suspending", "status": "True"}]}
SUSPENDED = {"conditions": [{"type": "Suspended", "status": "True"}]}
SERVES = {"conditions": [{"type": "Ready", "status": "True"}], "activeServiceStatus": {"rayClusterName": CLUSTER}}
LOST = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]


class Asleep:
    """A suspended deployment: what its cluster holds, and what its operator says of it."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.substrate = KubeRay(
            settings(),
            self.cluster,  # type: ignore[arg-type]
            tokens=AcceptedTokens(Path("/nowhere"), clock=ManualClock()),
            ask_engine=_never,
            read_report=_silent,
            leadership=AlwaysLeader(),
            news=lambda _: None,
        )
        self.status = GptOssDeploymentStatus()
        self.memory: Memory | None = None
        self.rendered = _rendered(self.substrate)

    def shows(self, pods: list[Raw], status: Raw | None = None, *, gone: bool = False) -> None:
        document = json.loads(json.dumps(self.rendered))
        document["metadata"] |= {"uid": "rs", "generation": 2, "resourceVersion": "2"}
        document["spec"]["suspend"] = True
        self.cluster.raw = None if gone else lean({**document, "status": status or {}})
        self.cluster.seen_pods = pods

    def look(self, now: float) -> Plan:
        seen = replace(
            observed(self.substrate, self.status, now), deployment=deployment(uid=UID, generation=1, suspend=True)
        )
        planned = plan(seen, self.memory, SITE)
        self.memory, self.status = planned.memory, planned.status or self.status
        return planned

    def said(self, kind: str) -> tuple[str, str, str]:
        return next((each.status, each.reason, each.message) for each in self.status.conditions if each.type == kind)

    @property
    def terminating(self) -> int | None:
        assert self.status.replicas is not None
        return self.status.replicas.terminating


def _rendered(substrate: KubeRay) -> Raw:
    (ask,) = plan(observed(substrate, GptOssDeploymentStatus(), 0.0), None, SITE).actions
    assert isinstance(ask.wish, Present)
    assert ask.wish.rendered is not None
    return ask.wish.rendered.rayservice


def left(name: str, *, role: str = "worker", told: bool = True, **status: Any) -> Raw:
    found = pod(name=name, role=role, **status)
    found["metadata"] |= TOLD if told else {}
    found["metadata"]["labels"]["ray.io/cluster"] = CLUSTER
    return found


def test_nothing_is_said_to_run_or_to_be_left_at_zero() -> None:
    asleep = Asleep()
    asleep.shows([], SUSPENDED)
    planned = asleep.look(0.0)
    assert asleep.said("ScaledToZero") == ("True", "Suspended", "")
    assert asleep.said("EngineReady") == ("False", "Stopped", "No engine runs.")
    assert asleep.said("Degraded")[0] == "False"
    assert asleep.terminating is None
    assert planned.requeue_after is None


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("status", [SUSPENDING, SUSPENDED])
def test_pods_that_were_told_to_go_are_waited_for_however_long_it_takes(status: Raw, gone: bool) -> None:
    asleep = Asleep()
    asleep.shows([left("head", role="head"), left("one"), left("two")], status, gone=gone)
    for now in (0.0, 59.0, 3000.0):
        planned = asleep.look(now)
        status_, reason, message = asleep.said("EngineReady")
        assert (status_, reason) == ("False", "WaitingForPods")
        assert message == "3 pods still hold what they were given: requests may be finished first, for at most 3660 s."
        assert asleep.said("ScaledToZero") == ("False", "Suspended", message)
        assert asleep.said("Ready") == ("True", "Suspended", f"spec.suspend is true: requests are refused. {message}")
        assert asleep.said("Degraded")[0] == "False"
        assert asleep.terminating == 2
        assert planned.requeue_after is None, "news of pods comes by itself"
    asleep.shows([left("one")], status, gone=gone)
    asleep.look(3001.0)
    assert asleep.said("ScaledToZero")[2].startswith("1 pod still holds what it was given")


@pytest.mark.parametrize("status", [SERVES, SUSPENDING])
def test_a_kuberay_that_tells_no_pod_to_go_is_named_after_a_minute(status: Raw) -> None:
    asleep = Asleep()
    asleep.shows([left("head", role="head", told=False), left("one", told=False)], status)
    first = asleep.look(10.0)
    assert asleep.said("EngineReady")[:2] == ("False", "WaitingForPods")
    assert asleep.said("Degraded")[0] == "False"
    assert first.requeue_after == 60.0, "nobody else would bring it up"
    assert asleep.look(40.0).requeue_after == 30.0
    last = asleep.look(70.0)
    assert last.requeue_after is None
    for kind in ("EngineReady", "Degraded"):
        said = asleep.said(kind)
        assert said[1] == "WaitingForKubeRay"
        assert "2 pods still hold what they were given" in said[2]
        assert "whether KubeRay's operator runs and watches this namespace" in said[2]
    assert asleep.said("ScaledToZero")[:2] == ("False", "Suspended")

    asleep.memory = None  # another process
    assert asleep.look(71.0).status is None, "it is known already"
    asleep.shows([left("head", role="head"), left("one")], SUSPENDING)
    asleep.look(72.0)
    assert asleep.said("Degraded")[0] == "False"
    assert asleep.said("EngineReady")[1] == "WaitingForPods"
    asleep.shows([left("one", told=False)], SUSPENDING)
    asleep.look(73.0)
    assert asleep.said("Degraded")[0] == "False", "the next minute begins anew"


def test_a_cluster_that_kuberay_keeps_without_pods_is_told_too() -> None:
    asleep = Asleep()
    asleep.shows([], SERVES)
    asleep.look(0.0)
    assert asleep.said("ScaledToZero")[0] == "False"
    asleep.look(60.0)
    assert asleep.said("Degraded")[1] == "WaitingForKubeRay"
    assert asleep.terminating is None


def test_pods_that_nobody_collects_are_not_laid_at_kuberays_door() -> None:
    asleep = Asleep()
    asleep.shows([left("one", told=False)], SUSPENDED)
    asleep.look(0.0)
    asleep.look(60.0)
    assert asleep.said("Degraded")[:2] == ("True", "WaitingForPods")
    assert "kube-controller-manager" in asleep.said("Degraded")[2]


def test_a_lost_node_is_named_and_what_is_over_holds_nothing() -> None:
    asleep = Asleep()
    asleep.shows([left("one", conditions=LOST), left("two"), left("three", phase="Failed")], SUSPENDED)
    asleep.look(0.0)
    said = asleep.said("EngineReady")
    assert said[1] == "WaitingForPods"
    assert said[2].startswith("2 pods still hold")
    assert "the node of pod one does not answer" in said[2]
    asleep.shows([left("three", phase="Failed", told=False)], SUSPENDED)
    asleep.look(1.0)
    assert asleep.said("ScaledToZero")[0] == "True"


def test_what_was_left_when_it_was_last_seen_is_not_zero_while_nobody_sees() -> None:
    asleep = Asleep()
    asleep.shows([left("one")], SUSPENDED)
    asleep.look(0.0)
    before = asleep.said("ScaledToZero")
    asleep.cluster.synced = False
    asleep.look(1.0)
    assert asleep.said("ScaledToZero") == before
    assert asleep.terminating == 1


def test_pods_of_pipelines_count_as_the_replicas_they_are() -> None:
    asleep = Asleep()
    config = json.loads(asleep.rendered["spec"]["serveConfigV2"])
    config["applications"][0]["args"]["pipeline"] = 2
    asleep.rendered = {**asleep.rendered, "spec": {**asleep.rendered["spec"], "serveConfigV2": json.dumps(config)}}
    asleep.shows([left(f"worker-{number}") for number in range(3)], SUSPENDED)
    asleep.look(0.0)
    assert asleep.terminating == 2
