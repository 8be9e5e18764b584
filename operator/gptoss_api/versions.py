"""The oldest Ray and KubeRay that this release works with, and how the versions that they tell are compared."""

import re

OLDEST_RAY = "2.60.0"
"""Before, ``ray.serve.llm`` has no direct streaming as we use it."""
OLDEST_KUBERAY = "1.7.0"
"""Before, a RayService can't be suspended. Source: its ``rayservice_types.go`` of v1.6.2 and v1.7.0."""


def is_older(version: str, than: str) -> bool:
    """Tell whether a version such as ``2.55.1`` or ``v1.7.0-rc.0`` is of an older minor release.

    Unknown is not old: of a word such as ``nightly`` nothing can be said.
    """
    found, oldest = _release(version), _release(than)
    return found is not None and oldest is not None and found < oldest


def _release(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)(?!\d)", version)
    return (int(found[1]), int(found[2])) if found else None
