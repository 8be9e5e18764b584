"""Which version KubeRay's operator has: it says so in the environment of each head that it makes. Pure.

Its CRDs, which tell what it may be asked for, are installed apart from it. An operator that is older than they are
leaves aside what it does not know, and says nothing.
"""

from collections.abc import Mapping
from typing import Any

from gptoss_api.conditions import Reason
from gptoss_api.versions import OLDEST_KUBERAY, is_older

_TAGS = "RAY_USAGE_STATS_EXTRA_TAGS"
"""``kuberay_version=v1.7.0;kuberay_crd=RayService``. Source: KubeRay's ``common/pod.go``, alike in 1.5 to 1.7."""
_VERSION = "kuberay_version="


class Maker:
    """The operator of KubeRay, as the newest head knows it."""

    def __init__(self) -> None:
        self._made_at = ""
        self._version = ""

    def saw(self, made_at: str, version: str | None) -> bool:
        """Take in when a pod was made, and by which version if it tells; tell whether something else is so now."""
        if version is None or made_at < self._made_at:
            return False
        before, self._made_at, self._version = self.flaw(), made_at, version
        return before != self.flaw()

    def flaw(self) -> tuple[str, str] | None:
        """Say that it is too old."""
        if not is_older(self._version, OLDEST_KUBERAY):
            return None
        return (
            Reason.KUBERAY_TOO_OLD,
            f"KubeRay's operator is {self._version}, which is older than its CRDs, and takes no Ray cluster away when "
            f"a model goes to sleep: an administrator updates it to {OLDEST_KUBERAY} or later. This ends with the next "
            "Ray cluster that it makes",
        )


def maker_of(pod: Mapping[str, Any]) -> str | None:
    """Return the version of KubeRay that a raw pod was made by; None of what does not tell, as workers."""
    told = [
        tag.removeprefix(_VERSION)
        for container in (pod.get("spec") or {}).get("containers") or ()
        for variable in container.get("env") or ()
        if variable["name"] == _TAGS
        for tag in str(variable.get("value") or "").split(";")
        if tag.startswith(_VERSION)
    ]
    return told[-1] if told else None
