"""Install, upgrade and uninstall with the real Helm, around a living deployment; and the admission policies."""

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptoss_api.names import FIELD_MANAGER
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_kube.client import Kube
from gptoss_kube.errors import Invalid
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS
from tests.apiserver.chart.helm import RELEASE, Helm, Raw
from tests.controlplane import TENANT_USER, install_crds

NAME = f"{RELEASE}-gptoss-operator"
PATIENCE = 150.0
WITHOUT_CRDS = {"crds": {"enabled": False}}


@pytest.fixture
def released(control_plane: ControlPlane, helm: Helm, namespace: str) -> Iterator[str]:
    """A namespace whose release is uninstalled afterwards."""
    yield namespace
    helm.uninstall(namespace)


def deployment(name: str = "assistant", **spec: object) -> str:
    body = {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}, **spec}
    raw = {
        "apiVersion": "serving.gptoss.dev/v1alpha1",
        "kind": "GptOssDeployment",
        "metadata": {"name": name},
        "spec": body,
    }
    return json.dumps(raw)


def test_a_living_deployment_outlives_upgrade_and_uninstall(
    control_plane: ControlPlane, crds: list[str], helm: Helm, released: str
):
    taken = ("--take-ownership", "--force-conflicts")  # the CRDs were applied by hand before
    notes = helm.install(released, {}, *taken)
    assert "WeightTrustPolicy" in notes
    assert "gptoss keys create" in notes
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=deployment())
    before = _get(control_plane, "gptoss", "assistant", released)
    assert _get(control_plane, "deployment", NAME, released)["spec"]["replicas"] == 2

    helm.install(
        released, {"operator": {"replicas": 1}, "gateway": {"autoscaling": {"enabled": True}}}, "--force-conflicts"
    )
    assert _get(control_plane, "deployment", NAME, released)["spec"]["replicas"] == 1
    assert _get(control_plane, "hpa", f"{NAME}-gateway", released)["spec"]["maxReplicas"] == 10
    assert _get(control_plane, "gptoss", "assistant", released) == before

    helm.uninstall(released)
    assert _get(control_plane, "gptoss", "assistant", released) == before
    left = control_plane.kubectl(
        "get", "deployments,services,configmaps,roles,serviceaccounts", "-n", released, "-o", "name"
    )
    assert "gptoss" not in left
    assert NAME not in control_plane.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert install_crds(control_plane) == crds


def test_installed_twice_changes_nothing(control_plane: ControlPlane, crds: list[str], helm: Helm, released: str):
    helm.install(released, WITHOUT_CRDS)
    kinds = "deployments,services,configmaps,roles,rolebindings,networkpolicies,poddisruptionbudgets,serviceaccounts"
    versions = ("get", kinds, "-n", released, "-o", "jsonpath={.items[*].metadata.resourceVersion}")
    before = control_plane.kubectl(*versions)
    helm.install(released, WITHOUT_CRDS)
    assert control_plane.kubectl(*versions) == before


def test_the_fence_lets_only_the_holder_of_the_lease_write(
    control_plane: ControlPlane, crds: list[str], helm: Helm, released: str
):
    helm.install(released, {**WITHOUT_CRDS, "operator": {"fence": True}})
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=deployment())
    tokens = {pod: _pod_token(control_plane, released, pod) for pod in ("leader", "deposed")}
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": NAME},
        "spec": {"holderIdentity": "leader", "leaseDurationSeconds": 12},
    }
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=json.dumps(lease))
    _eventually_refused(lambda: _write_status(control_plane, released, tokens["deposed"]), "does not hold the Lease")
    _write_status(control_plane, released, tokens["leader"])
    lease["spec"]["holderIdentity"] = "deposed"
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=json.dumps(lease))
    _eventually_refused(lambda: _write_status(control_plane, released, tokens["leader"]), "does not hold the Lease")
    _write_status(control_plane, released, tokens["deposed"])


def test_naming_a_policy_takes_the_verb_use(control_plane: ControlPlane, crds: list[str], helm: Helm, released: str):
    helm.install(released, {**WITHOUT_CRDS, "admission": {"policyUse": True}})
    control_plane.kubectl(
        "create", "rolebinding", "tenant", "--clusterrole", f"{NAME}-edit", "--user", TENANT_USER, "-n", released
    )
    named = deployment("named", verification={"policyRef": {"name": "experimental"}})
    plain = deployment("plain")
    _eventually_refused(lambda: _dry_run(control_plane, released, named), "may not use WeightTrustPolicy experimental")
    _dry_run(control_plane, released, plain)
    role = f"use-experimental-{released}"
    rule = {
        "apiGroups": ["serving.gptoss.dev"],
        "resources": ["weighttrustpolicies"],
        "resourceNames": ["experimental"],
        "verbs": ["use"],
    }
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps({**kind, "metadata": {"name": role}, "rules": [rule]}))
    control_plane.kubectl("create", "clusterrolebinding", role, "--clusterrole", role, "--user", TENANT_USER)
    try:
        _eventually_allowed(lambda: _dry_run(control_plane, released, named), "may not use WeightTrustPolicy")
    finally:
        control_plane.kubectl("delete", "clusterrolebinding,clusterrole", role)


def _dry_run(plane: ControlPlane, namespace: str, raw: str) -> None:
    plane.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=raw, user=TENANT_USER)


def _get(plane: ControlPlane, kind: str, name: str, namespace: str) -> Raw:
    return json.loads(plane.kubectl("get", kind, name, "-n", namespace, "-o", "json"))


def _pod_token(plane: ControlPlane, namespace: str, pod: str) -> str:
    """A token as the kubelet gives it to a pod: bound to it, with its name in it."""
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod},
        "spec": {"serviceAccountName": NAME, "containers": [{"name": "operator", "image": "none"}]},
    }
    plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(raw))
    token = plane.kubectl(
        "create", "token", NAME, "-n", namespace, "--bound-object-kind=Pod", f"--bound-object-name={pod}"
    ).strip()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["kubernetes.io"]["pod"]["name"] == pod
    return token


def _write_status(plane: ControlPlane, namespace: str, token: str) -> None:
    """Apply the status as the operator does: one PATCH, with the resourceVersion as its guard."""
    kubeconfig = json.loads(plane.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token}
    metadata = _get(plane, "gptoss", "assistant", namespace)["metadata"]
    known = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")}

    async def write(path: Path) -> None:
        async with Kube(kubeconfig=path) as kube:
            status = {"metadata": known, "status": {"observedGeneration": 1}}
            await kube.apply_status(status, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.write_text(json.dumps(kubeconfig))
        asyncio.run(write(path))


def _eventually_refused(what: Callable[[], None], why: str) -> None:
    """The API server takes a moment to see a new policy or parameter."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            what()
        except (StepError, Invalid) as error:
            if why not in str(error):
                raise
            return
    raise AssertionError("never refused")


def _eventually_allowed(what: Callable[[], None], why: str) -> None:
    """The API server takes a moment to see a new role."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            what()
        except StepError as error:
            if why not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
