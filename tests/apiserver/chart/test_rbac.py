"""Exactly the rights of docs/rbac.md: the API server is asked about everything it serves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_kube.client import Kube
from gptoss_kube.resources import Resource
from tests.apiserver.chart.helm import Helm, of_kind
from tests.apiserver.operator.house import Stack, stack
from tests.controlplane import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "rbac.md").read_text()
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
REVIEWS = Resource(
    group="authorization.k8s.io",
    version="v1",
    plural="subjectaccessreviews",
    kind="SubjectAccessReview",
    namespaced=False,
)
LEASE = "gptoss-gptoss-operator"
CRD = "rayservices.ray.io"
CREDENTIALS = "gptoss-model-credentials"
NAMED = {"leases": LEASE, "customresourcedefinitions": CRD, "secrets": CREDENTIALS}
KUBERAY = {"kubeRay": {"enabled": True, "image": "images.test/gptoss-serving"}}
ACCOUNTS = {"operator": LEASE, "gateway": f"{LEASE}-gateway"}


@dataclass(frozen=True)
class Right:
    """May do this to that, somewhere."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str = ""


def documented(title: str) -> list[tuple[str, str, str, set[str]]]:
    """Return the rows of an account's table: where, group, resource, verbs."""
    section = DOCUMENT.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "where":
            assert cells[4], f"no reason given: {line}"
            rows.append((cells[0], cells[1], cells[2], set(cells[3].split())))
    assert rows
    return rows


def expected(*titles: str, system: str, tenant: str, elsewhere: str, namespaced: bool) -> set[Right]:
    """What the tables mean in the namespaces of a test."""
    rights = set()
    for where, group, resource, verbs in (row for title in titles for row in documented(title)):
        plain, _, by = resource.partition(", ")
        name = "" if not by else LEASE if by == "its own by name" else by.removesuffix(" by name")
        if where == "system":
            spaces = {system}
        elif where == "read" or not namespaced:
            spaces = {system, tenant, elsewhere}
        else:
            spaces = {tenant}
            if (
                titles[0] == "Operator"
                and plain in {"gptossdeployments", "gatewayreports"}
                and verbs == {"list", "watch"}
            ):
                spaces |= {system}
        rights |= {Right(verb, group, plain, space, name) for verb in verbs for space in spaces}
    # A right without a name holds for every name too.
    return rights | {
        replace(right, name=NAMED[right.resource]) for right in rights if right.resource in NAMED and not right.name
    }


@pytest.fixture
def elsewhere(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """A namespace of somebody else."""
    name = f"{namespace}-elsewhere"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def system(control_plane: ControlPlane, namespace: str, helm: Helm) -> Iterator[str]:
    """A namespace for the release."""
    name = f"{namespace}-system"
    control_plane.kubectl("create", "namespace", name)
    yield name
    helm.uninstall(name)
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(kubeconfig=control_plane.kubeconfig) as client:
        yield client


async def _served(kube: Kube) -> set[tuple[str, str]]:
    """Every group and resource (subresources included) that the API server serves."""
    groups = (await kube._send("GET", "/apis", timeout=10))["groups"]
    found = set()
    for group, path in [
        ("", "/api/v1"),
        *((g["name"], f"/apis/{v['groupVersion']}") for g in groups for v in g["versions"]),
    ]:
        listed = await kube._send("GET", path, timeout=10)
        found |= {(group, each["name"]) for each in listed["resources"]}
    return found


async def _granted(kube: Kube, system: str, account: str, asked: set[Right]) -> set[Right]:
    slots = asyncio.Semaphore(50)

    async def ask(right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": right.namespace,
            "name": right.name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": f"system:serviceaccount:{system}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{system}", "system:authenticated"],
                "resourceAttributes": {name: value for name, value in attributes.items() if value},
            },
        }
        async with slots:
            answer = await kube.create(review, resource=REVIEWS, field_manager="test", timeout=30)
        return bool(answer["status"]["allowed"])

    rights = sorted(asked, key=repr)
    return {right for right, yes in zip(rights, await asyncio.gather(*map(ask, rights)), strict=True) if yes}


# What every authenticated user may do by Kubernetes' own defaults.
EVERYBODY = {"selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"}


@pytest.mark.parametrize(
    ("namespaced", "kuberay"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["cluster-wide", "cluster-wide kuberay", "namespaced", "namespaced kuberay"],
)
async def test_each_account_may_do_exactly_what_the_table_says(
    control_plane: ControlPlane,
    crds: list[str],
    helm: Helm,
    kube: Kube,
    namespace: str,
    system: str,
    elsewhere: str,
    namespaced: bool,
    kuberay: bool,
):
    values = {
        "crds": {"enabled": False},
        "watchNamespaces": [namespace] if namespaced else [],
        "kubeRay": {"enabled": kuberay, "image": "images.test/gptoss-serving"},
    }
    await asyncio.to_thread(helm.install, system, values)
    served = {(group, resource) for group, resource in await _served(kube) if resource not in EVERYBODY}
    served |= {("", "pods/exec"), ("", "secrets"), ("ray.io", "rayservices")}
    for component, account in ACCOUNTS.items():
        asked = {
            Right(verb, group, resource, space, name)
            for group, resource in served
            for verb in VERBS
            for space in (system, namespace, elsewhere)
            for name in (("", NAMED[resource]) if resource in NAMED else ("",))
        }
        titles = [component.capitalize()]
        if kuberay and component == "operator":
            titles.append("Operator with KubeRay")
        wanted = expected(*titles, system=system, tenant=namespace, elsewhere=elsewhere, namespaced=namespaced)
        assert wanted <= asked
        deadline = time.monotonic() + 120  # the API server takes a moment to see new roles
        while (granted := await _granted(kube, system, account, asked)) != wanted and time.monotonic() < deadline:
            pass
        assert granted == wanted


async def test_people_get_deployments_but_never_the_status(
    control_plane: ControlPlane, crds: list[str], helm: Helm, system: str
):
    await asyncio.to_thread(helm.install, system, {"crds": {"enabled": False}})
    roles = {
        role: yaml.safe_load(control_plane.kubectl("get", "clusterrole", f"{LEASE}-{role}", "-o", "yaml"))
        for role in ("view", "edit", "admin")
    }
    for role, raw in roles.items():
        assert raw["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
        assert raw["rules"][0]["resources"] == ["gptossdeployments"]
    assert set(roles["view"]["rules"][0]["verbs"]) == {"get", "list", "watch"}
    assert "delete" in roles["edit"]["rules"][0]["verbs"]


def test_the_local_stack_has_the_charts_rights(helm: Helm):
    local = [each for each in yaml.safe_load_all((REPOSITORY / "examples" / "local" / "rbac.yaml").read_text()) if each]
    chart = helm.render("gptoss-system", values={"fullnameOverride": "gptoss-operator", **KUBERAY})
    for component, name in (("operator", "gptoss-operator"), ("gateway", "gptoss-gateway")):
        for kind in ("ClusterRole", "Role"):
            ours = [rule for role in of_kind(local, kind) if role["metadata"]["name"] == name for rule in role["rules"]]
            theirs = [
                rule
                for role in of_kind(chart, kind)
                if role["metadata"]["labels"]["app.kubernetes.io/component"] == component
                for rule in role["rules"]
            ]
            assert ours == theirs, f"{component}: {kind}"


async def test_the_operator_works_with_the_namespaced_rights(
    control_plane: ControlPlane, crds: list[str], helm: Helm, namespace: str, tmp_path: Path, free_port: int
):
    """The real process, logged in as the chart's service account, from apply to Ready and back."""
    async with stack(control_plane, namespace, tmp_path, free_port, start=False) as home:
        values = {"crds": {"enabled": False}, "watchNamespaces": [namespace], "gateway": {"enabled": False}}
        await asyncio.to_thread(helm.install, namespace, values)
        try:
            token = (await home.kubectl("create", "token", LEASE, "-n", namespace)).strip()
            settings = {
                **home.settings,
                "systemNamespace": namespace,
                "namespaces": [namespace],
                "leaderElection": {"leaseName": LEASE},
            }
            home.process = await home.spawn("operator", settings, kubeconfig=_kubeconfig(home, token))
            await home.apply()
            await home.wait_for("Ready", "True", "Serving")
            await home.wait_until_ready()
            assert "forbidden" not in (tmp_path / "operator.log").read_text().lower()
            assert await home.stop_operator() == 0
            held = await home.kubectl("get", "lease", LEASE, "-n", namespace, "-o", "jsonpath={.spec.holderIdentity}")
            assert held == "", "a clean end gives the Lease back"
        finally:
            await home.stop_operator()
            await asyncio.to_thread(helm.uninstall, namespace)


def _kubeconfig(home: Stack, token: str) -> Path:
    admin = yaml.safe_load(home.plane.kubeconfig.read_text())
    admin["users"][0]["user"] = {"token": token}
    path = home.folder / "account.kubeconfig"
    path.write_text(yaml.safe_dump(admin))
    return path
