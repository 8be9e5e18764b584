"""What heads tell of the KubeRay that made them."""

from typing import Any

import pytest

from gptoss_operator.substrates.kuberay.follow import lean_pod
from gptoss_operator.substrates.kuberay.maker import Maker


def head(tags: str | None, *, before: str | None = None) -> dict[str, Any]:
    """A head as KubeRay makes it; `before` is what an administrator had said in the same variable."""
    told = [{"name": "RAY_USAGE_STATS_EXTRA_TAGS", "value": each} for each in (before, tags) if each is not None]
    environment = [{"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}, *told]
    containers = [{"name": "ray-head", "env": environment}, {"name": "autoscaler"}]
    return {"metadata": {"name": "head"}, "spec": {"containers": containers}}


@pytest.mark.parametrize(
    ("pod", "version"),
    [
        (head("kuberay_version=v1.6.2;kuberay_crd=RayService"), "v1.6.2"),
        (head("kuberay_version=v1.7.0;kuberay_crd=RayService", before="kuberay_version=v0.1;team=ml"), "v1.7.0"),
        (head("team=ml"), None),
        (head(None), None),
        ({"metadata": {"name": "bare"}}, None),
    ],
)
def test_a_head_tells_the_version_that_made_it(pod: dict[str, Any], version: str | None) -> None:
    assert lean_pod(pod)["maker"] == version


def test_the_newest_head_counts_whatever_order_they_are_seen_in() -> None:
    maker = Maker()
    assert maker.flaw() is None, "nothing is known yet"
    assert maker.saw("2026-01-01T10:00:00Z", "v1.6.2")
    flaw = maker.flaw()
    assert flaw is not None
    assert flaw[0] == "KubeRayTooOld"
    assert "is v1.6.2, which is older than its CRDs" in flaw[1]
    assert "updates it to 1.7.0 or later" in flaw[1]
    assert not maker.saw("2026-01-01T10:00:00Z", "v1.6.2"), "nothing new"
    assert not maker.saw("2026-01-01T12:00:00Z", None), "a worker tells nothing"
    assert maker.flaw() == flaw
    assert maker.saw("2026-01-01T11:00:00Z", "v1.7.0")
    assert maker.flaw() is None
    assert not maker.saw("2026-01-01T10:00:00Z", "v1.6.2"), "what was made before says nothing of now"
    assert maker.flaw() is None


def test_a_version_that_is_no_number_is_not_called_old() -> None:
    maker = Maker()
    maker.saw("2026-01-01T10:00:00Z", "nightly")
    assert maker.flaw() is None
