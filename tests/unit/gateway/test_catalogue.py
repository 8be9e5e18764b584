"""Names, states and what a key sees."""

import pytest

from gptoss_gateway.catalogue import Catalogue, ServedModel
from gptoss_gateway.errors import ForbiddenError, NotFoundError
from gptoss_gateway.keys import Caller
from tests.builders import deployment_object
from tests.contract.gateway.house import condition, model_object

ML = Caller(tenant="ml", namespaces=frozenset({"ml", "lab"}))


def catalogue(*objects):
    told: list[str] = []
    known = Catalogue()
    known.listen(told.append)
    for raw in objects:
        known.on_change(raw)
    return known, told


def test_bare_and_qualified_names_resolve_within_the_callers_namespaces():
    known, _ = catalogue(model_object("idle"), model_object("idle", name="secret", namespace="other", uid="u-2"))
    assert known.resolve(ML, "assistant") is known.resolve(ML, "ml/assistant")
    for name in ("secret", "other/secret", "nothing", "ml/", "/", "", "ml/assistant/x", "lab/assistant"):
        with pytest.raises(NotFoundError):
            known.resolve(ML, name)
    everyone = Caller(tenant="root", namespaces=frozenset({"*"}))
    assert known.resolve(everyone, "secret").namespace == "other"


def test_a_served_name_replaces_the_bare_name_but_not_the_qualified_one():
    raw = deployment_object("assistant", "ml", model={"name": "custom", "uri": "s3://m/x", "servedName": "Helper.1"})
    known, _ = catalogue(raw)
    assert known.resolve(ML, "Helper.1") is known.resolve(ML, "ml/assistant")
    with pytest.raises(NotFoundError):
        known.resolve(ML, "assistant")


def test_two_claimants_are_nobody_until_one_goes_and_others_namespaces_do_not_matter():
    rival = model_object("idle", namespace="lab", uid="u-2")
    stranger = model_object("idle", namespace="other", uid="u-3")
    known, _ = catalogue(model_object("idle"), rival, stranger)
    with pytest.raises(NotFoundError, match="lab/assistant, ml/assistant"):
        known.resolve(ML, "assistant")
    known.on_delete(rival)
    assert known.resolve(ML, "assistant").namespace == "ml"


@pytest.mark.parametrize(
    ("globs", "sees"), [(("*",), True), (("assist*",), True), (("ml/*",), True), (("lab/*", "x"), False), ((), False)]
)
def test_globs_narrow_a_key(globs, sees):
    known, _ = catalogue(model_object("idle"))
    caller = Caller(tenant="t", namespaces=frozenset({"ml"}), models=globs)
    assert bool(known.visible(caller)) is sees


def test_what_a_key_may_not_use_is_403_in_its_namespaces_and_404_elsewhere():
    known, _ = catalogue(model_object("idle"), model_object("idle", name="secret", namespace="other", uid="u-2"))
    caller = Caller(tenant="t", namespaces=frozenset({"ml"}), models=("gpt-*",))
    for name in ("assistant", "ml/assistant"):
        with pytest.raises(ForbiddenError, match="may not use the model"):
            known.resolve(caller, name)
    for name in ("secret", "other/secret", "ml/nothing", "nothing"):
        with pytest.raises(NotFoundError):
            known.resolve(caller, name)


def test_renaming_recreating_and_deleting_are_told_and_leave_no_trace():
    known, told = catalogue(model_object("idle"))
    renamed = model_object("idle")
    renamed["spec"]["model"]["servedName"] = "new"
    known.on_change(renamed)
    with pytest.raises(NotFoundError):
        known.resolve(ML, "assistant")
    again = model_object("serving", uid="u-2")
    known.on_change(again)
    assert known.resolve(ML, "assistant").uid == "u-2"
    again["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    known.on_change(again)
    assert known.all() == ()
    first = model_object("idle")["metadata"]["uid"]
    assert told == [first, first, first, "u-2", "u-2"]


def test_changes_that_change_nothing_for_us_are_not_told():
    known, told = catalogue(model_object("idle"))
    touched = model_object("idle")
    touched["metadata"]["resourceVersion"] = "99"
    known.on_change(touched)
    assert len(told) == 1


def test_an_object_that_makes_no_sense_keeps_its_last_state():
    known, _ = catalogue(model_object("serving"))
    broken = model_object("serving")
    broken["spec"] = {"model": {"name": "unheard-of"}}
    known.on_change(broken)
    assert known.resolve(ML, "assistant").engine_ready


@pytest.mark.parametrize(
    ("state", "ready", "draining", "refused"),
    [
        ("serving", True, None, None),
        ("idle", False, None, None),
        ("waking", False, None, None),
        ("draining", True, 1, None),
        ("suspended", False, None, "Suspended"),
        ("stalled", False, None, "UntrustedSigner"),
    ],
)
def test_states_are_read_from_conditions(state, ready, draining, refused):
    model = ServedModel.parse(model_object(state))
    assert (model.engine_ready, model.draining_epoch) == (ready, draining)
    assert (model.refusal.reason if model.refusal else None) == refused


def test_a_new_object_without_status_is_asleep_not_refused():
    model = ServedModel.parse(deployment_object())
    assert not model.engine_ready
    assert model.refusal is None


def test_a_failed_change_does_not_refuse_what_still_serves():
    raw = model_object("stalled")
    raw["status"]["conditions"] = [item for item in raw["status"]["conditions"] if item["type"] != "EngineReady"] + [
        condition("EngineReady", "True", "Answering")
    ]
    model = ServedModel.parse(raw)
    assert model.engine_ready
    assert model.refusal is None
