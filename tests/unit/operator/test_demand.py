"""Demand, judged by when we saw values change."""

from gptoss_api.report import DeploymentDemand, GatewayReportSpec
from gptoss_operator.plan.demand import FRESH_SECONDS, Gateway, changed_uids, demand_for, follow

UID = "u"


def report(beat: int, *, waiting: int = 0, in_flight: int = 0, last: str = "", epoch: int = 0) -> GatewayReportSpec:
    entry = DeploymentDemand(
        uid=UID,
        namespace="ml",
        name="a",
        waiting=waiting,
        in_flight=in_flight,
        last_request=last,
        drain_epoch_seen=epoch,
    )
    return GatewayReportSpec(gateway="g", heartbeat=beat, renewed_at="", deployments=(entry,))


def watched(*reports: tuple[float, GatewayReportSpec], first_look: bool = True) -> dict[str, Gateway]:
    gateways: dict[str, Gateway] = {}
    for moment, each in reports:
        gateways["g"] = follow(gateways, "g", each, moment, first_look=first_look)
        first_look = False
    return gateways


def test_without_a_heartbeat_that_moved_demand_is_unknown() -> None:
    assert not demand_for(UID, {}, 0).known
    assert not demand_for(UID, watched((0, report(1))), 1).known
    assert demand_for(UID, watched((0, report(1)), (1, report(2))), 1).known


def test_a_heartbeat_that_stands_still_grows_stale() -> None:
    gateways = watched((0, report(1)), (1, report(2)))
    assert demand_for(UID, gateways, FRESH_SECONDS).known
    assert not demand_for(UID, gateways, 1 + FRESH_SECONDS).known


def test_requests_of_a_gateway_that_is_gone_do_not_count_for_ever() -> None:
    gateways = watched((0, report(1)), (1, report(2, waiting=3)))
    assert demand_for(UID, gateways, 2).active
    assert not demand_for(UID, gateways, 2 + FRESH_SECONDS).active


def test_an_old_request_in_a_report_is_no_news_after_a_restart() -> None:
    assert demand_for(UID, watched((5, report(7, last="then"))), 5).activity_at is None


def test_a_request_that_a_new_gateway_reports_is_news() -> None:
    assert demand_for(UID, watched((5, report(1, last="now")), first_look=False), 5).activity_at == 5


def test_activity_is_when_we_saw_it_change_whatever_the_gateways_clock_says() -> None:
    gateways = watched((0, report(1, last="2099")), (10, report(2, last="1970")), (20, report(3, last="1970")))
    assert demand_for(UID, gateways, 20).activity_at == 10


def test_the_end_of_a_long_answer_is_activity() -> None:
    gateways = watched((0, report(1)), (10, report(2, in_flight=1)), (500, report(3)))
    assert demand_for(UID, gateways, 500).activity_at == 500


def test_a_drain_is_acknowledged_by_all_who_may_live_or_by_none() -> None:
    gateways = watched((0, report(1)), (1, report(2, epoch=4)))
    gateways["other"] = follow(
        {}, "other", GatewayReportSpec(gateway="o", heartbeat=1, renewed_at=""), 1, first_look=True
    )
    assert demand_for(UID, gateways, 2).acknowledged == 0
    assert demand_for(UID, {"g": gateways["g"]}, 2).acknowledged == 4


def test_a_gateway_that_died_long_ago_need_not_acknowledge() -> None:
    dead = follow({}, "dead", GatewayReportSpec(gateway="d", heartbeat=1, renewed_at=""), 0, first_look=True)
    later = FRESH_SECONDS + 1
    alive = watched((later - 1, report(1)), (later, report(2, epoch=1)))
    assert demand_for(UID, {"dead": dead, **alive}, later).acknowledged == 1


def test_a_mere_heartbeat_changes_nothing_for_any_deployment() -> None:
    gateways = watched((0, report(1)), (1, report(2)))
    after = follow(gateways, "g", report(3), 2, first_look=False)
    assert list(changed_uids(gateways["g"], after)) == []
    assert list(changed_uids(after, follow({"g": after}, "g", report(4, waiting=1), 3, first_look=False))) == [UID]
