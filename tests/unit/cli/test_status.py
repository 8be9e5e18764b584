"""What `gptoss status` shows in which colour."""

import pytest

from gptoss_api.conditions import ConditionType
from gptoss_cli.status import _colour, _print_one
from tests.builders import DIGEST, deployment_object

HEALTHY = {
    ConditionType.READY: ("True", "green"),
    ConditionType.FIT: ("True", "green"),
    ConditionType.WEIGHTS_VERIFIED: ("True", "green"),
    ConditionType.STALLED: ("False", "green"),
    ConditionType.REVOKED: ("False", "green"),
    ConditionType.DEGRADED: ("False", "green"),
    ConditionType.NAME_CONFLICT: ("False", "green"),
    ConditionType.RECONCILING: ("False", ""),
    ConditionType.ENGINE_READY: ("False", ""),
    ConditionType.SCALED_TO_ZERO: ("True", ""),
    ConditionType.UPDATE_AVAILABLE: ("True", ""),
}
OTHER = {"True": "False", "False": "True"}


@pytest.mark.parametrize("kind", ConditionType)
def test_nothing_of_a_healthy_sleeping_deployment_is_red_and_its_opposite_is(kind: ConditionType) -> None:
    status, colour = HEALTHY[kind]

    assert _colour(kind, status) == colour
    assert _colour(kind, OTHER[status]) == ("red" if colour else "")
    assert _colour(kind, "Unknown") == ("yellow" if colour else "")


def test_the_image_that_runs_and_the_size_of_the_weights_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    deployment = deployment_object("assistant", "ml")
    image = "registry.test/serving@sha256:" + "1" * 8
    signed = {"manifestDigest": DIGEST, "authority": "release", "signer": "ab", "policy": "default"}
    _print_one({**deployment, "status": {"engine": {"image": image}, "weights": {**signed, "bytes": 3 * 2**29}}})
    shown = "".join(capsys.readouterr().out.split())
    assert f"Image{image}" in shown
    assert f"{DIGEST}(1.5GiB)" in shown
    _print_one({**deployment, "status": {"weights": signed}})
    without = "".join(capsys.readouterr().out.split())
    assert "Image" not in without
    assert "GiB" not in without
