"""`gptoss fit`: a table for people, JSON for programs, exit codes for scripts."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.main import main
from tests.builders import deployment_object


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["fit", *(str(argument) for argument in arguments)])


def manifest(folder: Path, *deployments: dict) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump_all([{"kind": "Namespace"}, *deployments]))
    return path


def test_says_yes_with_the_bytes_and_the_engines_line() -> None:
    result = run("--model", "gpt-oss-120b", "--gpu", "h100-80gb", "--tensor", 1)
    assert result.exit_code == ExitCode.OK
    assert "gpt-oss-120b on 1 x H100-80GB: Fits" in result.output
    assert "65.9 GiB" in result.output
    assert "--max-num-batched-tokens 1024" in result.output


def test_says_no_with_what_would_fit() -> None:
    result = run("--model", "gpt-oss-120b", "--gpu", "A100-40GB")
    assert result.exit_code == ExitCode.NEGATIVE
    assert "DoesNotFit" in result.output
    assert "spec.parallelism.tensor 4" in result.output


def test_a_reduced_context_is_no_yes() -> None:
    options = ("--model", "gpt-oss-20b", "--gpu", "A10G", "--gpu-memory-utilization", 0.8)
    assert run(*options).exit_code == ExitCode.NEGATIVE
    assert "FitsWithReducedContext" in run(*options).output
    assert run(*options, "--max-model-len", 16384, "--max-num-seqs", 32).exit_code == ExitCode.OK


def test_json_carries_every_number() -> None:
    result = run("--model", "gpt-oss-20b", "--gpu", "H200", "--json")
    document = json.loads(result.output)
    assert document["verdict"] == "Fits"
    assert document["accelerator"]["family"] == "Hopper"
    assert document["bytesPerAccelerator"]["kvAvailable"] > document["bytesPerAccelerator"]["kvSequence"]
    assert document["largestContext"] == document["maxModelLen"] == 131072
    assert document["customized"] == []


def test_a_field_that_is_none_is_refused_and_not_left_out(tmp_path: Path) -> None:
    typo = deployment_object(parallelism={"tensr": 2})
    result = run("-f", manifest(tmp_path, typo), "--gpu", "H200")
    assert result.exit_code == ExitCode.FAILED
    assert "spec.parallelism.tensr: Extra inputs are not permitted" in result.output


def test_what_differs_from_the_profile_is_told() -> None:
    assert "(Customized: max_num_seqs)" in run("--model", "gpt-oss-20b", "--gpu", "H200", "--max-num-seqs", 16).output
    assert "VLLM_ROCM_USE_AITER=1" in run("--model", "gpt-oss-20b", "--gpu", "MI300X").output


def test_reads_every_deployment_of_a_manifest(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        deployment_object("small"),
        deployment_object("large", model={"name": "gpt-oss-120b", "uri": "s3://m/x"}, parallelism={"tensor": 2}),
    )
    result = run("-f", path, "--gpu", "A100-40GB", "--json")
    assert result.exit_code == ExitCode.NEGATIVE
    assert {each["name"]: each["verdict"] for each in json.loads(result.output)} == {
        "ml/small": "Fits",
        "ml/large": "DoesNotFit",
    }


@pytest.mark.parametrize("example", ["gpt-oss-20b", "gpt-oss-120b"])
def test_the_examples_fit_an_h100(example: str) -> None:
    assert run("-f", f"examples/{example}.yaml", "--gpu", "H100-80GB").exit_code == ExitCode.OK


def test_a_cpu_needs_to_be_told_its_memory() -> None:
    assert run("--model", "gpt-oss-20b", "--gpu", "CPU").exit_code == ExitCode.USAGE
    result = run("--model", "gpt-oss-20b", "--gpu", "CPU", "--memory", 64)
    assert result.exit_code == ExitCode.OK
    assert "Unverified" in result.output


def test_an_accelerator_of_unpublished_memory_is_judged_by_what_it_is_told() -> None:
    told = ("--model", "gpt-oss-20b", "--gpu", "arc-pro-b60")
    asked = run(*told)
    assert asked.exit_code == ExitCode.USAGE
    assert "--memory" in asked.output
    fits = run(*told, "--memory", 23, "--json")
    assert fits.exit_code == ExitCode.OK
    document = json.loads(fits.output)
    assert (document["verdict"], document["accelerator"]["family"]) == ("Unverified", "Xe2")
    assert run(*told, "--memory", 12).exit_code == ExitCode.NEGATIVE


def test_lists_what_is_known() -> None:
    assert "MI355X" in run("--list").output
    assert {"H100-80GB", "L4"} <= {each["name"] for each in json.loads(run("--list", "--json").output)}


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--gpu", "H200"), ExitCode.USAGE, "--model or -f"),
        (("--model", "gpt-oss-20b"), ExitCode.USAGE, "--gpu"),
        (("--model", "gpt-oss-20b", "--gpu", "H9000"), ExitCode.USAGE, "H100-80GB"),
        (("--model", "gpt-oss-20b", "--gpu", "H200", "--tensor", 9), ExitCode.USAGE, "parallelism.tensor"),
        (("-f", "examples/operator.yaml", "--gpu", "H200"), ExitCode.FAILED, "no GptOssDeployment"),
        (("-f", "examples/gpt-oss-20b.yaml", "--gpu", "H200", "--tensor", 2), ExitCode.USAGE, "from the manifest"),
    ],
)
def test_faults_are_sentences(options: tuple[object, ...], code: ExitCode, text: str) -> None:
    result = run(*options)
    assert (result.exit_code, text in result.output) == (code, True), result.output
    assert "Traceback" not in result.output


def test_a_manifest_that_is_wrong_names_the_field(tmp_path: Path) -> None:
    result = run("-f", manifest(tmp_path, deployment_object(parallelism={"tensor": "two"})), "--gpu", "H200")
    assert result.exit_code == ExitCode.FAILED
    assert "spec.parallelism.tensor" in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [\n", "is not YAML (line 2)"),
        ("\0", "is not YAML"),
        ("kind: GptOssDeployment\nmetadata: a word\n", "no metadata.name"),
        ("kind: GptOssDeployment\nmetadata: {name: x}\nspec:\n", "x: spec: Input should be"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    result = run("-f", path, "--gpu", "H200")
    assert result.exit_code == ExitCode.FAILED
    (line,) = result.output.splitlines()
    assert str(path) in line
    assert said in line


def test_a_custom_model_can_not_be_looked_at(tmp_path: Path) -> None:
    custom = deployment_object(model={"name": "custom", "uri": "s3://m/x"}, verification={"subject": "acme/x"})
    result = run("-f", manifest(tmp_path, custom), "--gpu", "H200")
    assert result.exit_code == ExitCode.FAILED
    assert "tells no sizes" in result.output
