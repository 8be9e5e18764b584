"""Weights that are denied while they run: stopped, or kept from growing and from waking."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from gptoss_operator.plan.applications import Absent, Keep, Present
from gptoss_operator.plan.observation import ApplicationView, Presence, Revocation, Trust
from gptoss_operator.plan.verdict import Phase
from tests.unit.operator.test_lifecycle import (
    AWAY,
    DENIED,
    DRAIN,
    KEEP,
    QUIET,
    TRUSTED,
    World,
    happen,
    lives,
    serving,
)

ANEW = replace(TRUSTED, manifest_digest="sha256:" + "cd" * 32, source="two")


def revoked(revocation: Revocation, trust: Trust = DENIED, *, ready: int = 1, **spec: Any) -> World:
    world = serving(**spec)
    world.view = replace(world.view, ready=ready, wanted=ready)
    world.settle()
    world.revocation, world.trust = revocation, trust
    world.wishes.clear()
    return world


def bounds(world: World) -> tuple[int, int]:
    assert isinstance(world.asked, Present)
    scaling = world.asked.config["deployments"][0]["autoscaling_config"]
    return scaling["min_replicas"], scaling["max_replicas"]


@pytest.mark.parametrize(
    "trust", [DENIED, AWAY, ANEW, None], ids=["denied", "source away", "other weights there", "check under way"]
)
def test_drained_it_stops_at_once_and_gateways_are_told_to_refuse(trust: Trust) -> None:
    world = revoked(DRAIN, trust)
    world.step()
    assert world.asked == Absent()
    assert world.phase is Phase.FAILED
    assert world.condition("Ready") == ("False", "DeniedDigest")
    assert world.condition("Stalled") == ("True", "UntrustedWeights")
    assert world.condition("EngineReady") == ("False", "Stopped")
    assert world.condition("Revoked") == ("True", "DeniedDigest")
    assert world.condition("WeightsVerified") == ("False", "DeniedDigest")
    world.cluster()
    world.settle()
    assert world.view.presence is Presence.ABSENT


def test_drained_it_comes_back_with_other_weights_that_are_trusted() -> None:
    world = revoked(DRAIN)
    world.live()
    world.trust = ANEW
    happen(world, "demand")
    world.now += 1
    happen(world, "demand")
    world.live()
    assert world.phase is Phase.SERVING
    assert isinstance(world.asked, Present)
    assert world.asked.config["args"]["weights"]["manifestDigest"] == ANEW.manifest_digest
    world.revocation = None
    world.settle()
    assert world.condition("Revoked") == ("False", "NotRevoked")


def test_kept_it_goes_on_and_never_grows() -> None:
    world = revoked(KEEP, ready=2, scaling={"idleSeconds": 60, "maxReplicas": 5})
    world.live()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Revoked") == ("True", "DeniedDigest")
    assert world.condition("WeightsVerified") == ("False", "DeniedDigest")
    assert bounds(world) == (1, 2)
    assert isinstance(world.asked, Present)
    assert not world.asked.create
    world.view = replace(world.view, ready=1, wanted=1)
    world.settle()
    world.cluster()
    world.view = replace(world.view, ready=2, wanted=2)
    world.settle()
    assert bounds(world) == (1, 1)


def test_kept_a_higher_floor_starts_no_replica_and_is_no_fault() -> None:
    world = revoked(KEEP, scaling={"idleSeconds": 60, "maxReplicas": 5})
    world.settle()
    world.cluster()
    world.spec = {"scaling": {"idleSeconds": 60, "minReplicas": 3, "maxReplicas": 5}}
    world.generation += 1
    world.live()
    assert bounds(world) == (1, 1)
    assert world.condition("Ready") == ("True", "Serving")


def test_kept_it_may_sleep_but_does_not_wake() -> None:
    world = revoked(KEEP)
    world.now += 61
    world.settle()
    assert world.phase is Phase.DRAINING
    world.demand = replace(QUIET, acknowledged=1)
    world.live()
    assert world.view.presence is Presence.ABSENT
    happen(world, "demand")
    world.now += 1
    happen(world, "demand")
    world.live()
    assert world.view.presence is Presence.ABSENT
    assert world.condition("Ready") == ("False", "DeniedDigest")


def test_kept_it_is_not_started_anew_once_nothing_runs_any_more() -> None:
    world = revoked(KEEP)
    world.view = replace(world.view, ready=0, answering=False, status="UNHEALTHY")
    world.settle()
    assert world.asked == Absent()
    lost = revoked(KEEP)
    lost.view = ApplicationView(presence=Presence.ABSENT)
    lost.live()
    assert lost.view.presence is Presence.ABSENT
    assert lost.condition("Ready") == ("False", "DeniedDigest")


def test_kept_it_outlives_a_ray_controller_that_knows_of_no_replica_for_a_while() -> None:
    world = revoked(KEEP, ready=2, scaling={"idleSeconds": 60, "maxReplicas": 5})
    world.live()
    world.view = replace(world.view, ready=0, wanted=2)
    world.settle()
    assert world.condition("Ready") == ("True", "Serving")
    assert bounds(world) == (1, 2)


def test_kept_what_was_stopped_once_stays_stopped_though_ray_restarts_a_replica() -> None:
    world = revoked(KEEP)
    world.view = replace(world.view, ready=0, answering=False, status="UNHEALTHY")
    world.settle()
    world.view = replace(world.view, ready=1, answering=True, status="RUNNING")
    world.settle()
    assert world.asked == Absent()


def test_kept_a_start_that_is_under_way_is_given_up() -> None:
    world = World()
    world.settle()
    world.cluster()
    world.settle()
    assert world.phase is Phase.STARTING
    world.revocation, world.trust = KEEP, DENIED
    world.settle()
    assert world.asked == Absent()


def test_kept_a_changed_specification_stalls_and_touches_nothing() -> None:
    world = revoked(KEEP)
    happen(world, "spec")
    config = world.view.deployed
    world.live()
    assert world.condition("Ready") == ("False", "DeniedDigest")
    assert world.view.deployed == config
    assert world.view.presence is Presence.PRESENT


def test_kept_it_is_capped_while_the_check_under_the_changed_policy_runs() -> None:
    world = revoked(KEEP, None, scaling={"idleSeconds": 60, "maxReplicas": 5})
    world.settle()
    assert bounds(world) == (1, 1)
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Revoked") == ("True", "DeniedDigest")


@pytest.mark.parametrize("revocation", [DRAIN, KEEP])
def test_the_same_manifest_signed_by_another_key_is_not_revoked(revocation: Revocation) -> None:
    world = revoked(revocation, replace(TRUSTED, signer="another"))
    world.settle()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Revoked") == ("False", "NotRevoked")
    assert world.status.weights is not None
    assert world.status.weights.signer == "another"


@pytest.mark.parametrize(("revocation", "reasons"), [(DRAIN, ["DeniedDigest"]), (KEEP, ["DeniedDigest"])])
def test_an_event_tells_it_once(revocation: Revocation, reasons: list[str]) -> None:
    world = revoked(revocation)
    told: list[str] = []
    for _ in range(5):
        told += [f"{event.reason}" for event in world.step().events if event.type == "Warning"]
        world.cluster()
    assert told == reasons


def test_a_pardon_lifts_the_cap() -> None:
    world = revoked(KEEP, scaling={"idleSeconds": 60, "maxReplicas": 5})
    world.live()
    assert bounds(world) == (1, 1)
    happen(world, "pardoned")
    world.live()
    assert bounds(world) == (1, 5)
    assert world.condition("Revoked") == ("False", "NotRevoked")


def test_a_paused_or_unreachable_one_is_left_alone() -> None:
    world = revoked(DRAIN)
    world.reachable = False
    world.settle()
    assert not any(isinstance(wish, Absent) for wish in world.wishes)
    world = revoked(DRAIN)
    world.annotations = {"serving.gptoss.dev/paused": "true"}
    world.settle()
    assert all(isinstance(wish, Keep) for wish in world.wishes)


@settings(max_examples=150, deadline=None)
@given(lives)
def test_while_revoked_no_replica_is_ever_added(events: list[str]) -> None:
    world = World(scaling={"idleSeconds": 60, "startTimeoutSeconds": 100, "maxReplicas": 4})
    for event in events:
        happen(world, event)
        running = world.view.ready if world.view.presence is Presence.PRESENT else 0
        revoked_now = world.revocation is not None and isinstance(world.trust, type(DENIED)) and world.reachable
        world.wishes.clear()
        world.settle()
        if not revoked_now or world.status.weights is None:
            continue
        for wish in world.wishes:
            if isinstance(wish, Present):
                assert not wish.create
                assert world.revocation is not None
                assert not world.revocation.drain
                (each,) = wish.config["deployments"]
                assert each["autoscaling_config"]["max_replicas"] <= running


def test_a_waived_signer_is_told_in_condition_status_and_one_event() -> None:
    world = World()
    world.trust = replace(TRUSTED, authority="", signer="", waived="nobody vouches for it")
    told = [event.reason for _ in range(4) for event in world.step().events]
    assert told.count("SignerWaived") == 1
    world.live()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("WeightsVerified") == ("False", "SignerWaived")
    assert world.status.weights is not None
    assert world.status.weights.signer_waived == "nobody vouches for it"
    world.trust = TRUSTED
    world.settle()
    assert world.condition("WeightsVerified") == ("True", "Verified")
    assert world.status.weights.signer_waived is None
