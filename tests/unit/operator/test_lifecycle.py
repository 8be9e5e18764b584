"""Properties of plans over random lives, and the single steps that people rely on."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_api.deployment_status import GptOssDeploymentStatus
from gptoss_api.hardware import accelerator_named
from gptoss_operator.plan.applications import Absent, Keep, Present, Wish
from gptoss_operator.plan.demand import UNKNOWN, Demand
from gptoss_operator.plan.observation import (
    ApplicationView,
    Distrusted,
    Failure,
    Hardware,
    Memory,
    NodeKind,
    Observation,
    Placement,
    Presence,
    Remains,
    Revocation,
    Site,
    Trust,
    Trusted,
)
from gptoss_operator.plan.planner import Plan, plan
from gptoss_operator.plan.verdict import Phase, phase_of
from tests.builders import DIGEST, deployment

MONDAY = datetime(2026, 11, 16, tzinfo=UTC)
"""The time of day at which every world's own clock stands at nought."""
SITE = Site(installation="test", import_path="x:build", gateway_url="http://gateway/v1")
QUIET = Demand(known=True, active=False, activity_at=None, acknowledged=0)
TRUSTED = Trusted(
    manifest_digest=DIGEST, signer="ab", authority="release", policy="default", source="one", checked_at="then"
)
ROOMY = Hardware(where="Ray cluster local", kinds=(NodeKind(candidates=(accelerator_named("H100-80GB"),), count=8),))
SMALL = Hardware(where="Ray cluster local", kinds=(NodeKind(candidates=(accelerator_named("T4"),), count=1),))
UNSIGNED = Distrusted(reason="Unsigned", message="sign it")
AWAY = Distrusted(reason="SourceUnavailable", message="later", retryable=True)
DENIED = Distrusted(reason="DeniedDigest", message="denied")
DRAIN = Revocation(reason="DeniedDigest", message="denied", drain=True)
KEEP = Revocation(reason="DeniedDigest", message="denied", drain=False)


class World:
    """A deployment, its engine and its operator, as far as plans see and change them."""

    def __init__(self, **spec: Any) -> None:
        self.spec: dict[str, Any] = {"scaling": {"idleSeconds": 60, "startTimeoutSeconds": 100}, **spec}
        self.generation = 1
        self.status = GptOssDeploymentStatus()
        self.view = ApplicationView(presence=Presence.ABSENT)
        self.hardware: Hardware | None = None
        self.reachable = True
        self.trust: Trust = TRUSTED
        self.revocation: Revocation | None = None
        self.demand = QUIET
        self.memory: Memory | None = None
        self.asked: Wish | None = None
        self.now = 1000.0
        self.skew = 0.0
        """What the operator's time of day is ahead of the right one, in seconds."""
        self.annotations: dict[str, str] = {}
        self.wishes: list[Wish] = []
        """Everything that was asked since the last event."""

    def observed(self) -> Observation:
        return Observation(
            deployment=deployment(generation=self.generation, annotations=self.annotations, **self.spec),
            status=self.status,
            placement=Placement(cluster="local"),
            application=self.view if self.reachable else ApplicationView(trouble=("ClusterUnreachable", "no answer")),
            hardware=self.hardware,
            trust=self.trust,
            revocation=self.revocation,
            demand=self.demand,
            now=self.now,
            wall=(MONDAY + timedelta(seconds=self.now + self.skew)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def plan(self) -> Plan:
        return plan(self.observed(), self.memory, SITE, asked=self.asked)

    def step(self) -> Plan:
        """Plan, and execute as the operator does."""
        planned = self.plan()
        if planned.status is not None:
            # As the API server stores it.
            wire = json.loads(planned.status.model_dump_json(by_alias=True, exclude_none=True))
            self.status = GptOssDeploymentStatus.model_validate(wire)
        self.memory = planned.memory
        for action in planned.actions:
            self.asked = action.wish
            self.wishes.append(action.wish)
        return planned

    def settle(self) -> None:
        for _ in range(4):
            planned = self.step()
            if not planned.actions and planned.status is None:
                return
        raise AssertionError(f"plans never come to rest: {planned}")

    def cluster(self) -> None:
        """The cluster's key brings about what is asked."""
        if not self.reachable:
            return
        match self.asked:
            case Present(create=False) if self.view.presence is not Presence.PRESENT:
                pass
            case Present(config=config):
                if self.view.presence is not Presence.PRESENT or self.view.deployed != config:
                    answering = self.view.answering if self.view.presence is Presence.PRESENT else False
                    self.view = ApplicationView(
                        presence=Presence.PRESENT,
                        status="DEPLOYING",
                        deployed=config,
                        answering=answering,
                        ready=self.view.ready if answering else 0,
                    )
            case Absent():
                self.view = ApplicationView(presence=Presence.ABSENT)

    def engine_answers(self) -> None:
        if self.view.presence is Presence.PRESENT:
            self.view = replace(self.view, status="RUNNING", answering=True, failure=None)
            self.view = replace(self.view, ready=self.view.ready or 1, wanted=self.view.wanted or 1)

    def live(self) -> None:
        for _ in range(3):
            self.settle()
            self.cluster()
            self.engine_answers()
        self.settle()

    def fall_asleep(self) -> None:
        """Let a minute pass without a request, and a first drain come to its end."""
        self.now += 61
        self.settle()
        self.demand = replace(QUIET, acknowledged=1)
        self.live()

    @property
    def phase(self) -> Phase:
        return phase_of(self.status)

    def condition(self, kind: str) -> tuple[str, str]:
        return next((each.status, each.reason) for each in self.status.conditions if each.type == kind)


def serving(**spec: Any) -> World:
    world = World(**spec)
    world.live()
    assert world.phase is Phase.SERVING
    return world


def idle() -> World:
    world = serving()
    world.fall_asleep()
    assert world.phase is Phase.IDLE
    return world


EVENTS = [
    "time", "long", "demand", "quiet", "unknown", "ack", "answers", "mute", "fails", "refused", "lost", "unreachable",
    "reachable", "cluster", "cluster", "unsigned", "away", "signed", "resigned", "blind", "spec", "bounds", "suspend",
    "resume", "restart", "retry", "wake", "floor", "schedule", "drained", "kept", "pardoned", "grows",
    "roomy", "small", "bare", "told", "untold",
]  # fmt: skip
WAITING = Failure(reason="WaitingForPods", message="2 pods")
UNHEEDED = Failure(reason="WaitingForKubeRay", message="nobody")


def happen(world: World, event: str) -> None:
    match event:
        case "time":
            world.now += 30
        case "long":
            world.now += 700
        case "demand":
            world.demand = Demand(known=True, active=True, activity_at=world.now, acknowledged=0)
        case "quiet":
            world.demand = replace(QUIET, activity_at=world.demand.activity_at)
        case "unknown":
            world.demand = UNKNOWN
        case "ack":
            world.demand = replace(QUIET, acknowledged=world.status.drain_epoch or 0)
        case "answers":
            world.engine_answers()
        case "mute" if world.view.presence is Presence.PRESENT:
            world.view = replace(world.view, answering=False)
        case "fails" if world.view.presence is Presence.PRESENT:
            world.view = replace(world.view, status="DEPLOY_FAILED", failure=Failure(reason="", message="boom"))
        case "refused" if world.view.presence is Presence.PRESENT:
            failure = Failure(reason="DigestMismatch", message="model.safetensors")
            world.view = replace(world.view, status="DEPLOY_FAILED", failure=failure)
        case "lost":
            world.view = ApplicationView(presence=Presence.ABSENT)
        case "told" | "untold" if world.view.presence is Presence.ABSENT:
            unheeded = UNHEEDED if event == "untold" else None
            world.view = replace(world.view, remains=Remains(waiting=WAITING, unheeded=unheeded))
        case "unreachable" | "reachable":
            world.reachable = event == "reachable"
        case "cluster":
            world.cluster()
        case "unsigned":
            world.trust = UNSIGNED
        case "away":
            world.trust = AWAY
        case "signed":
            world.trust = TRUSTED
        case "drained" | "kept":
            world.trust, world.revocation = DENIED, DRAIN if event == "drained" else KEEP
        case "pardoned":
            world.trust, world.revocation = TRUSTED, None
        case "grows" if world.view.ready:
            world.view = replace(world.view, ready=2, wanted=2)
        case "resigned":
            world.trust = replace(TRUSTED, manifest_digest="sha256:" + "cd" * 32, source="two")
        case "blind":
            world.trust = replace(TRUSTED, source="unknown")
        case "spec":
            world.spec = {**world.spec, "engine": {"maxNumSeqs": world.generation + 1}}
            world.generation += 1
        case "bounds" | "floor":
            scaling = {**world.spec["scaling"], "maxReplicas": 2, "minReplicas": int(event == "floor")}
            world.generation += scaling != world.spec["scaling"]
            world.spec = {**world.spec, "scaling": scaling}
        case "schedule":
            days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
            hours = {"name": "x", "timeZone": "UTC", "days": days, "start": "00:20", "end": "00:40"}
            scaling = {**world.spec["scaling"], "schedules": [hours]}
            world.generation += scaling != world.spec["scaling"]
            world.spec = {**world.spec, "scaling": scaling}
        case "suspend" | "resume":
            world.generation += world.spec.get("suspend", False) != (event == "suspend")
            world.spec = {**world.spec, "suspend": event == "suspend"}
        case "roomy":
            world.hardware = ROOMY
        case "small":
            world.hardware = SMALL
        case "bare":
            world.hardware = Hardware(where="Ray cluster local")
        case "restart":
            world.hardware = None
            world.memory, world.asked = None, None
        case "retry" | "wake":
            world.annotations = {**world.annotations, f"serving.gptoss.dev/{event}": str(world.now)}


lives = st.lists(st.sampled_from(EVENTS), max_size=25)


@settings(max_examples=150, deadline=None)
@given(lives)
def test_plans_come_to_rest_and_planning_again_is_empty(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
        world.settle()
        again = world.plan()
        assert again.actions == ()
        assert again.status is None
        assert again.events == ()


@settings(max_examples=150, deadline=None)
@given(lives)
def test_a_restart_changes_no_replica_count(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
        world.settle()
    world.cluster()
    world.settle()
    world.cluster()
    before = world.view.presence, world.asked
    phase = world.phase
    world.memory, world.asked = None, None
    world.settle()
    world.cluster()
    assert (world.view.presence is Presence.PRESENT) == (before[0] is Presence.PRESENT), (before, phase, world.asked)


@settings(max_examples=150, deadline=None)
@given(lives)
def test_what_serves_is_taken_away_only_asleep_suspended_or_broken(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
        answering = world.reachable and world.view.presence is Presence.PRESENT and bool(world.view.answering)
        unknown = not world.demand.known or not world.reachable
        before = world.phase
        world.wishes.clear()
        world.settle()
        awake = before in {Phase.SERVING, Phase.DRAINING, Phase.STARTING}
        if awake and any(isinstance(wish, Absent) for wish in world.wishes):
            assert world.phase in {Phase.SUSPENDED, Phase.IDLE, Phase.FAILED}
            denied = world.revocation is not None and world.condition("Revoked")[0] == "True"
            if answering and not denied:
                assert world.phase in {Phase.SUSPENDED, Phase.IDLE}
            if world.phase is Phase.IDLE:
                assert not unknown


@settings(max_examples=150, deadline=None)
@given(lives)
def test_zero_is_reached_only_where_nothing_is_left(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
        world.settle()
        if world.reachable and world.condition("ScaledToZero")[0] == "True":
            assert world.view.presence is Presence.ABSENT
            assert world.view.remains is None


@settings(max_examples=150, deadline=None)
@given(lives)
def test_what_is_left_hinders_nothing_and_wakes_nothing(events: list[str]) -> None:
    world, other = World(), World()
    for event in events:
        happen(world, event)
        world.settle()
        if event not in {"told", "untold"}:
            happen(other, event)
        other.settle()
        assert (world.asked, world.phase) == (other.asked, other.phase)


def test_an_engine_that_is_being_stopped_is_not_at_zero() -> None:
    world = serving()
    world.now += 61
    world.settle()
    world.demand = replace(QUIET, acknowledged=1)
    world.settle()
    assert world.condition("ScaledToZero") == ("False", "Idle")
    assert message(world, "ScaledToZero") == "The engine is being stopped."
    world.cluster()
    world.settle()
    assert world.condition("ScaledToZero") == ("True", "Idle")


@settings(max_examples=80, deadline=None)
@given(lives)
def test_messages_are_bounded_and_bytes_are_stable(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
        one, two = world.plan(), world.plan()
        assert one == two
        if one.status is not None:
            assert all(len(condition.message) <= 1024 for condition in one.status.conditions)
        world.settle()


def test_the_bytes_of_the_weights_are_told_and_kept_while_these_are_the_weights() -> None:
    def told() -> int | None:
        assert world.status.weights is not None
        return world.status.weights.bytes

    world = serving()
    assert told() is None, "the source does not tell"
    world.trust = replace(TRUSTED, weight_bytes=7)
    world.settle()
    assert told() == 7
    world.trust = TRUSTED
    world.settle()
    assert told() == 7, "a later look that can't see them"
    world = idle()
    world.trust = replace(TRUSTED, weight_bytes=7)
    world.settle()
    world.trust = replace(TRUSTED, manifest_digest="sha256:" + "cd" * 32)
    world.settle()
    assert told() is None, "others, whose size nobody knows"


def test_unknown_demand_restarts_the_idle_time() -> None:
    world = serving()
    world.demand = UNKNOWN
    world.now += 1000
    world.settle()
    world.demand = QUIET
    world.now += 59
    world.settle()
    assert world.phase is Phase.SERVING
    world.now += 2
    world.settle()
    assert world.phase is Phase.DRAINING


def test_a_restart_begins_the_idle_time_anew_and_ends_a_drain() -> None:
    world = serving()
    world.now += 61
    world.settle()
    assert world.phase is Phase.DRAINING
    world.memory = None
    world.settle()
    assert world.phase is Phase.SERVING


def test_each_drain_has_its_own_number_so_that_an_old_answer_means_nothing() -> None:
    world = serving()
    world.now += 61
    world.settle()
    world.demand = replace(QUIET, active=True, activity_at=world.now)
    world.settle()
    assert world.phase is Phase.SERVING
    world.demand = replace(QUIET, activity_at=world.now, acknowledged=1)
    world.now += 61
    world.settle()
    assert (world.phase, world.status.drain_epoch) == (Phase.DRAINING, 2)


def test_changed_while_idle_stays_asleep_and_ready_by_its_signature() -> None:
    world = idle()
    happen(world, "spec")
    world.trust = None
    world.settle()
    assert world.condition("Ready") == ("Unknown", "Progressing")
    world.trust = TRUSTED
    world.settle()
    assert world.condition("Ready") == ("True", "Idle")
    assert world.condition("EngineReady") == ("Unknown", "NotProved")
    happen(world, "spec")
    world.trust = UNSIGNED
    world.settle()
    assert world.condition("Ready") == ("False", "Unsigned")
    assert world.asked == Absent()


def test_a_floor_keeps_a_model_awake_and_wakes_a_sleeping_one() -> None:
    world = idle()
    happen(world, "floor")
    world.live()
    assert world.phase is Phase.SERVING
    world.now += 5000
    world.settle()
    assert world.phase is Phase.SERVING


def test_a_new_profile_in_a_new_operator_restarts_no_engine() -> None:
    world = serving()
    assert isinstance(world.asked, Present)
    config = json.loads(json.dumps(world.asked.config))
    config["args"]["engine"]["max_num_seqs"] = 999
    assert world.status.engine is not None
    line = world.status.engine.line.replace("--max-num-seqs 256", "--max-num-seqs 999")
    world.status = world.status.model_copy(
        update={"engine": world.status.engine.model_copy(update={"line": line, "profile_version": "gpt-oss-20b/0"})}
    )
    world.view = replace(world.view, deployed=config)
    world.settle()
    assert isinstance(world.asked, Present)
    assert world.asked.config["args"] == config["args"]
    assert world.status.engine is not None
    assert world.status.engine.profile_version == "gpt-oss-20b/0"


def test_a_roll_out_is_not_ready_until_the_new_generation_answers() -> None:
    world = serving()
    happen(world, "spec")
    world.settle()
    assert world.condition("Ready") == ("Unknown", "Progressing")
    assert world.condition("EngineReady")[0] == "True"
    world.live()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status.proved_generation == 2


FULL = Failure(reason="Unschedulable", message="pod x finds no node: add nodes")


def test_a_roll_out_that_can_not_go_on_says_why_and_what_serves_stays_ready_to_answer() -> None:
    world = serving()
    happen(world, "spec")
    world.settle()
    world.view = replace(world.view, obstacle=FULL)
    world.settle()
    assert world.condition("Ready") == ("Unknown", "Unschedulable")
    assert message(world, "Ready") == "Pod x finds no node: add nodes."
    assert world.condition("EngineReady") == ("True", "Answering")


def test_an_engine_that_falls_silent_tells_what_befell_its_pods_if_that_is_known() -> None:
    world = serving()
    world.view = replace(world.view, answering=False)
    world.settle()
    assert world.condition("Ready") == world.condition("EngineReady") == ("False", "NotAnswering")
    world.view = replace(world.view, obstacle=Failure(reason="NodeLost", message="the node of pod x does not answer"))
    world.settle()
    assert world.condition("Ready") == world.condition("EngineReady") == ("False", "NodeLost")
    assert message(world, "Ready") == message(world, "EngineReady") == "The node of pod x does not answer."


def test_bounds_alone_are_no_roll_out_to_prove() -> None:
    world = serving()
    assert isinstance(world.asked, Present)
    arguments = world.asked.config["args"]
    happen(world, "bounds")
    world.live()
    assert isinstance(world.asked, Present)
    assert world.asked.config["args"] == arguments
    assert world.condition("Ready") == ("True", "Serving")


def test_bytes_that_a_node_refused_are_tried_again_only_when_others_were_seen() -> None:
    world = World()
    world.settle()
    world.cluster()
    happen(world, "refused")
    for seen in (TRUSTED.source, "unknown", TRUSTED.source, "unknown", TRUSTED.source):
        # The operator is let near the files, then not, then again: nothing of that is news of the bytes.
        world.trust = replace(TRUSTED, source=seen)
        world.now += 700
        world.settle()
        world.cluster()
        assert world.phase is Phase.FAILED
        assert world.view.presence is Presence.ABSENT
    world.trust = replace(TRUSTED, source="two")
    world.live()
    assert world.phase is Phase.SERVING


def test_a_source_that_another_release_marks_otherwise_restarts_nothing_that_serves() -> None:
    world = World()
    world.live()
    before = (world.asked, world.view)
    world.trust = replace(TRUSTED, source="two")
    world.now += 5
    world.settle()
    world.cluster()
    assert world.phase is Phase.SERVING
    assert (world.asked, world.view) == before


def test_bytes_that_nobody_could_see_when_they_were_refused_are_compared_with_from_then_on() -> None:
    world = World()
    world.trust = replace(TRUSTED, source="unknown")
    world.settle()
    world.cluster()
    happen(world, "refused")
    for seen in ("unknown", "one", "unknown", "one"):
        world.trust = replace(TRUSTED, source=seen)
        world.settle()
        world.cluster()
        assert world.phase is Phase.FAILED
    world.trust = replace(TRUSTED, source="two")
    world.live()
    assert world.phase is Phase.SERVING


def test_a_start_waits_while_no_permit_is_free() -> None:
    world = World()
    planned = plan(replace(world.observed(), may_start=False), None, SITE)
    assert planned.queued
    assert not planned.starting
    assert [action.wish for action in planned.actions] == [Keep()]


def test_transition_times_move_only_with_the_status() -> None:
    world = serving()
    times = {each.type: each.last_transition_time for each in world.status.conditions}
    world.now += 61
    world.settle()
    after = {each.type: each.last_transition_time for each in world.status.conditions}
    assert world.phase is Phase.DRAINING
    assert after == times


def test_weights_signed_anew_do_not_restart_a_start_that_is_under_way() -> None:
    world = World()
    world.settle()
    world.cluster()
    assert isinstance(world.asked, Present)
    before = world.asked.config
    happen(world, "resigned")
    world.settle()
    assert world.phase is Phase.STARTING
    assert isinstance(world.asked, Present)
    assert world.asked.config == before


def test_a_failed_roll_out_never_takes_away_what_still_answers() -> None:
    world = serving()
    happen(world, "spec")
    world.settle()
    world.cluster()
    happen(world, "fails")
    world.wishes.clear()
    world.settle()
    assert world.condition("Ready") == ("False", "EngineFailed")
    assert not any(isinstance(wish, Absent) for wish in world.wishes)


OFFICE = {
    "name": "office",
    "timeZone": "Europe/Berlin",
    "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
    "start": "09:00",
    "end": "17:00",
    "minReplicas": 2,
}
"""In November that is 08:00 to 16:00 UTC."""


def at(hour: int, minute: int = 0) -> float:
    return hour * 3600.0 + minute * 60


def scheduled(**more: Any) -> World:
    """A model that fell asleep early on Monday."""
    world = serving(scaling={"idleSeconds": 60, "maxReplicas": 4, "schedules": [OFFICE | more]})
    world.fall_asleep()
    assert world.phase is Phase.IDLE
    return world


def message(world: World, kind: str) -> str:
    return next(each.message for each in world.status.conditions if each.type == kind)


def bounds(world: World) -> dict[str, Any]:
    assert isinstance(world.asked, Present)
    return world.asked.config["deployments"][0]["autoscaling_config"]


def test_a_schedule_wakes_a_sleeping_model_and_says_so() -> None:
    world = scheduled()
    assert message(world, "ScaledToZero") == "A schedule wakes it at 2026-11-16T08:00:00Z."
    world.now = at(7, 59)
    planned = world.step()
    assert (world.phase, planned.requeue_after) == (Phase.IDLE, 60)
    world.now = at(8)
    planned = world.step()
    assert world.phase is Phase.STARTING
    assert [(event.reason, event.message) for event in planned.events] == [
        ("Waking", "The schedule office is open; the engine starts.")
    ]
    assert bounds(world)["min_replicas"] == 2
    world.live()
    assert world.phase is Phase.SERVING
    assert message(world, "ScaledToZero") == "The schedule office keeps 2 up until 2026-11-16T16:00:00Z."
    told = world.status.schedule
    assert told is not None
    assert (told.min_replicas, told.open, told.next_change, told.next_min_replicas) == (
        2,
        ("office",),
        "2026-11-16T16:00:00Z",
        0,
    )


def test_a_scheduled_model_does_not_sleep_before_the_window_closes_and_then_by_its_idleness() -> None:
    world = scheduled()
    world.now = at(8)
    world.live()
    deployed = world.view.deployed
    for hour in range(9, 16):
        world.now = at(hour)
        world.live()
        assert world.phase is Phase.SERVING
    world.demand = replace(QUIET, activity_at=at(15, 59) + 30)
    world.live()
    world.now = at(16)
    world.settle()
    assert world.phase is Phase.SERVING, "it was asked half a minute ago"
    assert bounds(world)["min_replicas"] == 1, "Ray may take the second replica away"
    world.cluster()
    assert deployed is not None
    assert world.view.deployed is not None
    assert world.view.deployed["args"] == deployed["args"], "another floor restarts no engine"
    world.now = at(16) + 31
    world.settle()
    assert world.phase is Phase.DRAINING
    world.demand = replace(world.demand, acknowledged=world.status.drain_epoch or 0)
    world.live()
    assert world.phase is Phase.IDLE
    assert message(world, "ScaledToZero") == "A schedule wakes it at 2026-11-17T08:00:00Z."


def test_a_drain_ends_when_a_window_opens() -> None:
    world = serving(scaling={"idleSeconds": 60, "schedules": [OFFICE | {"minReplicas": 1}]})
    world.now = at(7, 59)
    world.settle()
    assert world.phase is Phase.DRAINING
    world.now = at(8)
    world.settle()
    assert world.phase is Phase.SERVING


def test_suspend_wins_over_every_schedule() -> None:
    world = scheduled()
    happen(world, "suspend")
    world.now = at(8)
    world.live()
    assert world.phase is Phase.SUSPENDED


def test_a_zone_that_is_not_known_here_stops_nothing_that_serves() -> None:
    world = serving(scaling={"idleSeconds": 60})
    world.spec = {**world.spec, "scaling": {"idleSeconds": 60, "schedules": [OFFICE | {"timeZone": "Mars/Base"}]}}
    world.generation += 1
    world.live()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert "spec.scaling.schedules[0].timeZone 'Mars/Base'" in message(world, "Stalled")
    assert world.view.presence is Presence.PRESENT


def test_the_time_of_day_is_looked_at_again_although_a_window_is_far() -> None:
    world = scheduled()
    assert (world.plan().requeue_after or 0) <= 900


def test_why_it_is_awake_is_said() -> None:
    world = serving()
    assert message(world, "ScaledToZero") == "It sleeps after 60 s without a request (spec.scaling.idleSeconds)."
    world.demand = UNKNOWN
    world.settle()
    assert message(world, "ScaledToZero").startswith("No gateway reports")
    happen(world, "floor")
    world.settle()
    assert message(world, "ScaledToZero") == "spec.scaling.minReplicas keeps 1 up."


def test_what_no_engine_can_be_given_is_told_and_nothing_is_asked() -> None:
    world = World(parallelism={"tensor": 3})  # the API server refuses it; an older one of its kind may not
    world.settle()
    assert world.condition("Stalled") == ("True", "InvalidSpec")
    message = next(each.message for each in world.status.conditions if each.type == "Stalled")

    assert "tensor" in message
    assert "\n" not in message
    assert not any(isinstance(wish, Present) for wish in world.wishes)
