"""Specification + profile → engine settings."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_api.application import is_ours, server_deployment_name
from gptoss_api.architecture import architecture_of
from gptoss_api.engine import max_ongoing_requests, resolve, serving_arguments, target_ongoing_requests
from gptoss_api.engine_arguments import PERMITTED, typed
from gptoss_api.fit import Verdict, assess, load_of
from gptoss_api.hardware import Family, accelerator_named, accelerators
from gptoss_api.names import application_name, engine_model_id
from gptoss_api.profiles import Profile, profile_for, profiles
from tests.builders import DIGEST, deployment


def test_every_model_speaks_harmony_with_tools() -> None:
    engine = resolve(deployment().spec, profile_for("gpt-oss-20b"))
    assert engine.arguments["tool_call_parser"] == "openai"
    assert engine.arguments["enable_auto_tool_choice"] is True


@pytest.mark.parametrize(("tensor", "utilization", "tokens"), [(1, 0.95, 1024), (2, None, None), (8, None, None)])
def test_120b_on_one_card_uses_more_memory_and_smaller_batches(tensor, utilization, tokens) -> None:
    spec = deployment(model={"name": "gpt-oss-120b", "uri": "s3://m/x"}, parallelism={"tensor": tensor}).spec
    arguments = resolve(spec, profile_for("gpt-oss-120b")).arguments
    assert arguments.get("gpu_memory_utilization") == utilization
    assert arguments.get("max_num_batched_tokens") == tokens
    assert arguments["tensor_parallel_size"] == tensor


def test_the_manifest_wins_over_the_profile() -> None:
    spec = deployment(
        engine={
            "maxModelLen": 4096,
            "maxNumSeqs": 8,
            "gpuMemoryUtilization": 0.9,
            "kvCacheDtype": "fp8",
            "extraArgs": {"max-num-batched-tokens": 2048},
        },
        model={"name": "gpt-oss-120b", "uri": "s3://m/x"},
    ).spec
    engine = resolve(spec, profile_for("gpt-oss-120b"))
    assert engine.arguments["max_model_len"] == 4096
    assert engine.arguments["max_num_batched_tokens"] == 2048
    assert (engine.arguments["gpu_memory_utilization"], engine.arguments["kv_cache_dtype"]) == (0.9, "fp8")
    assert engine.max_num_seqs == engine.arguments["max_num_seqs"] == 8
    assert engine.customized == (
        "gpu_memory_utilization",
        "kv_cache_dtype",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
    )


@pytest.mark.parametrize(
    ("parallelism", "expected"),
    [
        ({}, {"tensor_parallel_size": 1}),
        ({"tensor": 4, "pipeline": 1, "expert": False}, {"tensor_parallel_size": 4}),
        ({"tensor": 4, "pipeline": 2}, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}),
        ({"tensor": 2, "expert": True}, {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
    ],
)
def test_the_parallelism_becomes_vllms_and_nothing_that_is_so_by_default(parallelism, expected) -> None:
    subject = deployment(parallelism=parallelism)
    engine = resolve(subject.spec, profile_for("gpt-oss-20b"))
    assert {name: value for name, value in engine.arguments.items() if "parallel" in name} == expected
    wire = serving_arguments(subject, engine, installation="local", manifest_digest=DIGEST).wire()
    assert wire.get("pipeline") == expected.get("pipeline_parallel_size"), "what was before keeps its bytes"


def test_what_the_manifest_repeats_of_the_profile_is_not_customized() -> None:
    repeated = deployment(engine={"maxNumSeqs": 256, "maxModelLen": 131072}).spec
    assert resolve(repeated, profile_for("gpt-oss-20b")).customized == ()
    assert resolve(deployment().spec, profile_for("gpt-oss-20b")).customized == ()


BY_ACCELERATOR = [
    ("120b", 1, None, {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}),
    ("120b", 1, "A100-80GB", {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}),
    ("120b", 1, "H100-80GB", {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024}),
    ("120b", 1, "H200", {"gpu_memory_utilization": None, "max_num_batched_tokens": 8192}),
    ("120b", 2, "H100-80GB", {"gpu_memory_utilization": None, "max_num_batched_tokens": 8192}),
    ("120b", 1, "B200", {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192}),
    ("120b", 8, "MI300X", {"attention_backend": "ROCM_AITER_UNIFIED_ATTN", "block_size": 64}),
    ("20b", 1, None, {"gpu_memory_utilization": None, "max_num_seqs": 256, "enforce_eager": None}),
    ("20b", 1, "L4", {"max_num_seqs": 64, "max_model_len": 131072}),
    ("20b", 1, "RTX-5080", {"max_num_seqs": 8, "max_model_len": 8192, "enforce_eager": True}),
    ("20b", 2, "RTX-5080", {"max_num_seqs": 256, "max_model_len": 131072, "enforce_eager": None}),
]


@pytest.mark.parametrize(("model", "tensor", "accelerator", "expected"), BY_ACCELERATOR)
def test_profiles_differ_by_accelerator_as_the_recipes_do(model, tensor, accelerator, expected) -> None:
    name = f"gpt-oss-{model}"
    spec = deployment(model={"name": name, "uri": "s3://m/x"}, parallelism={"tensor": tensor}).spec
    card = accelerator_named(accelerator) if accelerator is not None else None
    arguments = resolve(spec, profile_for(name), card).arguments
    assert {argument: arguments.get(argument) for argument in expected} == expected


def test_only_amd_needs_environment_variables() -> None:
    spec, profile = deployment().spec, profile_for("gpt-oss-20b")
    needed = {each.family for each in accelerators() if resolve(spec, profile, each).environment}
    assert needed == {Family.CDNA3, Family.CDNA4}
    engine = resolve(spec, profile, accelerator_named("MI300X"))
    wire = serving_arguments(deployment(), engine, installation="local", manifest_digest=DIGEST).wire()
    assert wire["environment"]["VLLM_ROCM_USE_AITER"] == "1"
    plain = serving_arguments(deployment(), resolve(spec, profile), installation="local", manifest_digest=DIGEST)
    assert "environment" not in plain.wire()
    assert "revision" not in plain.wire()["weights"]


@pytest.mark.parametrize("profile", profiles(), ids=lambda profile: profile.name)
def test_every_rule_says_where_it_is_from(profile) -> None:
    assert [rule for rule in profile.rules if not rule.source] == []


def test_a_profile_with_other_numbers_has_another_version() -> None:
    # Raise the version of one that differs, and write its digest here: people are told of the update by it.
    assert {(each.name, each.version): _digest(each) for each in profiles()} == {
        ("gpt-oss-20b", 2): "0c4a7a2ab75150b1",
        ("gpt-oss-120b", 2): "5e899c683311e0ab",
        ("custom", 1): "cbf824bdf5e9d933",
    }


def _digest(profile: Profile) -> str:
    """Name everything of a profile that an engine is given, and where."""
    rules = [
        [
            sorted(rule.arguments.items()),
            sorted(rule.environment.items()),
            sorted(rule.families or ()),
            sorted(rule.tensor or ()),
            rule.below,
            rule.unknown,
        ]
        for rule in profile.rules
    ]
    content = [profile.max_model_len, profile.max_num_seqs, rules]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_profiles_fit_what_vllms_recipes_run_them_on(name) -> None:
    spec = deployment(model={"name": name, "uri": "s3://m/x"}).spec
    architecture = architecture_of(name)
    assert architecture is not None
    for card in accelerators():
        if not card.verified or (name == "gpt-oss-120b" and card.name == "A100-40GB"):
            continue
        load = load_of(resolve(spec, profile_for(name), card).arguments, architecture, card)
        assert assess(architecture, card, load).verdict is Verdict.FITS, card.name


@pytest.mark.parametrize("accelerator", ["A10", "A10G", "L4", "RTX-3090", "RTX-4090", "RTX-5080"])
def test_20b_fits_smaller_cards_with_their_profile(accelerator) -> None:
    architecture, card = architecture_of("gpt-oss-20b"), accelerator_named(accelerator)
    assert architecture is not None
    arguments = resolve(deployment().spec, profile_for("gpt-oss-20b"), card).arguments
    assert assess(architecture, card, load_of(arguments, architecture, card)).verdict is Verdict.UNVERIFIED


def test_the_line_reads_like_vllms_flags() -> None:
    spec = deployment(engine={"extraArgs": {"enable-prefix-caching": "false", "seed": 7}}).spec
    line = resolve(spec, profile_for("gpt-oss-20b")).line
    assert "--enable-auto-tool-choice " in line
    assert "--no-enable-prefix-caching" in line
    assert "--seed 7" in line


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"tokenizer": "x"}, ["extraArgs.tokenizer", "not permitted"]),
        ({"seed": "seven"}, ["extraArgs.seed", "'seven'", "integer"]),
        ({"enforce-eager": 1}, ["extraArgs.enforce-eager", "1", "boolean"]),
    ],
)
def test_a_forbidden_or_mistyped_argument_is_named(arguments, names) -> None:
    with pytest.raises(ValueError, match=names[0]) as failure:
        typed(arguments)
    for part in names:
        assert part in str(failure.value)


@given(st.permutations(sorted(PERMITTED)))
def test_arguments_are_byte_stable_whatever_the_order_of_the_manifest(order) -> None:
    values = {name: "true" if PERMITTED[name] == "boolean" else 3 for name in order}
    subject = deployment(engine={"extraArgs": values})
    engine = resolve(subject.spec, profile_for("gpt-oss-20b"))
    document = serving_arguments(subject, engine, installation="local", manifest_digest=DIGEST).wire()
    ordered = deployment(engine={"extraArgs": dict(sorted(values.items()))})
    again = serving_arguments(
        ordered, resolve(ordered.spec, profile_for("gpt-oss-20b")), installation="local", manifest_digest=DIGEST
    ).wire()
    assert json.dumps(document) == json.dumps(again)


def test_the_engines_id_is_unique_constant_and_recognisable() -> None:
    first, again, other = (engine_model_id("ml", "a", uid) for uid in ("u1", "u1", "u2"))
    assert first == again != other
    assert "gpt-oss" in first
    assert server_deployment_name(first).startswith("GptOssServer:gpt-oss_ml_a_")


def test_only_an_application_with_our_marker_is_ours() -> None:
    name = application_name("local", "ml", "a")
    assert is_ours({"name": name, "args": {"schema": 1, "installation": "local"}}, "local")
    assert not is_ours({"name": name, "args": {}}, "local")
    assert not is_ours({"name": name}, "local")
    assert not is_ours({"name": name, "args": {"schema": 1, "installation": "other"}}, "local")
    assert not is_ours({"name": "mine", "args": {"schema": 1, "installation": "local"}}, "local")


def test_an_unknown_model_lists_the_profiles_there_are() -> None:
    with pytest.raises(ValueError, match="gpt-oss-120b"):
        profile_for("llama")


@given(st.none() | st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 256))
def test_replicas_that_are_full_call_for_another(target: int | None, sequences: int, replicas: int) -> None:
    spec = deployment(scaling={"maxReplicas": 256} | ({"targetOngoingRequests": target} if target else {})).spec
    full = replicas * max_ongoing_requests(spec, sequences)
    assert full / target_ongoing_requests(spec, sequences) > replicas, "as Ray Serve divides and rounds up"


@pytest.mark.parametrize(("replicas", "full"), [(1, 5), (2, 6)])
def test_a_replica_takes_what_it_works_on_or_its_target(replicas: int, full: int) -> None:
    scaling = {"maxReplicas": replicas, "targetOngoingRequests": 5}
    assert max_ongoing_requests(deployment(scaling=scaling).spec, 4) == full
    assert max_ongoing_requests(deployment(scaling=scaling).spec, 8) == 8
