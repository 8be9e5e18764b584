"""One configuration for a whole Ray cluster, in which only what is ours ever changes."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_api.engine import max_ongoing_requests, resolve, serving_arguments
from gptoss_api.profiles import profile_for
from gptoss_operator.plan.applications import Absent, Keep, Present, application_config, covers, plan_cluster
from tests.builders import DIGEST, deployment


def config(name: str = "assistant", **spec: Any) -> dict[str, Any]:
    parsed = deployment(name, uid=f"uid-{name}", **spec)
    engine = resolve(parsed.spec, profile_for(parsed.spec.model.name))
    arguments = serving_arguments(parsed, engine, installation="test", manifest_digest=DIGEST).wire()
    return application_config(parsed, engine, arguments, min_replicas=0, installation="test", import_path="x:build")


def details(*configs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "applications": {
            each["name"]: {
                "name": each["name"],
                "status": "RUNNING",
                "source": "declarative",
                "route_prefix": each["route_prefix"],
                "deployed_app_config": each,
            }
            for each in configs
        },
        **more,
    }


def planned(
    seen: dict[str, Any], wishes: dict[str, Any], *, complete: bool = True, failed: dict[str, int] | None = None
) -> Any:
    return plan_cluster(
        seen, wishes, failed or {}, installation="test", complete=lambda: complete, http_options={"port": 8000}
    )


FOREIGN = {"name": "theirs", "route_prefix": "/theirs", "import_path": "their.app:app", "args": {"a": 1}}


def test_what_may_change_in_place_is_there_from_the_first_write() -> None:
    (server,) = config(scaling={"maxReplicas": 4}, rolloutStrategy={"type": "Recreate"})["deployments"]
    assert server["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 192,
        "upscale_delay_s": 30,
        "downscale_delay_s": 600,
    }
    assert server["max_surge_percent"] == 0
    assert server["graceful_shutdown_timeout_s"] == 3600
    assert config()["deployments"][0]["max_surge_percent"] == 100


def test_a_replica_that_is_full_for_gateways_still_says_that_it_answers() -> None:
    spec = deployment(engine={"maxNumSeqs": 16}).spec
    (server,) = config(engine={"maxNumSeqs": 16})["deployments"]
    most = max_ongoing_requests(spec, 16)
    joining = [most, most, *(2 * most // count for count in (3, 4, 5, 6))]
    assert server["max_ongoing_requests"] > sum(joining), "gateways that join two full ones, and questions"


def test_delays_are_those_of_the_specification() -> None:
    (server,) = config(scaling={"scaleUpDelaySeconds": 0, "scaleDownDelaySeconds": 86400})["deployments"]
    scaling = server["autoscaling_config"]
    assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (0, 86400)


def test_how_it_scales_never_reaches_the_arguments() -> None:
    scaling = {"maxReplicas": 4, "scaleUpDelaySeconds": 1, "scaleDownDelaySeconds": 1}
    assert config(scaling=scaling)["args"] == config()["args"]


def test_bytes_are_stable() -> None:
    assert json.dumps(config()) == json.dumps(config())


def test_nothing_is_written_when_all_is_as_wanted() -> None:
    wanted = config()
    assert planned(details(wanted), {wanted["name"]: Present(config=wanted)}).document is None


def test_what_ray_filled_in_is_no_drift_but_another_argument_is() -> None:
    wanted = config()
    filled = json.loads(json.dumps(wanted))
    filled["deployments"][0]["health_check_period_s"] = 10
    filled["external_scaler_enabled"] = False
    assert covers(filled, wanted)
    filled["args"]["engine"]["seed"] = 1
    assert not covers(filled, wanted)


def test_nobodys_application_goes_only_once_all_deployments_are_known() -> None:
    orphan = config("orphan")
    assert planned(details(orphan), {}, complete=False).document is None
    assert planned(details(orphan), {}).document["applications"] == []


def test_keep_keeps_and_absent_removes() -> None:
    one = config()
    assert planned(details(one), {one["name"]: Keep()}).document is None
    assert planned(details(one), {one["name"]: Absent()}).document["applications"] == []


def test_what_may_not_be_created_is_changed_where_it_is_and_never_put_back() -> None:
    one, more = config(), config(scaling={"maxReplicas": 2})
    wish = {one["name"]: Present(config=more, create=False)}
    assert planned(details(one), wish).document["applications"] == [more]
    assert planned(details(), wish).document is None
    assert planned(details(FOREIGN), wish).document is None


def test_a_failed_application_is_removed_before_it_is_put_again() -> None:
    wanted = config()
    seen = details(wanted)
    seen["applications"][wanted["name"]]["status"] = "DEPLOY_FAILED"
    name = wanted["name"]
    assert planned(seen, {name: Present(config=wanted, attempt=1)}, failed={name: 1}).document is None
    first = planned(seen, {name: Present(config=wanted, attempt=2)}, failed={name: 1})
    assert first.document["applications"] == []
    assert planned(details(), {name: Present(config=wanted, attempt=2)}).document["applications"] == [wanted]


def test_http_options_are_only_for_a_cluster_without_serve() -> None:
    wanted = config()
    wishes = {wanted["name"]: Present(config=wanted)}
    assert planned(details(), wishes).document["http_options"] == {"port": 8000}
    running = details(http_options={"host": "0.0.0.0", "port": 9000})
    assert planned(running, wishes).document["http_options"] == {"host": "0.0.0.0", "port": 9000}


def test_another_installations_application_is_foreign() -> None:
    theirs = config()
    theirs["args"]["installation"] = "other"
    result = planned(details(theirs), {})
    assert result.document is None


def test_a_foreign_application_on_its_way_out_is_not_called_back() -> None:
    seen = details(FOREIGN)
    seen["applications"]["theirs"]["status"] = "DELETING"
    wanted = config()
    document = planned(seen, {wanted["name"]: Present(config=wanted)}).document
    assert [each["name"] for each in document["applications"]] == [wanted["name"]]


names = st.sampled_from(["a", "b", "c"])
wish = st.sampled_from(["present", "absent", "keep", "none"])


@settings(max_examples=300, deadline=None)
@given(there=st.sets(names), wishes=st.dictionaries(names, wish), foreign=st.booleans(), complete=st.booleans())
def test_after_the_write_nothing_is_left_to_write_and_strangers_are_untouched(
    there: set[str], wishes: dict[str, str], foreign: bool, complete: bool
) -> None:
    configs = {name: config(name) for name in "abc"}
    seen = details(*(configs[name] for name in sorted(there)), *([FOREIGN] if foreign else []))
    asked = {
        configs[name]["name"]: {"present": Present(config=configs[name]), "absent": Absent(), "keep": Keep()}[each]
        for name, each in wishes.items()
        if each != "none"
    }
    first = planned(seen, asked, complete=complete)
    after = seen if first.document is None else details(*first.document["applications"])
    assert planned(after, asked, complete=complete).document is None
    assert ("theirs" in after["applications"]) == foreign
    for name in "abc":
        present = configs[name]["name"] in after["applications"]
        match wishes.get(name, "none"):
            case "present":
                assert present
            case "absent":
                assert not present
            case "keep":
                assert present == (name in there)
            case _:
                assert present == (name in there and not complete)
