"""What a cluster tells of its accelerators, and what follows for a deployment."""

from dataclasses import replace
from typing import Any

import pytest

from gptoss_api.clusters import RayCluster
from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_api.hardware import accelerator_named
from gptoss_api.profiles import profile_for
from gptoss_operator.plan.applications import Absent, Keep, Present
from gptoss_operator.plan.demand import UNKNOWN
from gptoss_operator.plan.fit import Finding, engine_for, fit_of
from gptoss_operator.plan.observation import (
    ApplicationView,
    Hardware,
    NodeKind,
    Observation,
    Placement,
    Trust,
    Trusted,
)
from gptoss_operator.plan.verdict import Phase
from gptoss_operator.substrates.nodes import hardware_of
from tests.builders import DIGEST, deployment
from tests.contract.operator.fake_ray import gpu_node
from tests.unit.operator.test_lifecycle import DENIED, DRAIN, QUIET, ROOMY, SMALL, World, idle, serving

BLACKWELL = Hardware(where="Ray cluster local", kinds=(NodeKind(candidates=(accelerator_named("B200"),), count=8),))
LARGE = {"model": {"name": "gpt-oss-120b", "uri": "s3://m/x"}}
TWO = {"parallelism": {"tensor": 2}}


def cluster(**more: Any) -> RayCluster:
    return RayCluster(
        name="shared",
        dashboard_url="http://ray:8265",
        serve_url="http://ray:8000",
        gateway_token_file="/token",
        **more,
    )


def finding(hardware: Hardware | None, trust: Trust = None, **spec: Any) -> Finding | None:
    asked = deployment(**spec)
    engine = engine_for(asked.spec, profile_for(asked.spec.model.name), hardware)
    observed = Observation(
        deployment=asked,
        status=GptOssDeploymentStatus(),
        placement=Placement(cluster="shared"),
        application=ApplicationView(),
        hardware=hardware,
        trust=trust,
        demand=UNKNOWN,
        now=0.0,
        wall="now",
    )
    return fit_of(observed, engine)


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str, list[str]]] = {
    "a large node": ([gpu_node("H100", 8)], {}, "Fits", ["gpt-oss-20b on 1 x H100-80GB"]),
    "the smallest counts": ([gpu_node("A100", 8)], {}, "Fits", ["A100-40GB"]),
    "either kind of A100 may be meant": ([gpu_node("A100", 8)], LARGE, "DependsOnNode",
                                         ["A100-40GB: DoesNotFit", "A100-80GB: Fits", "rayClusters[].hardware"]),
    "not verified": ([gpu_node("L40S", 1)], {}, "Unverified", ["try it before you rely on it"]),
    "too small": ([gpu_node("L4", 1)], LARGE, "DoesNotFit", ["spec.parallelism.tensor 8", "A100-80GB"]),
    "too few on a node": ([gpu_node("H100", 1), gpu_node("H100", 1)], {**LARGE, **TWO}, "DoesNotFit",
                          ["spec.parallelism.tensor is 2", "(the most is 1)", "set it to 1 or less"]),
    "only one of two kinds holds it": ([gpu_node("L4", 1), gpu_node("H100", 1)], LARGE, "DependsOnNode",
                                       ["L4: DoesNotFit", "H100-80GB: Fits"]),
    "an unknown kind beside one too small": ([gpu_node("L4", 1), gpu_node("TPU-V6E", 4)], LARGE, "DependsOnNode",
                                             ["TPU-V6E"]),
    "no node": ([], {}, "HardwareUnknown", ["Ray cluster shared", "rayClusters[].hardware"]),
    "a dead node": ([gpu_node("T4", 1, state="DEAD")], {}, "HardwareUnknown", []),
    "only kinds that are not known": ([gpu_node("TPU-V6E", 4)], {}, "HardwareUnknown", ["TPU-V6E"]),
    "CPUs only": ([{"state": "ALIVE", "resources_total": {"CPU": 8.0}}], {}, "HardwareUnknown", []),
    "no MXFP4": ([gpu_node("T4", 1)], {}, "DoesNotFit", ["compute capability 7.5"]),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "spec", "reason", "parts"), CASES.values(), ids=CASES.keys())
def test_what_rays_nodes_tell(nodes, spec, reason, parts) -> None:
    found = finding(hardware_of(cluster(), nodes), **spec)
    assert found is not None
    assert found.reason == reason, found.message
    assert found.blocks == (reason == "DoesNotFit")
    assert [part for part in parts if part not in found.message] == [], found.message
    assert len(found.message) <= 1024


@pytest.mark.parametrize(
    ("nodes", "accelerator"),
    [
        ([gpu_node("H100", 8)], "H100-80GB"),
        ([gpu_node("A100", 8)], "A100-40GB"),
        ([gpu_node("L4", 1)], "L4"),
        ([gpu_node("H100", 1), gpu_node("B200", 1)], "H100-80GB"),
    ],
)
def test_the_estimate_is_that_of_the_smallest_accelerator(nodes: list[dict[str, Any]], accelerator: str) -> None:
    found = finding(hardware_of(cluster(), nodes))
    assert found is not None
    told = found.estimate
    assert told is not None
    assert told.accelerator == accelerator
    assert 12 * 2**30 < told.weights_bytes < 16 * 2**30
    assert 0 < told.kv_cache_bytes < told.memory_bytes - told.weights_bytes
    assert told.largest_context > 8192


@pytest.mark.parametrize("case", ["either kind of A100 may be meant", "no node", "no MXFP4", "too few on a node"])
def test_there_is_no_estimate_where_nothing_was_estimated(case: str) -> None:
    nodes, spec, _, _ = CASES[case]
    found = finding(hardware_of(cluster(), nodes), **spec)
    assert found is not None
    assert found.estimate is None


def test_an_estimate_is_told_while_it_is_of_this_generation() -> None:
    world = serving()
    assert world.status.fit is None
    world.hardware = ROOMY
    world.settle()
    told = world.status.fit
    assert told is not None
    world.hardware = None
    world.settle()
    assert world.status.fit == told, "while nobody looks"
    world.generation += 1
    world.settle()
    assert world.status.fit is None, "nobody has looked at this one"


def test_nothing_is_said_before_the_cluster_was_looked_at() -> None:
    assert finding(None) is None


def test_the_order_of_nodes_makes_no_difference() -> None:
    nodes = [gpu_node("L4", 1), gpu_node("H100", 8), gpu_node("A100", 4), gpu_node("H100", 4)]
    assert hardware_of(cluster(), nodes) == hardware_of(cluster(), nodes[::-1])


def test_a_narrower_type_tells_which_is_meant() -> None:
    node = gpu_node("A100", 8)
    node["resources_total"]["accelerator_type:A100-80G"] = 1.0
    found = finding(hardware_of(cluster(), [node]), **LARGE)
    assert found is not None
    assert found.reason == "Fits"


def test_an_administrators_word_counts_more_than_nodes() -> None:
    told = cluster(hardware={"accelerator": "h100-80gb", "perNode": 8})
    found = finding(hardware_of(told, [gpu_node("T4", 1)]), **LARGE, **TWO)
    assert found is not None
    assert found.reason == "Fits"
    slice_of_it = cluster(hardware={"accelerator": "H100-80GB", "memoryGiB": 20})
    found = finding(hardware_of(slice_of_it, []), **LARGE)
    assert found is not None
    assert found.reason == "DoesNotFit"


@pytest.mark.parametrize(
    ("hardware", "text"),
    [({"accelerator": "H9000"}, "H100-80GB"), ({"accelerator": "CPU"}, "memoryGiB"), ({"perNode": 1}, "accelerator")],
)
def test_an_administrators_mistake_is_named(hardware, text) -> None:
    with pytest.raises(ValueError, match=text):
        cluster(hardware=hardware)


def test_the_size_of_the_files_counts() -> None:
    trusted = Trusted(
        manifest_digest=DIGEST,
        signer="ab",
        authority="release",
        policy="default",
        source="one",
        checked_at="then",
        weight_bytes=42_000_000_000,
    )
    hardware = hardware_of(cluster(), [gpu_node("A100", 1)])
    known, unknown = finding(hardware, trusted), finding(hardware)
    assert known is not None
    assert unknown is not None
    assert (known.reason, unknown.reason) == ("DependsOnNode", "Fits")


def test_a_model_of_unknown_shape_is_not_judged() -> None:
    custom = {"model": {"name": "custom", "uri": "s3://m/x"}, "verification": {"subject": "acme/x"}}
    found = finding(hardware_of(cluster(), [gpu_node("T4", 1)]), **custom)
    assert found is not None
    assert (found.status, found.reason, found.blocks) == ("Unknown", "ModelUnknown", False)


def test_accelerators_that_ask_for_different_settings_get_the_general_ones() -> None:
    spec, profile = deployment().spec, profile_for("gpt-oss-20b")
    mixed = hardware_of(cluster(), [gpu_node("B200", 8), gpu_node("H100", 8)])
    assert engine_for(spec, profile, mixed) == engine_for(spec, profile, None)
    assert engine_for(spec, profile, hardware_of(cluster(), [gpu_node("B200", 8)])).arguments["kv_cache_dtype"] == "fp8"


def test_what_can_not_fit_is_not_started_and_says_what_would() -> None:
    world = World()
    world.hardware = SMALL
    world.settle()
    assert world.phase is Phase.FAILED
    assert world.condition("Fit") == ("False", "DoesNotFit")
    assert world.condition("Ready") == ("False", "DoesNotFit")
    assert world.condition("Stalled") == ("True", "DoesNotFit")
    assert [wish for wish in world.wishes if isinstance(wish, Present)] == []
    assert "compute capability" in next(each.message for each in world.status.conditions if each.type == "Fit")


def test_larger_accelerators_start_what_waited_for_them() -> None:
    world = World()
    world.hardware = SMALL
    world.settle()
    world.hardware = ROOMY
    world.live()
    assert world.phase is Phase.SERVING
    assert world.condition("Fit") == ("True", "Fits")


def test_unknown_accelerators_stop_no_start() -> None:
    world = World()
    world.hardware = Hardware(where="Ray cluster local")
    world.live()
    assert world.phase is Phase.SERVING
    assert world.condition("Fit") == ("Unknown", "HardwareUnknown")
    message = next(each.message for each in world.status.conditions if each.type == "Fit")
    assert "rayClusters[].hardware" in message


def test_a_new_operator_does_not_start_what_did_not_fit_before_it_has_looked() -> None:
    world = World()
    world.hardware = SMALL
    world.settle()
    before = world.status
    world.memory, world.asked, world.hardware = None, None, None
    world.settle()
    assert world.status == before
    assert not isinstance(world.asked, Present)


def test_what_has_answered_is_not_stopped_by_an_estimate() -> None:
    world = serving()
    world.hardware = SMALL
    world.live()
    assert world.phase is Phase.SERVING
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Fit") == ("False", "DoesNotFit")


def test_a_change_that_can_not_fit_leaves_what_serves_alone() -> None:
    world = serving()
    world.hardware = ROOMY
    world.settle()
    world.spec = {**world.spec, "engine": {"gpuMemoryUtilization": 0.1}}
    world.generation += 1
    world.settle()
    assert world.condition("Stalled") == ("True", "DoesNotFit")
    assert isinstance(world.asked, Keep)
    assert world.view.answering


def test_nodes_that_come_and_go_restart_no_engine() -> None:
    world = World(model={"name": "gpt-oss-120b", "uri": "s3://m/x"}, parallelism={"tensor": 2})
    world.hardware = ROOMY
    world.settle()
    world.cluster()
    before = world.asked
    assert isinstance(before, Present)
    assert before.config["args"]["engine"]["max_num_batched_tokens"] == 8192
    for other in (Hardware(where="Ray cluster local"), BLACKWELL, None):
        world.hardware = other
        world.settle()
        assert isinstance(world.asked, Present)
        assert world.asked.config == before.config


def test_the_profile_follows_the_accelerators() -> None:
    world = World()
    world.hardware = BLACKWELL
    world.live()
    assert world.status.engine is not None
    assert "--kv-cache-dtype fp8" in world.status.engine.line


def test_what_is_changed_of_the_profile_is_told() -> None:
    world = serving(engine={"maxNumSeqs": 7})
    assert world.status.engine is not None
    assert world.status.engine.customized == ("max_num_seqs",)


def test_denied_weights_are_stopped_even_where_a_change_does_not_fit() -> None:
    world = serving()
    world.hardware = ROOMY
    world.spec = {**world.spec, "engine": {"gpuMemoryUtilization": 0.1}}
    world.generation += 1
    world.settle()
    assert world.condition("Stalled") == ("True", "DoesNotFit")
    world.trust, world.revocation = DENIED, DRAIN
    world.demand = replace(QUIET, acknowledged=10**6)
    for _ in range(3):
        world.now += 4000
        world.settle()
        world.cluster()
    assert isinstance(world.asked, Absent)


def test_what_has_answered_before_wakes_whatever_the_estimate_says() -> None:
    world = idle()
    world.hardware = SMALL
    world.settle()
    assert world.phase is Phase.IDLE
    world.annotations = {"serving.gptoss.dev/wake": "now"}
    world.live()
    assert world.phase is Phase.SERVING
