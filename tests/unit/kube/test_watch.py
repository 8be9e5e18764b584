"""The informer's decisions, over a scripted server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gptoss_kube.client import Listing, Object
from gptoss_kube.errors import Gone, KubeError, ServerFailed
from gptoss_kube.resources import CONFIG_MAPS
from gptoss_kube.watch import Informer


def obj(name: str, version: int, uid: str = "u") -> Object:
    metadata = {"name": name, "namespace": "ml", "resourceVersion": str(version), "uid": uid, "managedFields": [1]}
    return {"metadata": metadata}


class Script:
    """Lists in order (the last repeats); each watch gives its lines, then ends as said."""

    def __init__(self, lists: list[Any], watches: list[list[Any]]) -> None:
        self.lists = lists
        self.watches = watches
        self.versions: list[str] = []

    async def list(self, *_: object, **__: object) -> Listing:
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(answer, KubeError):
            raise answer
        return Listing(items=json.loads(json.dumps(answer)), resource_version="100")

    @asynccontextmanager
    async def watch_lines(self, *_: object, query: dict[str, str], **__: object) -> AsyncIterator[asyncio.StreamReader]:
        self.versions.append(query["resourceVersion"])
        reader = asyncio.StreamReader()
        events = self.watches.pop(0) if self.watches else ["stay"]
        for event in events:
            if isinstance(event, KubeError):
                raise event
            if event != "stay":
                kind, what = event
                reader.feed_data(json.dumps({"type": kind, "object": what}).encode() + b"\n")
        if "stay" not in events:
            reader.feed_eof()
        yield reader


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_kube.watch._BACKOFF_SECONDS", (0.001, 0.002))
    monkeypatch.setattr("gptoss_kube.watch.random.uniform", lambda *_: 0.001)


async def told(script: Script, count: int) -> list[tuple[str, str, str]]:
    """What an informer tells, up to `count` calls."""
    calls: list[tuple[str, str, str]] = []
    enough = asyncio.Event()

    def note(kind: str, seen: Object) -> None:
        calls.append((kind, seen["metadata"]["name"], seen["metadata"]["resourceVersion"]))
        if len(calls) >= count:
            enough.set()

    async with Informer(
        script,  # type: ignore[arg-type]
        CONFIG_MAPS,
        on_change=lambda seen: note("changed", seen),
        on_delete=lambda seen: note("deleted", seen),
    ):
        await asyncio.wait_for(enough.wait(), 60)
        await asyncio.sleep(0)
    return calls


async def test_goes_on_from_the_last_bookmark():
    bookmark = ("BOOKMARK", {"metadata": {"resourceVersion": "150"}})
    script = Script([[obj("a", 1)]], [[bookmark], [("MODIFIED", obj("a", 160)), "stay"]])
    assert await told(script, 2) == [("changed", "a", "1"), ("changed", "a", "160")]
    assert script.versions == ["100", "150"]


async def test_expired_history_means_a_new_list_without_ghosts():
    expired = ("ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"})
    script = Script([[obj("a", 1), obj("b", 2)], [obj("b", 2), obj("c", 3)]], [[expired], ["stay"]])
    assert await told(script, 4) == [
        ("changed", "a", "1"),
        ("changed", "b", "2"),
        ("deleted", "a", "1"),
        ("changed", "c", "3"),
    ]


@pytest.mark.parametrize("failure", [Gone("gone", status=410), ServerFailed("503")])
async def test_a_refused_watch_means_a_new_list(failure: KubeError):
    script = Script([[obj("a", 1)], []], [[failure], ["stay"]])
    assert await told(script, 2) == [("changed", "a", "1"), ("deleted", "a", "1")]


async def test_a_failed_list_is_never_an_empty_one():
    script = Script([[obj("a", 1)], ServerFailed("down"), [obj("a", 9)]], [[Gone("gone")], ["stay"]])
    assert await told(script, 2) == [("changed", "a", "1"), ("changed", "a", "9")]


async def test_an_object_of_another_uid_is_first_deleted():
    script = Script([[obj("a", 1, "first")], [obj("a", 5, "second")]], [[Gone("gone")], ["stay"]])
    assert await told(script, 3) == [("changed", "a", "1"), ("deleted", "a", "1"), ("changed", "a", "5")]


async def test_deletions_carry_the_last_known_state():
    script = Script([[obj("a", 1)]], [[("DELETED", obj("a", 7)), ("DELETED", obj("a", 7)), "stay"]])
    assert await told(script, 2) == [("changed", "a", "1"), ("deleted", "a", "1")]


async def test_an_unreadable_answer_ends_nothing():
    script = Script([[obj("a", 1)], [obj("a", 2)]], [[("MODIFIED", {"no": "metadata"})], ["stay"]])
    assert await told(script, 2) == [("changed", "a", "1"), ("changed", "a", "2")]
