"""What becomes of replicas whose weights are denied while they run.

Drained, they stop: gateways refuse new requests at once, and Ray lets running ones finish. Kept, they go
on, but never more of them than run now, and asleep they stay.
"""

import copy
from collections.abc import Mapping
from typing import Any

from gptoss_api.conditions import ConditionType, Reason
from gptoss_operator.plan.observation import Observation, Presence, Revocation, Trusted


def acting_revocation(observed: Observation) -> Revocation | None:
    """Return the revocation that counts now.

    None if the check finds that the very manifest is vouched for by somebody who is not denied: signed anew with
    another key, the bytes are the same. One that has found nothing yet holds up no revocation.
    """
    weights = observed.status.weights
    if observed.revocation is None or weights is None:
        return None
    if isinstance(observed.trust, Trusted) and observed.trust.manifest_digest == weights.manifest_digest:
        return None
    return observed.revocation


def must_stop(observed: Observation, revocation: Revocation) -> bool:
    """Tell whether the engine is to be stopped. A kept one that no longer runs must not start anew.

    One that answers runs, whatever Ray says: Ray's controller, started anew, knows of no replica for a while.
    """
    application = observed.application
    running = application.answering is True or (application.ready > 0 and application.failure is None)
    return revocation.drain or not running or _was_stopped(observed)


def capped(observed: Observation, wanted: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a configuration that never has more replicas than run now: that of what is wanted, else what is deployed.

    None if nothing is deployed.
    """
    application = observed.application
    deployed = application.deployed
    if application.presence is not Presence.PRESENT or deployed is None:
        return None
    before = _most(deployed)
    config = copy.deepcopy(dict(wanted if wanted is not None else deployed))
    for each in config.get("deployments") or ():
        bounds = each.get("autoscaling_config")
        if bounds is not None:
            running = application.ready or before
            most = max(1, min(running, bounds["max_replicas"], before))
            bounds |= {"max_replicas": most, "min_replicas": min(most, bounds["min_replicas"])}
    return config


def _was_stopped(observed: Observation) -> bool:
    conditions = {each.type: each for each in observed.status.conditions}
    stalled, ready = conditions.get(ConditionType.STALLED), conditions.get(ConditionType.ENGINE_READY)
    stopped = ready is not None and ready.reason == Reason.STOPPED
    return stopped and stalled is not None and stalled.status == "True"


def _most(deployed: Mapping[str, Any]) -> int:
    """The bound that is deployed: an earlier cap must not be lifted."""
    bounds = [
        int(each["autoscaling_config"]["max_replicas"])
        for each in deployed.get("deployments") or ()
        if (each.get("autoscaling_config") or {}).get("max_replicas") is not None
    ]
    return min(bounds, default=1)
