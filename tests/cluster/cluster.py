"""A control plane, Kubernetes' own scheduler and controllers, and nodes of which only the API server knows.

No kubelet runs: what one would write of a node or a pod, a test writes. What schedulers and controllers
make of that is their own.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gptoss_cli.local.assets import control_plane_programs, scheduler_program
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.programs import Program
from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.plan.rayservice.workload import Workload
from tests.unit.operator.rayservices import site

Raw = dict[str, Any]
PATIENCE = 150.0
ROOMY = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "2Ti", "pods": "110", "nvidia.com/gpu": "8"}


def templates(of: Workload) -> dict[str, Raw]:
    """The pods of a replica as KubeRay makes them of our templates."""
    config = render(of, site()).rayservice["spec"]["rayClusterConfig"]
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
    def node_controller(self) -> Iterator[None]:
        """Kubernetes' own judge of nodes, which waits two seconds for word of one before it is lost."""
        manager = control_plane_programs().controller_manager
        assert manager is not None
        command = (
            str(manager),
            f"--kubeconfig={self.plane.kubeconfig}",
            "--controllers=node-lifecycle-controller",
            "--leader-elect=false",
            "--secure-port=0",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=2s",
            "--node-startup-grace-period=2s",
        )
        with self._running(Program(name="node-controller", command=command, environment={}, grace_seconds=5.0)):
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
        """Nodes that are well."""
        for node in nodes:
            name = node["metadata"]["name"]
            self.create(node)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            well = {"type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now}
            status = {**node["status"], "conditions": [{**well, "reason": "KubeletReady", "message": "well"}]}
            self.patch_status("node", name, status)
            # Whoever says that a node is well takes the taint away with which each begins.
            taints = json.dumps({"spec": {"taints": node["spec"].get("taints")}})
            self.plane.kubectl("patch", "node", name, "--type=merge", "--patch", taints)
        try:
            yield
        finally:
            if nodes:
                self.plane.kubectl("delete", "node", *(node["metadata"]["name"] for node in nodes))

    def create(self, raw: Raw) -> Raw:
        return json.loads(self.plane.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(raw)))

    def patch_status(self, kind: str, name: str, status: Raw, namespace: str = "default") -> None:
        patch = json.dumps({"status": status})
        where = ("--namespace", namespace, "--subresource=status", "--type=merge", "--patch", patch)
        self.plane.kubectl("patch", kind, name, *where)

    def make(self, of: Workload, namespace: str, *roles: str) -> list[Raw]:
        """Make pods of a workload."""
        made = templates(replace(of, namespace=namespace))
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
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": changes,
        "status": {"capacity": resources, "allocatable": resources},
    }


def condition(pod: Raw, kind: str) -> Raw:
    """Return a pod's condition, empty if it has none of the kind."""
    found = (each for each in pod["status"].get("conditions", ()) if each["type"] == kind)
    return next(found, {})
