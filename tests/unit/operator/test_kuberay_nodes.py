"""What nodes' labels, a deployment and an administrator tell of accelerators on KubeRay, and what follows."""

from dataclasses import replace
from typing import Any

import pytest

from gptoss_api.deployment_status import EngineStatus, GptOssDeploymentStatus
from gptoss_api.profiles import profile_for
from gptoss_operator.plan.arguments import wanted_application
from gptoss_operator.plan.demand import UNKNOWN
from gptoss_operator.plan.fit import Finding, engine_for, fit_of
from gptoss_operator.plan.observation import (
    KUBERAY,
    ApplicationView,
    Observation,
    Placement,
    Presence,
    Site,
    Trusted,
)
from gptoss_operator.plan.planner import plan
from gptoss_operator.substrates.kuberay.nodes import hardware_for, lean_node
from tests.builders import DIGEST, deployment
from tests.unit.operator.rayservices import settings, site

H100, A100_40, L4, T4 = "NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-40GB", "NVIDIA-L4", "Tesla-T4"
LARGE = {"model": {"name": "gpt-oss-120b", "uri": "s3://m/x"}}
TRUSTED = Trusted(
    manifest_digest=DIGEST, signer="ab", authority="release", policy="default", source="one", checked_at="then"
)


def node(product: str | None, count: int = 1, *, resource: str = "nvidia.com/gpu", **labels: str) -> dict[str, Any]:
    """A node as the API server tells of it; keyword arguments are labels of gpu-feature-discovery."""
    found = {"kubernetes.io/arch": "amd64"} | ({"nvidia.com/gpu.product": product} if product else {})
    found |= {f"nvidia.com/gpu.{name.replace('_', '.')}": value for name, value in labels.items()}
    return {
        "metadata": {"name": "n", "uid": "u", "resourceVersion": "1", "labels": found},
        "spec": {},
        "status": {"allocatable": {"cpu": "8", "memory": "64Gi", "pods": "110", resource: str(count)}},
    }


def amd(product: str, count: int, vram: str = "192G") -> dict[str, Any]:
    labels = {"amd.com/gpu.product-name": product, "amd.com/gpu.vram": vram}
    return {"metadata": {"name": "n", "labels": labels}, "status": {"allocatable": {"amd.com/gpu": str(count)}}}


def finding(nodes: list[dict[str, Any]], *, at: dict[str, Any] | None = None, **spec: Any) -> Finding:
    asked = deployment(**spec)
    hardware = hardware_for(asked.spec, settings(**(at or {})), [lean_node(each) for each in nodes])
    observed = Observation(
        deployment=asked,
        status=GptOssDeploymentStatus(),
        placement=Placement(cluster=KUBERAY),
        application=ApplicationView(presence=Presence.ABSENT),
        hardware=hardware,
        trust=None,
        demand=UNKNOWN,
        now=0.0,
        wall="now",
    )
    found = fit_of(observed, engine_for(asked.spec, profile_for(asked.spec.model.name), hardware))
    assert found is not None
    return found


def asks(**accelerator: Any) -> dict[str, Any]:
    return {"accelerator": accelerator}


TWO, FOUR = ({"parallelism": {"tensor": size}} for size in (2, 4))
MIG = {"resourceName": "nvidia.com/mig-3g.40gb"}
POOL = {"hardware": [{"accelerator": "H100-80GB", "perNode": 8, "product": H100}]}

CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], str, list[str]]] = {
    "labels name the card": ([node(H100, 8, memory="81559")], LARGE, {}, "Fits", ["120b on 1 x H100-80GB"]),
    "a PCIe card has another name": ([node("NVIDIA-H100-PCIe", 8, memory="81559")], LARGE, {}, "Fits", ["H100-80GB"]),
    "an older driver's name": ([node("Tesla-T4", memory="15360")], {}, {}, "DoesNotFit", ["compute capability 7.5"]),
    "too small": ([node(A100_40, 8)], LARGE, {}, "DoesNotFit",
                  ["parallelism.tensor 4", "spec.accelerator.product names them"]),
    "less context": ([node(L4, memory="23034")], {"engine": {"maxNumSeqs": 512}}, {}, "FitsWithReducedContext",
                     ["set spec.engine.maxModelLen to"]),
    "too few on a node": ([node(H100, 2), node(H100, 2)], {**LARGE, **FOUR}, {}, "DoesNotFit",
                          ["spec.parallelism.tensor is 4", "(the most is 2)"]),
    "a card of no list is known by its figures": (
        [node("NVIDIA-A30", 4, memory="24576", compute_major="8", compute_minor="0")], {}, {}, "Unverified",
        ["on 1 x NVIDIA-A30"]),
    "a generation of before": (
        [node("Quadro-RTX-8000", memory="49152", compute_major="7", compute_minor="5")], {}, {}, "DoesNotFit",
        ["compute capability 7.5"]),
    "a generation of after": ([node("NVIDIA-X900", memory="999999", compute_major="99", compute_minor="0")], {}, {},
                              "HardwareUnknown", ["NVIDIA-X900"]),
    "no labels": ([node(None, 8)], {}, {}, "HardwareUnknown", ["nvidia.com/gpu of no known product", "node labeller"]),
    "no nodes": ([], {}, {}, "HardwareUnknown", ["kubeRay.hardware"]),
    "other nodes are not asked": ([node(T4), node(H100)], {**LARGE, **asks(product=H100)}, {}, "Fits", []),
    "either may be taken": ([node(T4), node(H100)], {}, {}, "DependsOnNode", ["T4: DoesNotFit", "H100-80GB: Fits"]),
    "a selector of the pods": ([node(T4), node(H100, pool="big")],
                               {"pod": {"nodeSelector": {"nvidia.com/gpu.pool": "big"}}}, {}, "Fits", []),
    "a product that no node has yet": ([node(T4)], {**LARGE, **TWO, **asks(product=H100)}, {}, "Fits", []),
    "a product that says too little": ([], asks(product="NVIDIA-A30"), {}, "HardwareUnknown", ["NVIDIA-A30"]),
    "a partition of one strategy": ([node(f"{H100}-MIG-1g.20gb", 4, memory="20096")], LARGE, {}, "DoesNotFit",
                                    ["-MIG-1g.20gb: the engine needs", "of 18.8 GiB"]),
    "a partition of its own name": (
        [node(H100, 2, resource="nvidia.com/mig-3g.40gb") | {}], asks(**MIG), {}, "Fits", []),
    "a shared card": ([node(f"{H100}-SHARED", 16, memory="81559", replicas="4")], {}, {}, "HardwareUnknown",
                      ["SHARED"]),
    "AMD": ([amd("AMD_Instinct_MI300X_OAM", 8)], {**LARGE, **asks(vendor="amd")}, {}, "Fits", ["MI300X"]),
    "NVIDIA's nodes are not AMD's": ([node(H100)], asks(vendor="amd"), {}, "HardwareUnknown", []),
    "a CPU": ([], {"accelerator": {"vendor": "cpu"}}, {}, "HardwareUnknown", ["vendor is cpu"]),
    "an administrator's word counts more": ([node(T4)], LARGE, POOL, "Fits", []),
    "but only for what it is": ([node(L4, memory="23034")], {**LARGE, **asks(product=L4)}, POOL, "DoesNotFit", ["L4"]),
    "an administrator's list is one of AMD": (
        [], {**LARGE, **asks(vendor="amd")}, {"hardware": [{"accelerator": "MI300X", "perNode": 8}]}, "Fits", []),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "spec", "at", "reason", "parts"), CASES.values(), ids=CASES.keys())
def test_what_is_told_of_accelerators(
    nodes: list[dict[str, Any]], spec: dict[str, Any], at: dict[str, Any], reason: str, parts: list[str]
) -> None:
    found = finding(nodes, at=at, **spec)
    assert found.reason == reason, found.message
    assert found.blocks == (reason == "DoesNotFit")
    assert [part for part in parts if part not in found.message] == [], found.message
    assert len(found.message) <= 1024


def test_a_partition_with_labels_of_its_own_has_its_own_memory() -> None:
    part = node(H100, 7, resource="nvidia.com/mig-1g.20gb", memory="81559")
    part["metadata"]["labels"] |= {
        "nvidia.com/mig-1g.20gb.product": f"{H100}-MIG-1g.20gb",
        "nvidia.com/mig-1g.20gb.memory": "20096",
    }
    found = finding([part], accelerator={"resourceName": "nvidia.com/mig-1g.20gb"}, **LARGE)
    assert (found.reason, "18.8 GiB" in found.message) == ("DoesNotFit", True)


def test_the_order_of_nodes_makes_no_difference() -> None:
    nodes = [lean_node(each) for each in (node(L4, 1), node(H100, 8), node(A100_40, 4), node(H100, 4))]
    spec = deployment().spec
    assert hardware_for(spec, settings(), nodes) == hardware_for(spec, settings(), nodes[::-1])


def test_of_a_node_little_is_kept() -> None:
    kept = lean_node(node(H100, 8))
    assert kept["counts"] == {"nvidia.com/gpu": 8}
    plain = lean_node({"metadata": {"name": "n", "labels": {"a": "b"}}, "status": {"allocatable": {"cpu": "8"}}})
    assert (plain["labels"], plain["counts"]) == ({}, {})


SITE = Site(installation="test", import_path="x:build", gateway_url="", kube_ray=site())


def observed(nodes: list[dict[str, Any]] | None, **more: Any) -> Observation:
    asked = deployment(scaling={"initial": "Prove"})
    known = [lean_node(each) for each in nodes] if nodes is not None else None
    return Observation(
        deployment=asked,
        placement=Placement(cluster=KUBERAY),
        hardware=hardware_for(asked.spec, settings(), known) if known is not None else None,
        demand=UNKNOWN,
        now=0.0,
        wall="2026-01-01T00:00:00Z",
        **{
            "status": GptOssDeploymentStatus(),
            "application": ApplicationView(presence=Presence.ABSENT),
            "trust": TRUSTED,
            **more,
        },
    )


def test_nothing_is_made_for_what_can_not_fit() -> None:
    planned = plan(observed([node(T4)]), None, SITE)
    assert planned.status is not None
    conditions = {each.type: (each.status, each.reason) for each in planned.status.conditions}
    assert conditions["Fit"] == conditions["Ready"] == ("False", "DoesNotFit")
    assert not planned.starting


def test_the_profile_follows_the_labels_and_a_sleeping_engine_keeps_it() -> None:
    on_h100 = wanted_application(observed([node(H100, 8)]), SITE)
    assert on_h100 is not None
    assert on_h100.config["args"]["engine"]["max_num_batched_tokens"] == 8192
    asleep = ApplicationView(presence=Presence.ABSENT, deployed=on_h100.config)
    for nodes in ([], [node(L4, memory="23034")], None):  # the last node of its kind went while it slept
        woken = wanted_application(observed(nodes, application=asleep), SITE)
        assert woken is not None
        assert woken.config == on_h100.config
    signed_anew = replace(TRUSTED, manifest_digest="sha256:" + "cd" * 32)
    woken = wanted_application(observed([], application=asleep, trust=signed_anew), SITE)
    assert woken is not None
    assert woken.config["args"]["engine"] == on_h100.config["args"]["engine"]
    assert woken.manifest_digest == signed_anew.manifest_digest


def test_an_update_that_waits_for_a_change_is_told_and_taken_with_it() -> None:
    first = wanted_application(observed([node(H100, 8)]), SITE)
    assert first is not None
    assert first.newer == ()
    status = GptOssDeploymentStatus(
        proved_generation=1, engine=EngineStatus(line=first.line, profile_version="gpt-oss-20b/1", max_num_seqs=256)
    )
    image = "serving@sha256:" + "2" * 64
    newer_site = replace(SITE, kube_ray=site(settings=settings(image=image)))
    for presence in (Presence.PRESENT, Presence.ABSENT):
        view = ApplicationView(presence=presence, deployed=first.config, answering=True, status="RUNNING")
        now = observed([node(H100, 8)], application=view, status=status)
        planned = plan(now, None, newer_site)
        assert planned.status is not None
        told = next(each for each in planned.status.conditions if each.type == "UpdateAvailable")
        assert (told.status, told.reason) == ("True", "NewerSettings")
        assert image in told.message
        kept = wanted_application(now, newer_site)
        assert kept is not None
        assert kept.config["revision"] == first.config["revision"]
        changed = replace(now, deployment=deployment(generation=2, engine={"maxNumSeqs": 8}))
        taken = wanted_application(changed, newer_site)
        assert taken is not None
        assert taken.newer == ()
        assert taken.rendered is not None
        assert taken.config["revision"] == taken.rendered.revision != first.config["revision"]
