"""What a replica checks and resolves before an engine may start."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_api.application import ServingArguments, WeightsArguments
from gptoss_serving.engine import engine_arguments, placement, runtime_environment
from gptoss_serving.errors import (
    NodeMisconfiguredError,
    RayTooOldError,
    VersionMismatchError,
    VocabularyError,
    WeightsRefusedError,
)
from gptoss_serving.node import Node
from gptoss_serving.preflight import check_node, parse_arguments
from gptoss_serving.vocabulary import derive
from gptoss_serving.weights import ensure, prepared_copy, verified_copy
from gptoss_weights.errors import DigestMismatchError
from tests.builders import DIGEST

ENVIRONMENT = {"GPTOSS_WEIGHTS_DIR": "/weights", "GPTOSS_GATEWAY_TOKENS_FILE": "/tokens"}
TELLS = {"enable_prompt_tokens_details": True}
FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}


def test_arguments_come_back_as_the_operator_wrote_them() -> None:
    assert parse_arguments(_arguments().wire()) == _arguments()


@pytest.mark.parametrize(
    ("change", "said"), [({"schema": 2}, "schema 2"), ({"tensor": 3}, "tensor"), ({"surprise": 1}, "surprise")]
)
def test_arguments_of_another_release_are_refused_with_a_reason(change: dict[str, Any], said: str) -> None:
    with pytest.raises(VersionMismatchError, match=f"^gptoss-reason=ServingVersionMismatch; .*{said}"):
        parse_arguments({**_arguments().wire(), **change})


def test_the_engines_environment_comes_from_the_operator() -> None:
    arguments = parse_arguments({**_arguments().wire(), "environment": {"VLLM_ROCM_USE_AITER": "1"}})
    assert runtime_environment(arguments) == {"env_vars": {"VLLM_ROCM_USE_AITER": "1"}}
    assert runtime_environment(_arguments()) is None


def test_names_every_package_and_flag_that_a_node_lacks() -> None:
    with pytest.raises(NodeMisconfiguredError) as caught:
        check_node({}, installed=lambda name: name != "vllm")

    assert "package vllm is not installed" in str(caught.value)
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in str(caught.value)
    assert "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1" in str(caught.value)
    check_node(FLAGS, installed=lambda _: True)


@pytest.mark.parametrize("there", ["2.59.1", "2.9.3", "1.13.0", "2.59.0rc1"])
def test_a_ray_that_is_too_old_is_named_before_anything_that_it_lacks(there: str) -> None:
    said = rf"^gptoss-reason=RayTooOld; Ray {there} runs here and 2\.60\.0 or later is needed"
    with pytest.raises(RayTooOldError, match=said):
        check_node({}, installed=lambda _: False, ray_version=lambda: there)


@pytest.mark.parametrize("there", ["2.60.0", "2.61.0rc0", "2.100.1", "3.0.0.dev0", ""])
def test_a_newer_ray_or_one_that_tells_no_version_is_tried(there: str) -> None:
    check_node(FLAGS, installed=lambda _: True, open_files=lambda: 65536, ray_version=lambda: there)


def test_an_old_ray_is_named_though_it_lacks_modules_that_the_application_is_built_on(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").touch()
    (tmp_path / "ray-2.40.0.dist-info").mkdir()
    (tmp_path / "ray-2.40.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.40.0\n")
    program = "import json, sys; from gptoss_serving.app import build; build(json.load(sys.stdin))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(_arguments().wire()),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "gptoss-reason=RayTooOld; Ray 2.40.0 runs here" in done.stderr


def test_says_what_keeps_haproxy_from_starting() -> None:
    with pytest.raises(NodeMisconfiguredError, match=r"may open 1024 files and HAProxy needs 10276: .*LimitNOFILE"):
        check_node(FLAGS, installed=lambda _: True, open_files=lambda: 1024)

    check_node(FLAGS, installed=lambda _: True, open_files=lambda: 65536)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"GPTOSS_WEIGHTS_DIR": ""}, "GPTOSS_WEIGHTS_DIR"),
        ({"GPTOSS_WEIGHTS_DIR": "relative"}, "GPTOSS_WEIGHTS_DIR"),
        ({"GPTOSS_GATEWAY_TOKENS_FILE": ""}, "GPTOSS_GATEWAY_TOKENS_FILE"),
        ({"GPTOSS_DEVICE": "tpu"}, "GPTOSS_DEVICE"),
    ],
)
def test_names_the_variable_that_a_node_lacks(change: dict[str, str], said: str) -> None:
    with pytest.raises(NodeMisconfiguredError, match=f"^gptoss-reason=NodeMisconfigured; {said}"):
        Node.from_environment({**ENVIRONMENT, **change})


def test_a_gpu_engine_gets_the_operators_arguments_as_they_are_and_its_group_on_one_node() -> None:
    node = Node.from_environment(ENVIRONMENT)

    assert engine_arguments(_arguments(tensor=2), node) == {**_arguments().engine, **TELLS}
    assert placement(node, _arguments()) == {"bundle_per_worker": {"GPU": 1, "CPU": 1}, "strategy": "STRICT_PACK"}
    pipeline = _arguments().model_copy(update={"pipeline": 2})
    assert placement(node, pipeline) == {"bundle_per_worker": {"GPU": 1, "CPU": 1}, "strategy": "PACK"}


def test_a_cpu_engine_gets_what_a_cpu_can_do() -> None:
    node = Node.from_environment({**ENVIRONMENT, "GPTOSS_DEVICE": "cpu"})

    arguments = engine_arguments(_arguments(), node)

    assert arguments == {"enforce_eager": True, "dtype": "bfloat16", "max_model_len": 2048, **TELLS}
    assert placement(node, _arguments()) == {"bundles": [{"CPU": 1}]}
    with pytest.raises(NodeMisconfiguredError, match=r"spec\.parallelism\.tensor is 2"):
        engine_arguments(_arguments(tensor=2), node)
    with pytest.raises(NodeMisconfiguredError, match=r"spec\.parallelism\.pipeline is 2"):
        engine_arguments(_arguments().model_copy(update={"pipeline": 2}), node)


def test_every_node_puts_the_same_weights_into_the_same_folder() -> None:
    node = Node.from_environment(ENVIRONMENT)
    weights = _arguments().weights
    other = weights.model_copy(update={"manifest_digest": "sha256:" + "cd" * 32})

    assert node.copy_of(weights) == node.copy_of(weights)
    assert node.copy_of(weights).is_relative_to("/weights")
    assert node.copy_of(weights) != node.copy_of(other)


def test_refused_weights_keep_their_reason_on_one_line_and_across_processes(tmp_path: Path) -> None:
    error = WeightsRefusedError.because(DigestMismatchError("model.safetensors is\nnot what was signed"))

    assert str(error) == "gptoss-reason=DigestMismatch; model.safetensors is not what was signed"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    node = Node(weights_dir=tmp_path / "copies", gateway_tokens_file=tmp_path, device="cpu")
    with pytest.raises(WeightsRefusedError, match=r"^gptoss-reason=SourceNotAllowed; "):
        verified_copy(_arguments(uri=f"file://{tmp_path}").weights, node)


def test_a_prepared_copy_is_taken_as_it_is_if_this_process_could_not_have_changed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = {"GPTOSS_WEIGHTS_PREPARED": "1", "GPTOSS_VOCABULARY_DIR": str(tmp_path / "vocabularies")}
    node = Node.from_environment({**ENVIRONMENT, "GPTOSS_WEIGHTS_DIR": str(tmp_path), **prepared})
    weights = _arguments().weights
    with pytest.raises(NodeMisconfiguredError, match="there is no verified copy"):
        ensure(weights, node)
    node.copy_of(weights).mkdir(parents=True)
    with pytest.raises(NodeMisconfiguredError, match="not mounted read-only"):
        ensure(weights, node)
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert prepared_copy(weights, node) == node.copy_of(weights)
    assert node.vocabulary_of(weights).parent == tmp_path / "vocabularies"
    node.hold(weights)
    assert not (tmp_path / "locks").exists(), "nothing is written beside a prepared copy"


@pytest.mark.parametrize("tokenizer", [{}, {"model": {"vocab": {"a": 0, "b": 1}}}, {"model": {"vocab": {"ש": 0}}}])
def test_a_tokenizer_that_is_not_gpt_oss_is_refused(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(VocabularyError, match=r"^gptoss-reason=ForbiddenContent; tokenizer\.json"):
        derive(tokenizer)


def _arguments(*, tensor: int = 1, uri: str = "file:///models/tiny") -> ServingArguments:
    return ServingArguments.model_validate(
        {
            "installation": "test",
            "namespace": "ml",
            "name": "tiny",
            "modelId": "gpt-oss.ml.tiny.0123456789",
            "weights": WeightsArguments(uri=uri, manifest_digest=DIGEST, subject="gpt-oss-tiny").model_dump(
                by_alias=True
            ),
            "tensor": tensor,
            "engine": {"max_model_len": 2048, "gpu_memory_utilization": 0.9},
        }
    )
