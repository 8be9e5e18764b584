"""The wheel, as somebody who has only pip gets it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.unit.packaging.test_images import SERVING, instructions
from tests.unit.packaging.test_tree import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment's Python, which has pip and nothing else."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(clean_environment: Path) -> Path:
    out = clean_environment.parents[2] / "out"
    command = [str(clean_environment), "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(out), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("gptoss_operator-*.whl"))


def test_holds_every_room_and_the_pinned_go_modules_and_no_stray_file(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[0] for name in names}
    assert {name for name in rooms if not name.endswith(".dist-info")} == {
        "gptoss_api",
        "gptoss_cli",
        "gptoss_gateway",
        "gptoss_kube",
        "gptoss_operator",
        "gptoss_serving",
        "gptoss_weights",
    }
    for module in ("controlplane", "objectstore", "kwok"):
        assert {f"gptoss_cli/local/{module}/go.mod", f"gptoss_cli/local/{module}/go.sum"} <= set(names)


def test_installs_with_plain_pip_and_imports(clean_environment: Path, wheel: Path, tmp_path: Path):
    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout

    python = str(clean_environment)
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[operator,gateway]")
    run(python, "-m", "pip", "check")
    rooms = "gptoss_api, gptoss_kube, gptoss_weights, gptoss_operator, gptoss_gateway, gptoss_cli.main"
    heavy = "[name for name in ('ray', 'vllm', 'torch') if name in sys.modules]"
    assert run(python, "-c", f"import sys, {rooms}; print({heavy})").strip() == "[]"
    for module in ("gptoss_operator", "gptoss_gateway"):
        run(python, "-m", module, "--help")
    assert "weights" in run(str(clean_environment.parent / "gptoss"), "--help")


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.name)
def test_serving_images_build_it_with_their_lock_alone_and_keep_nothing_of_the_build(path: Path, tmp_path: Path):
    """The image's own command, in a copy of what the image holds then."""
    (command,) = [each for each in instructions(path, "RUN") if "--no-build-isolation" in each]
    source, environment, temporary = tmp_path / "source", tmp_path / "venv", tmp_path / "temporary"
    for name in ("operator", "serving"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "locks/build.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, source / name)
    temporary.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True)

    def run(*words: str, **variables: str) -> str:
        variables |= {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(temporary)}
        done = subprocess.run(
            words, cwd=source, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout

    run("sh", "-ec", command)
    assert list(temporary.iterdir()) == []
    listed = run("pip", "list", "--format", "freeze", "--exclude", "pip", "--exclude", "setuptools")
    assert re.sub(r"==.*", "", listed).split() == ["gptoss-operator"]
    # What it imports comes from the image's other lock; here from these tests' environment.
    assert "weights" in run("gptoss", "--help", PYTHONPATH=sysconfig.get_path("purelib"))
