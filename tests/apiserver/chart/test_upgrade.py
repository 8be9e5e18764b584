"""From an earlier chart to this one and to the end, as docs/install.md says it, around a living deployment."""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.names import FIELD_MANAGER
from gptoss_cli.local.assets import control_plane_programs, helm_program
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_kube.client import Kube
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS
from tests.apiserver.chart.helm import CHART, RELEASE, Helm, Raw
from tests.apiserver.chart.previous import NoHistoryError, previous
from tests.controlplane import CRD_GONE_SECONDS, CRDS, REPOSITORY, started_control_plane

EARLIER = sorted((Path(__file__).parent / "earlier").glob("*.yaml"))
INSTALL = (REPOSITORY / "docs" / "install.md").read_text()
SYSTEM = "gptoss-system"
OPERATOR = f"{RELEASE}-gptoss-operator"
SERVING = json.loads((REPOSITORY / "tests/unit/gitops/statuses/serving.json").read_text())["status"]
MODEL = {
    "apiVersion": "serving.gptoss.dev/v1alpha1",
    "kind": "GptOssDeployment",
    "metadata": {"name": "assistant", "namespace": "ml"},
    "spec": {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}, "scaling": {"maxReplicas": 3}},
}
SCHEDULES = [{"name": "office", "timeZone": "Europe/Berlin", "days": ["Mon"], "start": "08:00", "end": "18:00"}]
SCHEDULED = {**MODEL, "spec": {**MODEL["spec"], "scaling": {"maxReplicas": 3, "schedules": SCHEDULES}}}
REPORT = {
    "apiVersion": "serving.gptoss.dev/v1alpha1",
    "kind": "GatewayReport",
    "metadata": {"name": "gateway-a", "namespace": SYSTEM},
    "spec": {"gateway": "gateway-a", "heartbeat": 7, "renewedAt": "2026-01-01T00:00:00Z", "deployments": []},
}
LEASE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": OPERATOR, "namespace": SYSTEM}}


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster of its own, which has never seen our CRDs."""
    plane = started_control_plane(tmp_path_factory.mktemp("upgrade"))
    yield plane
    plane.stop()


@pytest.fixture(params=EARLIER, ids=lambda path: path.stem)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A chart that renders what an earlier one did."""
    chart = tmp_path / "earlier"
    (chart / "templates").mkdir(parents=True)
    described = {"apiVersion": "v2", "name": CHART.name, "version": "0.0.1", "appVersion": "0.0.1"}
    (chart / "Chart.yaml").write_text(json.dumps(described))
    text = request.param.read_text()
    assert "{{" not in text
    (chart / "templates" / "all.yaml").write_text(text.replace("RELEASE-NAMESPACE", "{{ .Release.Namespace }}"))
    return chart


@pytest.mark.timeout(1500)
def test_upgrade_rollback_and_both_ways_to_uninstall(plane: ControlPlane, earlier: Path, tmp_path: Path):
    helm = Helm(folder=tmp_path, plane=plane)
    for namespace in (SYSTEM, "ml"):
        plane.kubectl("create", "namespace", namespace)

    helm.run("install", RELEASE, str(earlier), "--namespace", SYSTEM)
    _eventually(lambda: _apply(plane, MODEL, "--dry-run=server"))
    _apply(plane, MODEL)
    _apply(plane, LEASE)  # the operator's
    _write_status(plane, SERVING)
    old, crds = _model(plane), _crds(plane)
    assert old["status"]["conditions"] == SERVING["conditions"]

    shell = Shell(plane, tmp_path)
    shell.run(*_commands("Upgrade"))
    _eventually(lambda: _apply(plane, SCHEDULED, "--dry-run=server"))
    assert _crds(plane) == crds, "a CRD that is made anew takes every object with it"
    new = _model(plane)
    assert new["status"] == old["status"]
    assert _identity(new) == _identity(old)
    assert new["spec"]["scaling"].items() >= old["spec"]["scaling"].items()
    assert GptOssDeployment.parse(new).spec.scaling.max_replicas == 3
    # Whoever applies the same manifest again changes nothing, and this chart's operator can write all that it knows.
    _apply(plane, MODEL)
    _write_status(plane, SERVING)
    assert _identity(_model(plane)) == _identity(old)
    assert _model(plane)["status"] == SERVING
    _apply(plane, SCHEDULED)
    assert _model(plane)["spec"]["scaling"]["schedules"][0]["name"] == "office"
    running = json.loads(plane.kubectl("get", "deployment", OPERATOR, "-n", SYSTEM, "-o", "json"))
    (container,) = running["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "images.test/gptoss-operator:0.1.0"

    helm.run("rollback", RELEASE, "1", "--namespace", SYSTEM)
    assert (_model(plane)["metadata"]["uid"], _crds(plane)) == (old["metadata"]["uid"], crds)
    shell.run(*_commands("Upgrade"))
    _eventually(lambda: _apply(plane, SCHEDULED, "--dry-run=server"))
    before = _model(plane)
    assert before["status"]["conditions"] == SERVING["conditions"]

    # Uninstalled, everything of the users stays, and a new install takes it over.
    keeping, ending = _commands("Uninstall")
    shell.run(keeping)
    assert (_model(plane), _crds(plane)) == (before, crds)
    assert OPERATOR not in plane.kubectl("get", "deployments,clusterroles", "-n", SYSTEM, "-o", "name")
    shell.run(*_commands("Upgrade", install=True))
    assert (_identity(_model(plane)), _crds(plane)) == (_identity(before), crds)

    # Ended as the page says, only the Lease is left.
    shell.run(ending)
    _eventually(lambda: _is_all_there_is(plane, {f"namespace/{SYSTEM}", f"lease.coordination.k8s.io/{OPERATOR}"}))


@pytest.mark.timeout(900)
def test_nothing_is_lost_on_the_way_from_the_previous_chart(plane: ControlPlane, tmp_path: Path):
    try:
        earlier = previous(tmp_path)
    except NoHistoryError as error:
        pytest.skip(f"no chart to upgrade from: {error}")
    helm = Helm(folder=tmp_path, plane=plane)
    for namespace in (SYSTEM, "ml"):
        plane.kubectl("create", "namespace", namespace)
    arguments = ("--namespace", SYSTEM, "--set", "image.registry=images.test")
    helm.run("install", RELEASE, str(earlier / "charts" / CHART.name), *arguments)
    _eventually(lambda: _apply(plane, MODEL, "--dry-run=server"))
    applied = [*_examples(earlier / "examples"), MODEL, REPORT]
    for raw in applied:
        _apply(plane, raw, "--namespace", raw["metadata"].get("namespace", "ml"))
    status = json.loads((earlier / "tests/unit/gitops/statuses/serving.json").read_text())["status"]
    _write_status(plane, status)
    before = _ours(plane)
    assert {kind for kind, _, _ in before} == {"GptOssDeployment", "WeightTrustPolicy", "GatewayReport"}

    helm.run("upgrade", RELEASE, str(CHART), *arguments)
    plane.restart_apiserver()  # from now on it knows no other schema than that of the new CRDs
    _eventually(lambda: _ours(plane))
    after = _ours(plane)
    assert after.keys() == before.keys()
    for key, old in before.items():
        new = after[key]
        assert new["metadata"] == old["metadata"], key
        assert _lost(old["spec"], new["spec"], "spec") == [], key
        assert new.get("status") == old.get("status"), key
    # What people have in their repositories is still right, and says nothing new.
    for raw in applied:
        _apply(plane, raw, "--namespace", raw["metadata"].get("namespace", "ml"))
    assert {key: _identity(raw) for key, raw in _ours(plane).items()} == {
        key: _identity(raw) for key, raw in before.items()
    }


class Shell:
    """Runs what the documents tell people to run, in a folder like a checkout with their values."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._checkout = folder / "checkout"
        self._checkout.mkdir()
        (self._checkout / "charts").symlink_to(REPOSITORY / "charts")
        (self._checkout / "my-values.yaml").write_text("image: {registry: images.test}")
        programs = f"{helm_program().parent}:{control_plane_programs().kubectl.parent}"
        self._environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "KUBECONFIG": str(plane.kubeconfig),
        }

    def run(self, *scripts: str) -> None:
        for script in scripts:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self._checkout,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=240 + CRD_GONE_SECONDS,
                check=False,
            )
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


def _commands(heading: str, *, install: bool = False) -> list[str]:
    """Return the commands under a heading of the page."""
    section = re.split(r"^## ", INSTALL, flags=re.MULTILINE)
    (text,) = (each for each in section if each.startswith(f"{heading}\n"))
    found = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return [script.replace("helm upgrade", "helm install") if install else script for script in found]


def _crds(plane: ControlPlane) -> dict[str, str]:
    """Return the uid of each of our CRDs."""
    names = [json.loads(path.read_text())["metadata"]["name"] for path in sorted(CRDS.glob("*.yaml"))]
    found = json.loads(plane.kubectl("get", "crd", *names, "-o", "json"))["items"]
    return {each["metadata"]["name"]: each["metadata"]["uid"] for each in found}


def _examples(folder: Path) -> list[Raw]:
    """Return our kinds among the examples, each named after its file: two files show two shapes of one model."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        for number, each in enumerate(yaml.safe_load_all(path.read_text())):
            if each and str(each.get("apiVersion")).startswith("serving.gptoss.dev/"):
                each["metadata"]["name"] = f"{path.stem}-{number}"
                found.append(each)
    return found


def _ours(plane: ControlPlane) -> dict[tuple[str, str, str], Raw]:
    """Return every object of our kinds, by kind, namespace and name."""
    kinds = "gptossdeployments,weighttrustpolicies,gatewayreports"
    items = json.loads(plane.kubectl("get", kinds, "--all-namespaces", "-o", "json"))["items"]
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in items}


def _lost(old: Any, new: Any, path: str) -> list[str]:
    """Return what was there and is not, or is another; what comes by default is no loss."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [gone for name in old for gone in _lost(old[name], new.get(name), f"{path}.{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [gone for index, (one, other) in pairs for gone in _lost(one, other, f"{path}[{index}]")]
    return [] if old == new else [f"{path}: {old!r} became {new!r}"]


def _model(plane: ControlPlane) -> Raw:
    return json.loads(plane.kubectl("get", "gptoss", "assistant", "-n", "ml", "-o", "json"))


def _identity(raw: Raw) -> tuple[str, int]:
    return raw["metadata"]["uid"], raw["metadata"]["generation"]


def _is_all_there_is(plane: ControlPlane, wanted: set[str]) -> None:
    """Raise unless these are all objects that have anything of ours in their names, but for events."""
    found = set()
    for namespaced, where in (("true", ("-n", SYSTEM)), ("false", ())):
        listed = plane.kubectl("api-resources", "--verbs=list,delete", f"--namespaced={namespaced}", "-o", "name")
        kinds = ",".join(kind for kind in listed.split() if not kind.startswith("events"))
        found |= set(plane.kubectl("get", kinds, *where, "-o", "name", "--ignore-not-found").split())
    assert {name for name in found if "gptoss" in name} == wanted


def _apply(plane: ControlPlane, raw: Raw, *arguments: str) -> None:
    plane.kubectl("apply", *arguments, "-f", "-", stdin=json.dumps(raw))


def _eventually(what: Callable[[], None]) -> None:
    """The API server takes a moment to serve a new schema, and to forget a kind."""
    deadline = time.monotonic() + 120
    while True:
        try:
            what()
        except (StepError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def _write_status(plane: ControlPlane, status: Raw) -> None:
    metadata = _model(plane)["metadata"]
    known = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")}

    async def write() -> None:
        async with Kube(kubeconfig=plane.kubeconfig) as kube:
            document = {"metadata": known, "status": status}
            await kube.apply_status(document, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER)

    asyncio.run(write())
