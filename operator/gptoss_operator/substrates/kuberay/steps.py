"""What to write next, from what is wanted and what is there. Pure.

::

    asleep ──resume──► awake ──suspend──► asleep
    change, BlueGreen: apply; KubeRay makes a new cluster beside the old one and moves over
    bounds alone:      reconfigure; Serve takes them in while it runs
    change, Recreate:  apply suspended → wait until KubeRay took all away and pods are gone → resume

A write that asks for suspension and changes everything else is safe: KubeRay looks at suspension first.
"""

from enum import StrEnum

from gptoss_operator.plan.applications import Absent, Present, Wish, covers
from gptoss_operator.substrates.kuberay.seen import SeenRayService


class Step(StrEnum):
    """The next write to a RayService."""

    NOTHING = "nothing"
    WAIT = "wait"
    APPLY = "apply"
    APPLY_SUSPENDED = "apply suspended"
    SUSPEND = "suspend"
    RESUME = "resume"
    RECONFIGURE = "reconfigure"


def next_step(
    wish: Wish | None, seen: SeenRayService | None, *, applied_generation: int | None, pods_left: bool
) -> Step:
    """Return the next step.

    Args:
        wish: what is wanted, None if nobody has asked.
        seen: the RayService, None if there is none.
        applied_generation: its generation after our own last write, None if this process wrote none.
        pods_left: pods of an earlier cluster still hold what they were given.
    """
    if isinstance(wish, Absent):
        asleep = seen is None or seen.suspend or seen.deleting
        return Step.NOTHING if asleep else Step.SUSPEND
    if not isinstance(wish, Present):
        return Step.NOTHING
    if wish.rendered is None or not wish.create:
        # What runs may be changed in place, and nothing may be started.
        awake = seen is not None and not seen.suspend and not seen.deleting
        return Step.RECONFIGURE if seen and awake and not covers(seen.config, wish.config) else Step.NOTHING
    if seen is None:
        return Step.APPLY
    if seen.deleting:
        return Step.WAIT
    revision = wish.config["revision"]
    ours = wish.rendered.revision == revision
    """What is rendered now is what is wanted, so applying it mends what others changed."""
    same = seen.config is not None and covers(seen.config, wish.config)
    if seen.suspend:
        if not wish.rendered.blue_green and (pods_left or not seen.suspended):
            return Step.WAIT
        return Step.RESUME if same and (not ours or applied_generation == seen.generation) else Step.APPLY
    if not same:
        restarts = seen.revision != revision
        return Step.APPLY_SUSPENDED if restarts and not wish.rendered.blue_green else Step.APPLY
    return Step.APPLY if ours and applied_generation != seen.generation else Step.NOTHING


def leads_to(seen: SeenRayService | None, before: str | None, ready: frozenset[str]) -> str | None:
    """Return the cluster that the deployment's Service should lead to.

    Args:
        seen: the RayService.
        before: where it leads now, None if nowhere or unknown.
        ready: clusters with a pod that takes requests.
    """
    if seen is None or seen.suspend or seen.deleting:
        return None
    best = seen.active or seen.pending
    if before is None or before == best or best is None:
        return best or before
    # What served goes on until the new one takes requests, unless it has nothing left to serve with.
    return best if best in ready or before not in ready else before
