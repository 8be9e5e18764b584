"""Dockerfiles by hadolint's rules and ours."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.packaging.test_tree import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))


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
        assert "--require-hashes" in install or install.split()[-2:] == ["--no-deps", "."]
    for lock in re.findall(r"locks/([\w.-]+\.txt) locks/", text) + re.findall(r"LOCK=([\w.-]+)", text):
        assert (REPOSITORY / "locks" / lock).is_file()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "locks").glob("*.txt")), ids=lambda path: path.name)
def test_locks_pin_by_hash(path: Path):
    if path.name.endswith("overrides.txt"):
        return
    packages = re.findall(r"^[a-z0-9][^\n]*?==[^\n]*", path.read_text(), re.MULTILINE)
    assert len(packages) > 30
    assert all(package.endswith("\\") for package in packages)


def test_every_file_that_an_image_copies_reaches_the_builder():
    listed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line[1:].split("/")[0] for line in listed if line.startswith("!")}
    for path in DOCKERFILES:
        for sources in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+) \S+$", path.read_text(), re.MULTILINE):
            assert {source.split("/")[0] for source in sources.split()} <= allowed
