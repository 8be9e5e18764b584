"""Install, upgrade and uninstall with the real Helm, around a living deployment; and the fence around the Lease."""

import json

from gptoss_cli.local.control_plane import ControlPlane
from tests.apiserver.chart.helm import NAME, WITHOUT_CRDS, Helm
from tests.apiserver.chart.release import deployment, eventually_refused, found, pod_token, write_status
from tests.controlplane import install_crds


def test_a_living_deployment_outlives_upgrade_and_uninstall(
    control_plane: ControlPlane, crds: list[str], helm: Helm, released: str
):
    taken = ("--take-ownership", "--force-conflicts")  # the CRDs were applied by hand before
    notes = helm.install(released, {}, *taken)
    assert "WeightTrustPolicy" in notes
    assert "gptoss keys create" in notes
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=deployment())
    before = found(control_plane, "gptoss", "assistant", released)
    assert found(control_plane, "deployment", NAME, released)["spec"]["replicas"] == 2

    helm.install(
        released, {"operator": {"replicas": 1}, "gateway": {"autoscaling": {"enabled": True}}}, "--force-conflicts"
    )
    assert found(control_plane, "deployment", NAME, released)["spec"]["replicas"] == 1
    assert found(control_plane, "hpa", f"{NAME}-gateway", released)["spec"]["maxReplicas"] == 10
    assert found(control_plane, "gptoss", "assistant", released) == before

    helm.uninstall(released)
    assert found(control_plane, "gptoss", "assistant", released) == before
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
    tokens = {pod: pod_token(control_plane, released, pod) for pod in ("leader", "deposed")}
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": NAME},
        "spec": {"holderIdentity": "leader", "leaseDurationSeconds": 12},
    }
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=json.dumps(lease))
    eventually_refused(lambda: write_status(control_plane, released, tokens["deposed"]), "does not hold the Lease")
    write_status(control_plane, released, tokens["leader"])
    lease["spec"]["holderIdentity"] = "deposed"
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=json.dumps(lease))
    eventually_refused(lambda: write_status(control_plane, released, tokens["leader"]), "does not hold the Lease")
    write_status(control_plane, released, tokens["deposed"])
