"""Specification + profile → engine settings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_api.application import is_ours, server_deployment_name
from gptoss_api.engine import resolve, serving_arguments
from gptoss_api.engine_arguments import PERMITTED, typed
from gptoss_api.names import application_name, engine_model_id
from gptoss_api.profiles import profile_for
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
