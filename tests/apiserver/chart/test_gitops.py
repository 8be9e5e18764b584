"""GitOps tools and people find nothing to change: applying again is clean, whoever else writes."""

import json
from pathlib import Path

import pytest
import yaml

from gptoss_api.names import FIELD_MANAGER
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_kube.client import Kube
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS
from tests.controlplane import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
MODELS = sorted(EXAMPLES.glob("gpt-oss-*.yaml"))
NAMES = {
    path: each["metadata"]["name"]
    for path in MODELS
    for each in yaml.safe_load_all(path.read_text())
    if each["kind"] == "GptOssDeployment"
}
SERVING = json.loads((REPOSITORY / "tests/unit/gitops/statuses/serving.json").read_text())
TOOLS = {
    "argoproj.io/v1alpha1": {"Application": "applications"},
    "source.toolkit.fluxcd.io/v1": {"GitRepository": "gitrepositories"},
    "helm.toolkit.fluxcd.io/v2": {"HelmRelease": "helmreleases"},
    "kustomize.toolkit.fluxcd.io/v1": {"Kustomization": "kustomizations"},
}


@pytest.mark.parametrize("manifest", MODELS, ids=lambda path: path.stem)
async def test_applying_again_changes_nothing_and_nobody_fights(
    control_plane: ControlPlane, crds: list[str], namespace: str, manifest: Path
):
    apply = ("apply", "--server-side", "--field-manager=argocd-controller", "-n", namespace, "-f", str(manifest))
    control_plane.kubectl(*apply)
    name, status = NAMES[manifest], SERVING["status"]
    async with Kube(kubeconfig=control_plane.kubeconfig) as kube:
        written = await kube.get(GPT_OSS_DEPLOYMENTS, name, namespace=namespace)
        identity = {key: written["metadata"][key] for key in ("namespace", "name", "uid", "resourceVersion")}
        await kube.apply_status(
            {"metadata": identity, "status": status}, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER
        )
        before = await kube.get(GPT_OSS_DEPLOYMENTS, name, namespace=namespace)
        control_plane.kubectl(*apply)
        after = await kube.get(GPT_OSS_DEPLOYMENTS, name, namespace=namespace)
    for each in (before, after):
        # The API server lists managers in the order of their last turn, and writes a changed order down.
        del each["metadata"]["managedFields"], each["metadata"]["resourceVersion"]
    assert after == before
    assert after["status"]["conditions"] == status["conditions"]
    # kubectl diff fails if there is a difference, with defaults and a status in the object.
    diff = ("diff", "--server-side", "--field-manager=argocd-controller", "-n", namespace, "-f", str(manifest))
    assert control_plane.kubectl(*diff) == ""


@pytest.mark.parametrize("manifest", MODELS, ids=lambda path: path.stem)
def test_client_side_apply_is_clean_too(control_plane: ControlPlane, crds: list[str], namespace: str, manifest: Path):
    # kubectl calls an object "configured" that has defaults in a list; the server knows that nothing changed.
    version = ("-n", namespace, "-f", str(manifest), "-o", "jsonpath={..metadata.resourceVersion}")
    assert control_plane.kubectl("apply", *version) == control_plane.kubectl("apply", *version)
    assert control_plane.kubectl("diff", "-n", namespace, "-f", str(manifest)) == ""


@pytest.fixture(scope="module")
def tools(control_plane: ControlPlane) -> None:
    """The tools' kinds, without their schemas."""
    names = []
    for api_version, kinds in TOOLS.items():
        group, version = api_version.split("/")
        for kind, plural in kinds.items():
            served = {
                "name": version,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
            crd = {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": f"{plural}.{group}",
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                    "versions": [served],
                },
            }
            control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(crd))
            names.append(f"crd/{plural}.{group}")
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=150s", *names)


@pytest.mark.parametrize("path", sorted((EXAMPLES / "gitops").glob("*.yaml")), ids=lambda path: path.name)
def test_the_tools_examples_are_accepted(control_plane: ControlPlane, tools: None, namespace: str, path: Path):
    objects = [each for each in yaml.safe_load_all(path.read_text()) if each]
    for each in objects:
        each["metadata"]["namespace"] = namespace
        control_plane.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(each))


def test_the_tools_examples_name_what_exists():
    argo = list(yaml.safe_load_all((EXAMPLES / "gitops" / "argocd.yaml").read_text()))
    chart = argo[0]["spec"]["source"]
    assert (REPOSITORY / chart["path"] / "Chart.yaml").is_file()
    for file in chart["helm"]["valueFiles"]:
        assert (REPOSITORY / chart["path"] / file).is_file()
    flux = list(yaml.safe_load_all((EXAMPLES / "gitops" / "flux.yaml").read_text()))
    release = next(each for each in flux if each["kind"] == "HelmRelease")
    assert (REPOSITORY / release["spec"]["chart"]["spec"]["chart"] / "Chart.yaml").is_file()
