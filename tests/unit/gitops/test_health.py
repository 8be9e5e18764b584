"""What Argo CD, Flux and kubectl make of statuses that the operator wrote (stored in `statuses/`)."""

import copy
import json
from typing import Any

import lupa
import pytest
import yaml

from tests.controlplane import REPOSITORY
from tests.unit.gitops.written import LIVES, STATUSES, conditions_of

SCRIPT = REPOSITORY / "examples" / "gitops" / "health.lua"
EXPECTED = {
    "starting": ("Progressing", "InProgress"),
    "serving": ("Healthy", "Current"),
    "asleep": ("Healthy", "Current"),
    "waking": ("Progressing", "InProgress"),
    "suspended": ("Suspended", "Current"),
    "untrusted": ("Degraded", "Failed"),
}


def stored(name: str) -> dict[str, Any]:
    return json.loads((STATUSES / f"{name}.json").read_text())


def argo(obj: dict[str, Any]) -> tuple[str, str]:
    """Run the script as Argo CD does: `obj` is a global, the result a table."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    found = lua.execute(SCRIPT.read_text())
    return found.status, found.message


def kstatus(obj: dict[str, Any]) -> str:
    """The rules of sigs.k8s.io/cli-utils/pkg/kstatus for kinds that it does not know, in its order."""
    status = obj.get("status") or {}
    generation = obj["metadata"].get("generation")
    if status.get("observedGeneration") not in {None, generation}:
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if "Ready" in conditions:
        return "Current" if conditions["Ready"] == "True" else "InProgress"
    return "Current"


@pytest.mark.parametrize("name", EXPECTED)
def test_health_is_what_people_expect(name: str):
    obj = stored(name)
    assert (argo(obj)[0], kstatus(obj)) == EXPECTED[name]


def test_every_stored_status_is_expected():
    assert {path.stem for path in STATUSES.glob("*.json")} == set(EXPECTED) == set(LIVES)


@pytest.mark.parametrize("name", LIVES)
def test_a_stored_status_says_what_the_operator_says_today(name: str):
    document, world = stored(name), LIVES[name]()
    assert document["status"]["conditions"] == conditions_of(world), "python -m tests.unit.gitops.written"
    assert document["status"]["observedGeneration"] == document["metadata"]["generation"] == world.generation


@pytest.mark.parametrize("name", EXPECTED)
def test_a_change_that_was_not_seen_yet_is_progress(name: str):
    obj = stored(name)
    obj["metadata"]["generation"] += 1
    assert argo(obj)[0] == "Progressing"
    assert kstatus(obj) == "InProgress"


@pytest.mark.parametrize("status", [None, {}, {"conditions": []}, {"observedGeneration": 1}])
def test_an_object_without_conditions_is_progress_and_no_error(status: dict[str, Any] | None):
    obj = copy.deepcopy(stored("serving"))
    obj.pop("status")
    if status is not None:
        obj["status"] = status
    assert argo(obj)[0] == "Progressing"


def test_the_message_says_why():
    assert argo(stored("untrusted"))[1].startswith("UntrustedWeights: ")


def test_argo_cds_settings_hold_this_script():
    settings = yaml.safe_load((SCRIPT.parent / "argocd-cm.yaml").read_text())["data"]
    assert settings["resource.customizations.health.serving.gptoss.dev_GptOssDeployment"] == SCRIPT.read_text()
    ignored = yaml.safe_load(settings["resource.customizations.ignoreDifferences.serving.gptoss.dev_GptOssDeployment"])
    assert ignored == {"jsonPointers": ["/status"]}
