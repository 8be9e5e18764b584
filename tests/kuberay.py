"""KubeRay for tests: its CRDs where a path names them, else the least of one that behaves alike.

``KUBERAY_CRDS`` names a folder with KubeRay's own CRDs (ray.io_*.yaml). No package carries them, so
tests that want their schemas are skipped without it; all others run on a RayService whose fields are
not checked.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from tests.controlplane import CRD_GONE_SECONDS

CRDS_VARIABLE = "KUBERAY_CRDS"


def real_crds() -> Path | None:
    """Return the folder with KubeRay's own CRDs, if one is named."""
    named = os.environ.get(CRDS_VARIABLE)
    return Path(named) if named else None


def install_rayservices(plane: ControlPlane, *, suspend: bool = True) -> None:
    """Install the unchecked RayService; ``suspend`` False makes it one of a KubeRay that can't suspend."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(rayservice_crd(suspend)))
    wait_until_served(plane)


def install_real_rayservices(plane: ControlPlane, folder: Path) -> None:
    """Install KubeRay's own RayService."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder / "ray.io_rayservices.yaml"))
    wait_until_served(plane)


def wait_until_served(plane: ControlPlane, *, served: bool = True) -> None:
    """Wait until the API server serves RayServices, or does not any more.

    Discovery lags behind: it goes on naming what was removed, and a list is the proof.
    """
    deadline = time.monotonic() + CRD_GONE_SECONDS
    while _serves_rayservices(plane) is not served:
        assert time.monotonic() < deadline, f"the RayService was {'never' if served else 'still'} served"
        time.sleep(0.2)


def _serves_rayservices(plane: ControlPlane) -> bool:
    try:
        plane.kubectl("get", "--raw", "/apis/ray.io/v1/rayservices?limit=1")
    except StepError as error:
        if "could not find the requested resource" not in str(error):
            raise
        return False
    return True


def remove_rayservices(plane: ControlPlane) -> None:
    """Take the CRD away, and all objects with it."""
    plane.kubectl("delete", "crd", "rayservices.ray.io", "--wait=false", "--ignore-not-found")
    wait_until_served(plane, served=False)


def rayservice_crd(suspend: bool = True) -> dict[str, Any]:
    """Return a CRD with RayService's name, scope, version and status subresource."""
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    spec = {**free, "properties": {"suspend": {"type": "boolean"}}} if suspend else free
    schema = {"type": "object", "properties": {"spec": spec, "status": free}}
    names = {"kind": "RayService", "listKind": "RayServiceList", "plural": "rayservices", "singular": "rayservice"}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayservices.ray.io"},
        "spec": {"group": "ray.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }
