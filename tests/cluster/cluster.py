"""A control plane with Kubernetes' own scheduler and controllers; kwok plays the kubelets of nodes without machines."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gptoss_cli.local.assets import control_plane_programs, scheduler_program
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.programs import Program
from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload
from tests.cluster.kubelet import MANAGED, PRESSURE_LABEL, kubelet
from tests.unit.operator.rayservices import site

Raw = dict[str, Any]
PATIENCE = 150.0
LOST_SECONDS = 10
"""kwok speaks for a node every second: on a busy machine none is lost by the way."""
ROOMY = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "110", "nvidia.com/gpu": "8"}


def templates(of: Workload, at: KubeRaySite | None = None) -> dict[str, Raw]:
    """The pods of a replica as KubeRay makes them of our templates."""
    config = render(of, at or site()).rayservice["spec"]["rayClusterConfig"]
    given = {"head": config["headGroupSpec"]["template"], "worker": config["workerGroupSpecs"][0]["template"]}
    return {
        role: {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": f"{role}-", "namespace": of.namespace, "labels": each["metadata"]["labels"]},
            "spec": each["spec"],
        }
        for role, each in given.items()
    }


class Cluster:
    """One control plane; `plane` must run already."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    @contextmanager
    def scheduler(self) -> Iterator[None]:
        """Kubernetes' own scheduler, begun anew: what is there already it knows before it decides anything."""
        command = (
            str(scheduler_program()),
            *(f"--{name}={self.plane.kubeconfig}" for name in ("kubeconfig", "authentication-kubeconfig")),
            "--authentication-skip-lookup",
            "--leader-elect=false",
            "--secure-port=0",
        )
        with self._running(Program(name="kube-scheduler", command=command, environment={}, grace_seconds=5.0)):
            yield

    @contextmanager
    def controllers(self) -> Iterator[None]:
        """Kubernetes' own: judges of nodes and of quotas, what binds claims. A node that falls silent is lost."""
        manager = control_plane_programs().controller_manager
        assert manager is not None
        command = (
            str(manager),
            f"--kubeconfig={self.plane.kubeconfig}",
            "--controllers=node-lifecycle-controller,persistentvolume-binder-controller,resourcequota-controller",
            "--leader-elect=false",
            "--secure-port=0",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={LOST_SECONDS}s",
            f"--node-startup-grace-period={LOST_SECONDS}s",
        )
        with self._running(Program(name="controllers", command=command, environment={}, grace_seconds=5.0)):
            yield

    @contextmanager
    def kubelets(self) -> Iterator[None]:
        """The kubelets of all nodes."""
        with self._running(kubelet(self.plane.kubeconfig, self.plane.folder)):
            yield

    @contextmanager
    def _running(self, program: Program) -> Iterator[None]:
        self.plane.programs.start(program)
        try:
            yield
        finally:
            self.plane.programs.stop(program.name)

    @contextmanager
    def nodes(self, *nodes: Raw) -> Iterator[None]:
        """Nodes whose kubelets have said how they are, and of which the node controller has taken note."""
        for node in nodes:
            self.create(node)
        names = [node["metadata"]["name"] for node in nodes]
        try:
            for node in nodes:
                self._until_judged(node)
            yield
        finally:
            if names:
                self.plane.kubectl("delete", "node", *names)

    def _until_judged(self, node: Raw) -> None:
        """Wait until a node has the taints of its state: each begins with that of one that is not ready."""
        name = node["metadata"]["name"]
        judged = {"not-ready": False, "unreachable": False}
        judged["disk-pressure"] = PRESSURE_LABEL in node["metadata"]["labels"]
        judged["unschedulable"] = bool(node["spec"].get("unschedulable"))
        deadline = time.monotonic() + PATIENCE
        while True:
            found = json.loads(self.plane.kubectl("get", "node", name, "-o", "json"))
            taints = {taint["key"] for taint in found["spec"].get("taints", ())}
            if all((f"node.kubernetes.io/{key}" in taints) is value for key, value in judged.items()):
                return
            assert time.monotonic() < deadline, json.dumps(found, indent=1)
            time.sleep(0.1)

    def lose(self, node: str) -> None:
        """No kubelet speaks for a node any more."""
        self.plane.kubectl("label", "node", node, *(f"{label}-" for label in MANAGED))

    def find(self, node: str) -> None:
        """Its kubelet is there again."""
        self.plane.kubectl("label", "node", node, *(f"{label}={value}" for label, value in MANAGED.items()))

    def create(self, raw: Raw) -> Raw:
        return json.loads(self.plane.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(raw)))

    def share(self, claim: str, namespace: str) -> None:
        """Make a claim and a volume for it of an NFS share."""
        volume = f"{claim}-{namespace}"
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        of_volume = {"claimRef": {"name": claim, "namespace": namespace}, "nfs": {"server": "nfs.test", "path": "/e"}}
        of_claim = {"volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}
        spec = {**common, **of_volume, "capacity": {"storage": "1Gi"}}
        self.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec})
        metadata = {"name": claim, "namespace": namespace}
        spec = {**common, **of_claim}
        self.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})

    def make(self, of: Workload, namespace: str, *roles: str, at: KubeRaySite | None = None) -> list[Raw]:
        """Make pods of a workload."""
        made = templates(replace(of, namespace=namespace), at)
        return [self.create(made[role]) for role in roles]

    def pods(self, namespace: str) -> list[Raw]:
        return json.loads(self.plane.kubectl("get", "pods", "-n", namespace, "-o", "json"))["items"]

    def until(self, namespace: str, holds: Callable[[Sequence[Raw]], bool]) -> list[Raw]:
        """Wait until something holds of a namespace's pods; return them."""
        deadline = time.monotonic() + PATIENCE
        while not holds(found := self.pods(namespace)):
            assert time.monotonic() < deadline, json.dumps([each["status"] for each in found], indent=1)
            time.sleep(0.1)
        return found


def node(name: str, *, labels: Raw | None = None, **changes: Any) -> Raw:
    """A node with eight accelerators; `changes` are quantities (`cpu`, `memory`, `gpu`) or parts of its `spec`."""
    quantities = {key: changes.pop(key) for key in ("cpu", "memory") if key in changes}
    if "gpu" in changes:
        quantities["nvidia.com/gpu"] = changes.pop("gpu")
    resources = {**ROOMY, **quantities}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **MANAGED, **(labels or {})}},
        "spec": changes,
        "status": {"capacity": resources, "allocatable": resources},
    }


def condition(pod: Raw, kind: str) -> Raw:
    """Return a pod's condition, empty if it has none of the kind."""
    found = (each for each in pod["status"].get("conditions", ()) if each["type"] == kind)
    return next(found, {})
