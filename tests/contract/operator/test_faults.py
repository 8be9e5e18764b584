"""What a Ray cluster, a source or an API server may do to us, and what people see of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gptoss_operator.cache import Kind
from gptoss_weights.errors import SourceUnavailableError, UnsignedError, UntrustedSignerError
from tests.contract.operator.house import House, house

APP = "gptoss-test-ml-assistant"
MISMATCH = (
    "\x1b[36mray::ServeReplica\x1b[0m Traceback (most recent call last):\n  File x\n"
    "RuntimeError: gptoss-reason=DigestMismatch; model.safetensors differs from what was signed; upload it again\n"
)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


async def test_unsigned_weights_never_reach_the_cluster(home: House) -> None:
    home.trust.error = UnsignedError("there is no model.sig beside the weights")
    home.apply()
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "Unsigned"))
    assert home.condition("Ready") == ("False", "Unsigned")
    assert home.condition("Stalled") == ("True", "UntrustedWeights")
    assert home.ray.puts == []


async def test_a_mended_source_becomes_ready_without_a_hand_on_the_object(home: House) -> None:
    home.trust.error = UnsignedError("there is no model.sig beside the weights")
    home.apply()
    await home.until(lambda: home.condition("Stalled")[0] == "True")
    home.trust.error = None
    home.pass_time(29)
    await home.settled()
    assert home.trust.asked == 1
    home.pass_time(2)
    await home.ready()


async def test_a_later_doubt_never_touches_a_running_engine(home: House) -> None:
    home.apply()
    await home.ready()
    home.trust.error = UntrustedSignerError("signed by nobody we know")
    home.pass_time(601)
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "UntrustedSigner"))
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert home.ray.starts[APP] == 1


async def test_weights_signed_anew_restart_nothing_before_the_next_start(home: House) -> None:
    home.apply()
    await home.ready()
    home.trust.digest, home.trust.source = "sha256:" + "cd" * 32, "source-2"
    home.pass_time(601)
    await home.settled()
    assert home.ray.starts[APP] == 1
    home.apply(engine={"maxNumSeqs": 4})
    await home.until(lambda: home.ray.starts[APP] == 2)
    arguments = home.ray.applications[APP]["deployed_app_config"]["args"]
    assert arguments["weights"]["manifestDigest"] == "sha256:" + "cd" * 32


async def test_an_operator_that_has_not_seen_the_cluster_yet_changes_nothing_there(home: House) -> None:
    home.apply()
    await home.ready()
    await home.ray.stop()
    home.trust.digest, home.trust.source = "sha256:" + "cd" * 32, "source-2"
    checks = home.trust.asked
    await home.restart()
    await home.until(lambda: home.trust.asked > checks and home.condition("Degraded")[1] == "ClusterUnreachable")
    await home.settled()
    await home.ray.start()
    await home.until(lambda: home.condition("Degraded") == ("False", "Healthy"), 30)
    await home.settled()
    assert home.ray.starts[APP] == 1


async def test_a_source_that_does_not_answer_is_a_doubt_and_no_verdict(home: House) -> None:
    home.apply(scaling={"initial": "Idle"})
    await home.ready(reason="Idle")
    home.trust.error = SourceUnavailableError("the store does not answer")
    home.pass_time(601)
    await home.until(lambda: home.condition("WeightsVerified") == ("Unknown", "SourceUnavailable"))
    assert home.condition("Ready") == ("True", "Idle")


async def test_a_flipped_byte_stalls_with_the_file_named_until_the_source_changes(home: House) -> None:
    home.ray.fail_with[APP] = MISMATCH
    home.apply()
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "DigestMismatch"))
    assert home.condition("Ready") == ("False", "DigestMismatch")
    assert home.condition("Stalled") == ("True", "UntrustedWeights")
    assert "model.safetensors" in home.message("WeightsVerified")
    await home.until(lambda: APP not in home.ray.applications)
    home.pass_time(700)
    await home.settled()
    assert home.ray.starts[APP] == 1
    home.ray.fail_with.clear()
    home.trust.source = "source-2"
    home.pass_time(700)
    await home.ready()
    assert home.ray.starts[APP] == 2


async def test_a_restart_forgets_no_refused_source(home: House) -> None:
    home.ray.fail_with[APP] = MISMATCH
    home.apply()
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "DigestMismatch"))
    await home.until(lambda: APP not in home.ray.applications)
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await home.settled()
    assert home.condition("WeightsVerified") == ("False", "DigestMismatch")
    assert home.ray.starts[APP] == 1


async def test_the_retry_annotation_starts_a_failed_application_anew(home: House) -> None:
    home.ray.fail_with[APP] = MISMATCH
    home.apply()
    await home.until(lambda: home.condition("Stalled")[0] == "True")
    await home.until(lambda: APP not in home.ray.applications)
    home.ray.fail_with.clear()
    home.apply(annotations={"serving.gptoss.dev/retry": "again"})
    await home.ready()
    assert home.status()["lastRetry"] == "again"


async def test_an_engine_that_fails_without_a_reason_is_tried_again_with_pauses(home: House) -> None:
    home.ray.fail_with[APP] = "Traceback (most recent call last):\nValueError: CUDA out of memory\n"
    home.apply()
    await home.until(lambda: home.condition("Stalled") == ("True", "EngineFailed"))
    assert "ValueError: CUDA out of memory" in home.message("Ready")
    await home.until(lambda: APP not in home.ray.applications)
    home.ray.fail_with.clear()
    home.pass_time(31)
    await home.ready()
    assert home.ray.starts[APP] == 2


async def test_a_start_that_never_answers_is_given_up(home: House) -> None:
    home.ray.mute.add(APP)
    home.apply(scaling={"startTimeoutSeconds": 60})
    await home.until(lambda: home.ray.running(APP))
    home.pass_time(61)
    await home.until(lambda: home.condition("Stalled") == ("True", "StartTimeout"))
    assert home.condition("Ready") == ("False", "StartTimeout")
    await home.until(lambda: APP not in home.ray.applications)


async def test_a_failed_roll_out_leaves_what_serves_alone(home: House) -> None:
    home.apply()
    await home.ready()
    home.ray.fail_with[APP] = "RuntimeError: no such argument\n"
    home.apply(engine={"maxNumSeqs": 4})
    await home.until(lambda: home.condition("Ready") == ("False", "EngineFailed"))
    await home.settled()
    assert APP in home.ray.applications
    assert home.condition("EngineReady") == ("True", "Answering")
    home.ray.fail_with.clear()
    home.apply(engine={"maxNumSeqs": 8})
    await home.ready()


async def test_an_unreachable_cluster_keeps_what_was_known(home: House) -> None:
    home.apply()
    await home.ready()
    await home.ray.stop()
    await home.operator.resync.once()
    await home.until(lambda: home.condition("Degraded") == ("True", "ClusterUnreachable"))
    assert home.condition("Ready") == ("True", "Serving")
    assert home.condition("EngineReady") == ("True", "Answering")
    await home.ray.start()
    await home.until(lambda: home.condition("Degraded") == ("False", "Healthy"), 30)
    assert home.ray.starts[APP] == 1


@pytest.mark.parametrize("status", [400, 401, 500, 503])
async def test_a_refused_write_is_shown_and_tried_again(home: House, status: int) -> None:
    home.ray.status_for_put = status
    home.apply()
    await home.until(lambda: home.condition("Degraded")[0] == "True")
    home.ray.status_for_put = None
    await home.ready()
    assert home.condition("Degraded") == ("False", "Healthy")


async def test_an_answer_without_applications_is_unknown_and_not_empty(home: House) -> None:
    home.apply()
    await home.ready()
    home.ray.status_for_get = 200
    await home.operator.resync.once()
    await home.until(lambda: home.condition("Degraded") == ("True", "ClusterUnreachable"))
    assert home.ray.starts[APP] == 1


async def test_a_foreign_application_on_our_route_is_a_conflict_that_can_pass(home: House) -> None:
    home.ray.add_foreign("theirs", "/gptoss/ml/assistant")
    home.apply()
    await home.until(lambda: home.condition("Stalled") == ("True", "RouteConflict"))
    assert "theirs" in home.message("Ready")
    assert home.ray.puts == []
    del home.ray.applications["theirs"]
    await home.ready()


async def test_a_foreign_application_with_our_name_is_never_adopted(home: House) -> None:
    home.ray.add_foreign(APP, "/elsewhere", args={"installation": "other", "schema": 1})
    home.apply()
    await home.until(lambda: home.condition("Stalled") == ("True", "RouteConflict"))
    home.delete()
    await home.settled()
    assert APP in home.ray.applications
    assert home.ray.puts == []


async def test_hidden_values_are_never_written_back(home: House) -> None:
    home.ray.add_foreign("theirs", "/theirs", runtime_env={"env_vars": {"SECRET": "<redacted>"}})
    home.apply()
    await home.until(lambda: home.condition("Degraded") == ("True", "ForeignConfigurationRedacted"))
    assert home.ray.puts == []


async def test_what_is_the_whole_clusters_is_carried_over(home: House) -> None:
    home.ray.target_capacity = 50.0
    home.ray.add_foreign("imperative", "/imperative", source="imperative")
    home.apply()
    await home.ready()
    assert home.ray.puts[-1]["target_capacity"] == 50.0
    assert [config["name"] for config in home.ray.puts[-1]["applications"]] == [APP]
    assert "imperative" in home.ray.applications


async def test_drift_is_put_right(home: House) -> None:
    home.apply()
    await home.ready()
    home.ray.applications[APP]["deployed_app_config"]["deployments"][0]["autoscaling_config"]["max_replicas"] = 9
    await home.operator.resync.once()
    await home.until(lambda: len(home.ray.puts) == 2)
    deployed = home.ray.applications[APP]["deployed_app_config"]
    assert deployed["deployments"][0]["autoscaling_config"]["max_replicas"] == 1
    assert home.ray.starts[APP] == 1


async def test_an_orphan_of_ours_is_removed_only_after_a_complete_list(home: House) -> None:
    home.apply()
    await home.ready()
    await home.stop()
    home.delete(told=False)
    home.kubernetes.failing_lists = 1
    puts = len(home.ray.puts)
    await home.restart()
    await home.until(lambda: home.kubernetes.failing_lists == 0)
    assert len(home.ray.puts) == puts
    await home.until(lambda: APP not in home.ray.applications)


async def test_a_deletion_that_no_watch_told_of_is_noticed(home: House) -> None:
    home.apply()
    await home.ready()
    home.delete(told=False)
    await home.operator.resync.once()
    await home.until(lambda: APP not in home.ray.applications)


async def test_a_status_write_that_fails_is_written_again(home: House) -> None:
    home.kubernetes.failing_writes = 3
    home.apply()
    await home.ready()


async def test_starts_are_bounded_and_the_rest_wait_in_order(tmp_path: Path) -> None:
    async with house(tmp_path, max_concurrent_starts=1) as home:
        home.ray.deploy_seconds = 0.5
        for name in ("one", "two", "three"):
            home.apply(name)
        await home.until(lambda: len(home.ray.applications) == 1)
        await home.until(
            lambda: (
                sum(home.condition("Reconciling", name)[1] == "WaitingForStart" for name in ("one", "two", "three"))
                == 2
            )
        )
        for name in ("one", "two", "three"):
            await home.ready(name)
        most = max(len(document["applications"]) for document in home.ray.puts)
        assert most == 3
        assert [len(document["applications"]) for document in home.ray.puts] == [1, 2, 3]


async def test_paused_writes_nothing_but_the_status(home: House) -> None:
    home.apply(annotations={"serving.gptoss.dev/paused": "true"})
    await home.until(lambda: home.condition("Reconciling") == ("False", "Paused"))
    await home.settled()
    assert home.ray.puts == []
    home.apply()
    await home.ready()


async def test_a_namespace_that_may_not_use_the_cluster_is_told_so(home: House) -> None:
    home.apply(substrate={"rayServe": {"clusterName": "elsewhere"}})
    await home.until(lambda: home.condition("Stalled") == ("True", "UnknownCluster"))
    assert "elsewhere" in home.message("Ready")


async def test_two_deployments_with_one_application_name_do_not_fight(home: House) -> None:
    home.apply("b-c", "a")
    await home.until(lambda: home.condition("Ready", "b-c", "a") == ("True", "Serving"))
    home.apply("c", "a-b")
    await home.until(lambda: home.condition("Stalled", "c", "a-b") == ("True", "RouteConflict"))
    assert home.condition("Ready", "b-c", "a") == ("True", "Serving")
    assert home.ray.starts["gptoss-test-a-b-c"] == 1


async def test_a_doubt_is_looked_at_again_soon_however_long_all_was_well(home: House) -> None:
    home.apply()
    await home.ready()
    for _ in range(5):
        asked = home.trust.asked
        home.pass_time(601)
        await home.until(lambda: home.trust.asked > asked)  # noqa: B023 - awaited within the round
        await home.settled()
    home.trust.error = SourceUnavailableError("the store does not answer")
    home.pass_time(601)
    await home.until(lambda: home.condition("WeightsVerified") == ("Unknown", "SourceUnavailable"))
    home.trust.error = None
    home.pass_time(31)
    await home.until(lambda: home.condition("WeightsVerified") == ("True", "Verified"))


async def test_another_namespaces_labels_ask_for_no_check_and_its_own_do(home: House) -> None:
    home.apply()
    await home.ready()
    asked = home.trust.asked
    for name, labels in (("other", {"a": "b"}), ("ml", {"team": "search"})):
        raw = {"metadata": {"name": name, "uid": name, "labels": labels}}
        home.operator.intake.seen(Kind.NAMESPACE, home.kubernetes.put(Kind.NAMESPACE, raw))
        await home.settled()
        assert home.trust.asked == asked + (name == "ml")


async def test_the_report_of_a_gateway_that_is_long_gone_is_deleted(home: House) -> None:
    home.report("dead")
    home.report("alive")
    home.clock.time += 3601
    home.report("alive")
    await home.operator.resync.once()
    assert [name for _, name in home.kubernetes.objects[Kind.REPORT]] == ["alive"]


async def test_a_deployment_that_may_not_run_here_keeps_nobody_elses_engine_alive(tmp_path: Path) -> None:
    async with house(tmp_path, allowed_namespaces=("ml",)) as home:
        home.apply("stranger", "other")
        home.apply()
        await home.ready()
        await home.until(lambda: home.condition("Ready", "stranger", "other")[1] == "NamespaceNotAllowed")
        home.delete()
        await home.until(lambda: APP not in home.ray.applications)


async def test_a_namespace_that_is_not_allowed_any_more_loses_nothing_that_runs(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        home.apply()
        home.apply("second", "other")
        await home.ready()
        await home.until(lambda: home.condition("Ready", "second", "other")[0] == "True")
        cluster = home.settings.ray_clusters[0].model_copy(update={"allowed_namespaces": ("ml",)})
        home.settings = home.settings.model_copy(update={"ray_clusters": (cluster,)})
        await home.restart()
        await home.until(lambda: home.condition("Ready", "second", "other")[1] == "NamespaceNotAllowed")
        home.delete()
        await home.until(lambda: APP not in home.ray.applications)
        await home.settled()
        assert "gptoss-test-other-second" in home.ray.applications


async def test_one_that_may_not_run_here_takes_no_application_name_from_one_that_may(tmp_path: Path) -> None:
    async with house(tmp_path, allowed_namespaces=("a-b",)) as home:
        home.apply("b-c", "a")
        await home.until(lambda: home.condition("Ready", "b-c", "a")[1] == "NamespaceNotAllowed")
        home.apply("c", "a-b")
        await home.until(lambda: home.condition("Ready", "c", "a-b") == ("True", "Serving"))


async def test_one_that_cannot_be_read_any_more_holds_no_start(tmp_path: Path) -> None:
    async with house(tmp_path, max_concurrent_starts=1) as home:
        home.ray.mute.add("gptoss-test-ml-first")
        home.apply("first")
        await home.until(lambda: "gptoss-test-ml-first" in home.ray.applications)
        home.apply("second")
        await home.until(lambda: home.condition("Reconciling", "second")[1] == "WaitingForStart")
        home.apply("first", engine={"maxNumSeqs": "many"})
        await home.until(lambda: home.condition("Ready", "first") == ("False", "InvalidSpec"))
        await home.ready("second")
