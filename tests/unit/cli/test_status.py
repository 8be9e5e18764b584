"""What `gptoss status` shows in which colour."""

import pytest

from gptoss_api.conditions import ConditionType
from gptoss_cli.status import _colour

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
