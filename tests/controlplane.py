"""A control plane for tests: started once per session, with our CRDs, and fresh namespaces in it."""

import json
from pathlib import Path

from gptoss_cli.local.assets import control_plane_programs
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.programs import Programs

REPOSITORY = Path(__file__).parent.parent
CRDS = REPOSITORY / "crds"
CRD_GONE_SECONDS = 420
"""How long a CRD may take to go: the API server, busy with its storage just then, looks again after five minutes."""
# The identities of the local stack: without any right until a test (or a manifest) grants some.
OPERATOR_USER = "gptoss-operator"
GATEWAY_USER = "gptoss-gateway"
TENANT_USER = "tenant"


def started_control_plane(folder: Path) -> ControlPlane:
    """Return a running control plane in `folder` that ends with this process, whatever happens to it."""
    plane = ControlPlane(
        folder / "control-plane",
        binaries=control_plane_programs(),
        programs=Programs(folder / "run", attached=True),
        identities={OPERATOR_USER: (), GATEWAY_USER: (), TENANT_USER: ()},
    )
    plane.start()
    return plane


def install_crds(plane: ControlPlane, *, folder: Path = CRDS) -> list[str]:
    """Apply the generated CRDs server-side and return their names once all are established."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
    names = [json.loads(path.read_text())["metadata"]["name"] for path in sorted(folder.glob("*.yaml"))]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=150s", *(f"crd/{name}" for name in names))
    return names


def custom_resource_plurals(plane: ControlPlane) -> list[str]:
    """Return our namespaced kinds that the API server serves now, as `plural.group`."""
    listed = plane.kubectl("api-resources", "--namespaced", "--api-group=serving.gptoss.dev", "-o", "name")
    return listed.split()


def empty_namespace(plane: ControlPlane, namespace: str) -> None:
    """Delete all our objects in a namespace, so that no later test's operator finds them."""
    if plurals := custom_resource_plurals(plane):
        plane.kubectl("delete", ",".join(plurals), "--all", "--namespace", namespace, "--wait=false")
