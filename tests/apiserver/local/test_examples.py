"""Every example is accepted by a real API server, strictly: no unknown field, no refused value."""

import time
from pathlib import Path

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_gateway.settings import GatewaySettings
from gptoss_operator.settings import load_settings
from tests.controlplane import GATEWAY_USER, OPERATOR_USER, REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SETTINGS = {"operator.yaml", "gateway.yaml"}
ON_KUBERAY = "operator-kuberay.yaml"
# Values of the chart and objects of GitOps tools are applied by the chart's tests.
ELSEWHERE = {"helm", "gitops"}
MANIFESTS = sorted(
    path
    for path in EXAMPLES.rglob("*.yaml")
    if path.name not in {*SETTINGS, ON_KUBERAY} and path.relative_to(EXAMPLES).parts[0] not in ELSEWHERE
)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_is_accepted(control_plane: ControlPlane, crds: list[str], manifest: Path):
    if manifest.name == "rbac.yaml":  # its Role needs its Namespace, which a dry run does not make
        control_plane.kubectl("apply", "--validate=strict", "-f", str(manifest))
    else:
        # Another test's manager may hold what is in no namespace.
        dry_run = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
        control_plane.kubectl("apply", *dry_run, "-f", str(manifest))


def test_settings_are_read_by_operator_and_gateway():
    operator = load_settings(EXAMPLES / "operator.yaml")
    gateway = GatewaySettings.load(EXAMPLES / "gateway.yaml")
    assert operator.default_ray_cluster == gateway.default_ray_cluster
    assert {cluster.name for cluster in operator.ray_clusters} == {cluster.name for cluster in gateway.ray_clusters}


def test_settings_for_kuberay_can_be_used():
    settings = load_settings(EXAMPLES / ON_KUBERAY)
    assert settings.kube_ray_is_default
    assert settings.kube_ray is not None
    limits = settings.kube_ray.limits_of("elsewhere")
    assert limits is not None
    assert limits.max_accelerators == 2


class TestRights:
    """The roles of `rbac.yaml`: what operator and gateway need, and nothing beyond."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _granted(control_plane: ControlPlane, crds: list[str]) -> None:
        control_plane.kubectl("apply", "-f", str(EXAMPLES / "local" / "rbac.yaml"))

    @pytest.mark.parametrize(
        ("user", "verb", "what"),
        [
            (OPERATOR_USER, "watch", "gptossdeployments.serving.gptoss.dev"),
            (OPERATOR_USER, "patch", "gptossdeployments.serving.gptoss.dev/status"),
            (OPERATOR_USER, "list", "weighttrustpolicies.serving.gptoss.dev"),
            (OPERATOR_USER, "get", "secrets/gptoss-model-credentials"),
            (GATEWAY_USER, "watch", "gptossdeployments.serving.gptoss.dev"),
        ],
    )
    def test_may(self, control_plane: ControlPlane, user: str, verb: str, what: str):
        _eventually_may(control_plane, user, verb, what, "--all-namespaces")

    @pytest.mark.parametrize(
        ("user", "verb", "what"),
        [
            (OPERATOR_USER, "list", "secrets"),
            (OPERATOR_USER, "get", "secrets/gptoss-gateway-keys"),
            (OPERATOR_USER, "patch", "gptossdeployments.serving.gptoss.dev"),
            (OPERATOR_USER, "delete", "gptossdeployments.serving.gptoss.dev"),
            (OPERATOR_USER, "patch", "weighttrustpolicies.serving.gptoss.dev"),
            (OPERATOR_USER, "create", "pods"),
            (OPERATOR_USER, "patch", "secrets/gptoss-model-credentials"),
            (OPERATOR_USER, "delete", "rayservices.ray.io"),
            (GATEWAY_USER, "patch", "gptossdeployments.serving.gptoss.dev/status"),
            (GATEWAY_USER, "patch", "gptossdeployments.serving.gptoss.dev"),
            (GATEWAY_USER, "get", "secrets/gptoss-model-credentials"),
            (GATEWAY_USER, "create", "gatewayreports.serving.gptoss.dev"),
        ],
    )
    def test_may_not(self, control_plane: ControlPlane, user: str, verb: str, what: str):
        assert not _may(control_plane, user, verb, what, "--namespace", "default")

    def test_the_gateway_reports_in_the_system_namespace_only(self, control_plane: ControlPlane):
        reports = "gatewayreports.serving.gptoss.dev"
        _eventually_may(control_plane, GATEWAY_USER, "create", reports, "--namespace", "gptoss-system")


def _eventually_may(control_plane: ControlPlane, user: str, verb: str, what: str, *where: str) -> None:
    """The API server takes a moment to see new roles."""
    deadline = time.monotonic() + 60
    while not _may(control_plane, user, verb, what, *where):
        assert time.monotonic() < deadline, f"{user} may not {verb} {what}"
        time.sleep(0.2)


def _may(control_plane: ControlPlane, user: str, verb: str, what: str, *where: str) -> bool:
    resource, _, sub = what.partition("/")
    arguments = ["auth", "can-i", verb, what if resource == "secrets" else resource, *where]
    if sub and resource != "secrets":
        arguments.append(f"--subresource={sub}")
    try:
        return control_plane.kubectl(*arguments, user=user).strip() == "yes"
    except StepError:
        return False
