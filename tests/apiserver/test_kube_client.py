"""gptoss_kube against a real API server: apply and its guards, deadlines, errors by type."""

import asyncio
import base64
import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import (
    AlreadyExists,
    Conflict,
    CredentialsError,
    Forbidden,
    Invalid,
    NotFound,
    Unauthorized,
    UnknownResource,
    Unreachable,
)
from gptoss_kube.events import record
from gptoss_kube.resources import CONFIG_MAPS, EVENTS, GPT_OSS_DEPLOYMENTS, NAMESPACES, Resource
from gptoss_kube.watch import Informer
from tests.controlplane import OPERATOR_USER

MANAGER = "gptoss-test"
PATIENCE = 150.0
WIDGETS = Resource(group="example.dev", version="v1", plural="widgets", kind="Widget", namespaced=True)


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(kubeconfig=control_plane.kubeconfig) as client:
        yield client


def config_map(namespace: str, name: str = "settings", **metadata: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "data": {"colour": "blue"},
    }


async def apply(kube: Kube, obj: Object, **options: object) -> Object:
    return await kube.apply(obj, resource=CONFIG_MAPS, field_manager=MANAGER, **options)  # type: ignore[arg-type]


async def eventually(condition: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event
            await asyncio.sleep(0.02)


async def test_apply_creates_and_returns_the_stored_object(kube: Kube, namespace: str):
    stored = await apply(kube, config_map(namespace))
    assert stored["metadata"]["uid"]
    assert stored == await kube.get(CONFIG_MAPS, "settings", namespace=namespace)


async def test_applying_the_same_again_writes_nothing(kube: Kube, namespace: str):
    first = await apply(kube, config_map(namespace))
    again = await apply(kube, first)  # managedFields and all
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_apply_with_a_uid_does_not_resurrect(kube: Kube, namespace: str):
    stored = await apply(kube, config_map(namespace))
    await kube.delete(CONFIG_MAPS, "settings", namespace=namespace)
    with pytest.raises(Conflict):
        await apply(kube, config_map(namespace, uid=stored["metadata"]["uid"]))
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAPS, "settings", namespace=namespace)


async def test_apply_with_a_stale_version_is_refused(kube: Kube, namespace: str):
    old = await apply(kube, config_map(namespace))
    await apply(kube, config_map(namespace) | {"data": {"colour": "red"}})
    stale = config_map(namespace, resourceVersion=old["metadata"]["resourceVersion"])
    with pytest.raises(Conflict):
        await apply(kube, stale | {"data": {"colour": "green"}})
    assert (await kube.get(CONFIG_MAPS, "settings", namespace=namespace))["data"] == {"colour": "red"}


async def test_apply_without_force_names_the_other_owner(kube: Kube, namespace: str):
    await kube.apply(config_map(namespace), resource=CONFIG_MAPS, field_manager="somebody-else")
    with pytest.raises(Conflict, match="somebody-else") as caught:
        await apply(kube, config_map(namespace) | {"data": {"colour": "red"}}, force=False)
    assert caught.value.causes[0]["field"] == ".data.colour"


async def test_apply_refuses_unknown_fields(kube: Kube, namespace: str):
    with pytest.raises(Invalid, match="datta"):
        await apply(kube, config_map(namespace) | {"datta": {}})


async def test_delete_spares_a_recreated_object(kube: Kube, namespace: str):
    stored = await apply(kube, config_map(namespace))
    with pytest.raises(Conflict):
        await kube.delete(CONFIG_MAPS, "settings", namespace=namespace, uid="00000000-0000-0000-0000-000000000000")
    await kube.delete(CONFIG_MAPS, "settings", namespace=namespace, uid=stored["metadata"]["uid"])


async def test_merge_patch_deletes_with_null(kube: Kube, namespace: str):
    await apply(kube, config_map(namespace))
    patch = {"data": {"colour": None, "shape": "round"}}
    patched = await kube.merge_patch(CONFIG_MAPS, "settings", patch, namespace=namespace, field_manager=MANAGER)
    assert patched["data"] == {"shape": "round"}


async def test_replace_is_guarded_by_the_version(kube: Kube, namespace: str):
    stored = await kube.create(config_map(namespace), resource=CONFIG_MAPS, field_manager=MANAGER)
    replaced = await kube.replace(stored | {"data": {"a": "b"}}, resource=CONFIG_MAPS, field_manager=MANAGER)
    assert replaced["data"] == {"a": "b"}
    with pytest.raises(Conflict) as caught:
        await kube.replace(stored | {"data": {}}, resource=CONFIG_MAPS, field_manager=MANAGER)
    assert not isinstance(caught.value, AlreadyExists)


async def test_creating_twice_is_told_apart_from_other_conflicts(kube: Kube, namespace: str):
    await kube.create(config_map(namespace), resource=CONFIG_MAPS, field_manager=MANAGER)
    with pytest.raises(AlreadyExists):
        await kube.create(config_map(namespace), resource=CONFIG_MAPS, field_manager=MANAGER)


async def test_a_missing_type_is_not_a_missing_object(kube: Kube, namespace: str):
    with pytest.raises(NotFound):
        await kube.get(CONFIG_MAPS, "absent", namespace=namespace)
    with pytest.raises(UnknownResource):
        await kube.get(WIDGETS, "absent", namespace=namespace)
    with pytest.raises(UnknownResource):
        await kube.list(WIDGETS)


async def test_lists_are_complete_over_several_pages(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gptoss_kube.client._PAGE", 3)
    for number in range(7):
        await apply(kube, config_map(namespace, f"map-{number}") | {})
    listing = await kube.list(CONFIG_MAPS, namespace=namespace)
    found = {item["metadata"]["name"] for item in listing.items}
    assert found >= {f"map-{number}" for number in range(7)}
    assert {(item["apiVersion"], item["kind"]) for item in listing.items} == {("v1", "ConfigMap")}
    assert int(listing.resource_version) > 0


async def test_lists_select_by_label_and_may_come_from_the_cache(kube: Kube, namespace: str):
    labelled = config_map(namespace, "labelled")
    labelled["metadata"]["labels"] = {"colour": "blue"}
    await apply(kube, labelled)
    await apply(kube, config_map(namespace, "plain"))
    fresh = await kube.list(CONFIG_MAPS, namespace=namespace, label_selector="colour=blue")
    assert [item["metadata"]["name"] for item in fresh.items] == ["labelled"]
    cached = await kube.list(CONFIG_MAPS, namespace=namespace, resource_version="0")
    assert cached.resource_version


async def test_an_identity_without_rights_is_forbidden(control_plane: ControlPlane, namespace: str):
    async with Kube(kubeconfig=control_plane.kubeconfig_for(OPERATOR_USER)) as kube:
        with pytest.raises(Forbidden, match="configmaps"):
            await kube.list(CONFIG_MAPS, namespace=namespace)


async def test_a_changed_token_is_read_again(control_plane: ControlPlane, tmp_path: Path):
    content = json.loads(control_plane.kubeconfig.read_text())
    good = content["users"][0]["user"]["token"]
    path = tmp_path / "config"
    content["users"][0]["user"]["token"] = "expired"
    path.write_text(json.dumps(content))
    async with Kube(kubeconfig=path) as kube:
        with pytest.raises(Unauthorized):
            await kube.get(NAMESPACES, "default")
        content["users"][0]["user"]["token"] = good
        path.write_text(json.dumps(content))
        assert (await kube.get(NAMESPACES, "default"))["metadata"]["name"] == "default"


async def test_the_connection_suits_kopf(kube: Kube, control_plane: ControlPlane):
    from dataclasses import asdict

    import kopf

    info = kopf.ConnectionInfo(**asdict(await kube.connection()))
    assert info.server == control_plane.url
    assert info.as_http_headers()["Authorization"].startswith("Bearer ")


async def test_a_missing_kubeconfig_is_named(tmp_path: Path):
    with pytest.raises(CredentialsError, match="nowhere"):
        async with Kube(kubeconfig=tmp_path / "nowhere"):
            pass


async def test_a_hanging_server_costs_no_more_than_the_deadline(
    kube: Kube, control_plane: ControlPlane, namespace: str
):
    await apply(kube, config_map(namespace))
    with frozen(control_plane):
        started = time.monotonic()
        with pytest.raises(Unreachable, match=r"within 0.5 s"):
            await apply(kube, config_map(namespace) | {"data": {"colour": "red"}}, timeout=0.5)
        with pytest.raises(Unreachable):
            await kube.list(CONFIG_MAPS, namespace=namespace, timeout=0.5)
        assert time.monotonic() - started < 10, "two calls of half a second each, on a busy machine"
    assert await kube.get(CONFIG_MAPS, "settings", namespace=namespace)


async def test_nobody_listening_is_transient(tmp_path: Path, control_plane: ControlPlane):
    content = json.loads(control_plane.kubeconfig.read_text())
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{held.getsockname()[1]}"
        (tmp_path / "config").write_text(json.dumps(content))
        async with Kube(kubeconfig=tmp_path / "config") as kube:
            with pytest.raises(Unreachable):
                await kube.get(NAMESPACES, "default")


@pytest.mark.usefixtures("crds")
async def test_status_is_applied_apart_and_never_creates(kube: Kube, namespace: str):
    metadata = {"name": "assistant", "namespace": namespace}
    status = {"metadata": metadata, "status": {"observedGeneration": 1, "state": "Idle"}}
    with pytest.raises(NotFound):
        await kube.apply_status(status, resource=GPT_OSS_DEPLOYMENTS, field_manager=MANAGER)
    spec = {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}}
    created = await kube.apply(
        {"metadata": metadata, "spec": spec}, resource=GPT_OSS_DEPLOYMENTS, field_manager="a-user"
    )
    with_status = await kube.apply_status(status, resource=GPT_OSS_DEPLOYMENTS, field_manager=MANAGER)
    assert with_status["status"] == {"observedGeneration": 1, "state": "Idle"}
    assert with_status["spec"] == created["spec"]
    mine = {**status, "metadata": {**metadata, "uid": created["metadata"]["uid"]}}
    assert await kube.apply_status(mine, resource=GPT_OSS_DEPLOYMENTS, field_manager=MANAGER) == with_status
    stale = {
        "metadata": {**metadata, "resourceVersion": created["metadata"]["resourceVersion"]},
        "status": {"state": "Serving"},
    }
    with pytest.raises(Conflict):
        await kube.apply_status(stale, resource=GPT_OSS_DEPLOYMENTS, field_manager=MANAGER)
    other = {**status, "metadata": {**metadata, "uid": "00000000-0000-0000-0000-000000000000"}}
    with pytest.raises(Conflict):
        await kube.apply_status(other, resource=GPT_OSS_DEPLOYMENTS, field_manager=MANAGER)


async def test_the_same_event_is_one_event_that_counts(kube: Kube, namespace: str):
    about = await apply(kube, config_map(namespace))
    for _ in range(3):
        await record(
            kube,
            regarding=about,
            reason="Woken",
            note="awake after 3 s " + "x" * 2000,
            action="Wake",
            controller="serving.gptoss.dev/operator",
            instance="test",
        )
    (event,) = (await kube.list(EVENTS, namespace=namespace)).items
    assert event["series"]["count"] == 3
    assert event["regarding"]["uid"] == about["metadata"]["uid"]
    assert len(event["note"].encode()) == 1024


class Copy:
    """What an informer told, in order, and what is left of it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def changed(self, obj: Object) -> None:
        assert "managedFields" not in obj["metadata"]
        self.told.append(("changed", obj["metadata"]["name"]))

    def deleted(self, obj: Object) -> None:
        self.told.append(("deleted", obj["metadata"]["name"]))

    def follow(self, kube: Kube, namespace: str, **options: float) -> Informer:
        return Informer(
            kube, CONFIG_MAPS, namespace=namespace, on_change=self.changed, on_delete=self.deleted, **options
        )


def known(informer: Informer) -> set[str]:
    return {name for _, name in informer.objects} - {"kube-root-ca.crt"}


async def test_follows_changes_and_deletions(kube: Kube, namespace: str):
    await apply(kube, config_map(namespace, "before"))
    copy = Copy()
    async with copy.follow(kube, namespace) as informer:
        await asyncio.wait_for(informer.synced.wait(), PATIENCE)
        assert known(informer) == {"before"}
        await apply(kube, config_map(namespace, "after"))
        await eventually(lambda: known(informer) == {"before", "after"})
        await kube.delete(CONFIG_MAPS, "before", namespace=namespace)
        await eventually(lambda: known(informer) == {"after"})
    told = [event for event in copy.told if event[1] != "kube-root-ca.crt"]
    assert told == [("changed", "before"), ("changed", "after"), ("deleted", "before")]


async def test_a_callback_that_fails_ends_nothing(kube: Kube, namespace: str):
    def fail(_: Object) -> None:
        raise RuntimeError("broken on purpose")

    async with Informer(kube, CONFIG_MAPS, namespace=namespace, on_change=fail, on_delete=fail) as informer:
        await asyncio.wait_for(informer.synced.wait(), PATIENCE)
        await apply(kube, config_map(namespace, "one"))
        await apply(kube, config_map(namespace, "two"))
        await eventually(lambda: known(informer) == {"one", "two"})


async def test_an_api_server_without_memory_of_it_leaves_no_ghost(
    kube: Kube, control_plane: ControlPlane, namespace: str
):
    for name in ("kept", "doomed", "reborn"):
        await apply(kube, config_map(namespace, name))
    copy = Copy()
    async with copy.follow(kube, namespace) as informer:
        await eventually(lambda: known(informer) == {"kept", "doomed", "reborn"})
        before = {key: obj["metadata"]["resourceVersion"] for key, obj in informer.objects.items()}
        copy.told.clear()
        control_plane.kill_apiserver()
        try:
            etcd_delete(control_plane, f"/registry/configmaps/{namespace}/doomed")
            etcd_compact(control_plane)
            await eventually(lambda: informer.last_error is not None)
        finally:
            await asyncio.to_thread(control_plane.start_apiserver)
        await eventually(lambda: known(informer) == {"kept", "reborn"})
        assert informer.synced.is_set()
        assert ("deleted", "doomed") in copy.told
        kept = informer.objects[namespace, "kept"]["metadata"]["resourceVersion"]
        assert kept == before[namespace, "kept"]
        assert ("changed", "kept") not in copy.told, "an unchanged object is not told again"
        await apply(kube, config_map(namespace, "after"))
        await eventually(lambda: "after" in known(informer))
        assert informer.last_error is None


async def test_a_recreated_object_is_deleted_before_it_is_changed(
    kube: Kube, control_plane: ControlPlane, namespace: str
):
    await apply(kube, config_map(namespace, "twice"))
    copy = Copy()
    async with copy.follow(kube, namespace, stall_seconds=1.0) as informer:
        await eventually(lambda: known(informer) == {"twice"})
        first = informer.objects[namespace, "twice"]["metadata"]["uid"]
        await kube.delete(CONFIG_MAPS, "twice", namespace=namespace)
        await apply(kube, config_map(namespace, "twice"))
        await eventually(lambda: ("deleted", "twice") in copy.told and known(informer) == {"twice"})
        assert informer.objects[namespace, "twice"]["metadata"]["uid"] != first
    assert [event for event, name in copy.told if name == "twice"] == ["changed", "deleted", "changed"]


async def test_a_silent_stream_is_given_up(kube: Kube, control_plane: ControlPlane, namespace: str):
    copy = Copy()
    async with copy.follow(kube, namespace, stall_seconds=0.5) as informer:
        await asyncio.wait_for(informer.synced.wait(), PATIENCE)
        with frozen(control_plane):
            await eventually(lambda: isinstance(informer.last_error, Unreachable))
        await apply(kube, config_map(namespace, "after"))
        await eventually(lambda: "after" in known(informer))


async def test_waits_for_a_type_that_is_not_there_yet(kube: Kube, namespace: str):
    async with Informer(kube, WIDGETS, on_change=print, on_delete=print) as informer:
        await eventually(lambda: isinstance(informer.last_error, UnknownResource))
        assert not informer.synced.is_set()


@contextmanager
def frozen(control_plane: ControlPlane) -> Iterator[None]:
    """The API server, stopped in its tracks: connections stand, nothing answers."""
    found = control_plane.programs.record("kube-apiserver")
    assert found is not None
    assert found.program is not None
    os.kill(found.program.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(found.program.pid, signal.SIGCONT)


def etcd_delete(control_plane: ControlPlane, key: str) -> None:
    answer = _etcd(control_plane, "deleterange", {"key": base64.b64encode(key.encode()).decode()})
    assert answer["deleted"] == "1"


def etcd_compact(control_plane: ControlPlane) -> None:
    revision = _etcd(control_plane, "range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
    _etcd(control_plane, "compaction", {"revision": revision, "physical": True})


def _etcd(control_plane: ControlPlane, call: str, body: dict[str, object]) -> Object:
    port = json.loads((control_plane.folder / "ports.json").read_text())["etcd"]
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/kv/{call}", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())
