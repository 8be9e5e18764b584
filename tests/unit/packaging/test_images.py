"""Dockerfiles by hadolint's rules and ours."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gptoss_operator.plan.rayservice.render import render
from tests.unit.operator.rayservices import site, workload
from tests.unit.packaging.test_tree import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
SERVING = [path for path in DOCKERFILES if path.name.startswith("serving")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path):
    program = Path(sys.executable).with_name("hadolint")
    command = [str(program), "--no-color", "--config", str(REPOSITORY / ".hadolint.yaml"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_end_without_root_and_install_by_hash_only(path: Path):
    text = path.read_text().replace("\\\n", " ")
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users[-1] not in {"0", "0:0", "root"}
    installs = re.findall(r"pip install[^&\n]*", text)
    assert installs
    for install in installs:
        words = set(install.split())
        by_hash = "--require-hashes" in words and "--only-binary :all:" in install
        nothing_fetched = "--no-index" in words and ("--no-build-isolation" in words or "--dry-run" in words)
        assert by_hash or nothing_fetched, install
    for lock in re.findall(r"locks/([\w.-]+\.txt) locks/", text) + re.findall(r"LOCK=([\w.-]+)", text):
        assert (REPOSITORY / "locks" / lock).is_file()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "locks").glob("*.txt")), ids=lambda path: path.name)
def test_locks_pin_by_hash(path: Path):
    if path.name.endswith(("overrides.txt", "base.txt")):
        return
    packages = re.findall(r"^[a-z0-9][^\n]*?==[^\n]*", path.read_text(), re.MULTILINE)
    assert len(packages) > (4 if path.name == "build.txt" else 30)
    assert all(package.endswith("\\") for package in packages)


def test_the_lock_of_the_build_has_the_build_backend_that_the_project_asks_for():
    (backend,) = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    assert f"\n{backend} \\\n" in "\n" + (REPOSITORY / "locks" / "build.txt").read_text()


def test_every_file_that_an_image_copies_reaches_the_builder():
    listed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line[1:].split("/")[0] for line in listed if line.startswith("!")}
    for path in DOCKERFILES:
        for sources in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+) \S+$", path.read_text(), re.MULTILINE):
            assert {source.split("/")[0] for source in sources.split()} <= allowed


def instructions(path: Path, name: str) -> list[str]:
    """Return what follows ``name`` wherever it stands, without line breaks and runs of spaces."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.name)
def test_serving_images_hold_what_kuberay_and_vllm_call(path: Path):
    (apt,) = re.findall(r"apt-get install -y --no-install-recommends ([^&]+)", instructions(path, "RUN")[0])
    assert set(apt.split()) == {"bash", "libnuma1", "wget"}
    assert instructions(path, "USER") == ["0:0", "1000:100"]


def test_serving_images_are_labelled_alike():
    assert len(SERVING) == 2
    labels, others = (instructions(path, "LABEL") for path in SERVING)
    assert labels == others
    assert len(re.findall(r"org\.opencontainers\.image\.\w+=", labels[0])) == 5


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.name)
def test_serving_images_say_what_kuberay_s_pods_are_told(path: Path):
    said = dict(pair.split("=", 1) for line in instructions(path, "ENV") for pair in line.split())
    cluster = render(workload(), site()).rayservice["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    switches = r"RAY_[A-Z]|VLLM_NO_|HF_HUB_"  # RAY_gcs_… is for a worker, and an image is every node's
    for pod in pods:
        (told,) = ({each["name"]: each["value"] for each in ray["env"]} for ray in pod["spec"]["containers"][:1])
        of_images = {name: value for name, value in told.items() if re.match(switches, name)}
        assert {name: value for name, value in said.items() if name != "PATH"} == of_images
        assert "PATH" not in told, "an image's PATH leads to its ray"
