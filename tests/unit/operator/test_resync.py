"""A LIST beside the news of watches: who is subtracted, who is believed, and what does not stop it."""

from collections.abc import Callable
from typing import Any

from gptoss_kube.errors import Forbidden
from gptoss_operator.cache import Cache, Kind
from gptoss_operator.intake import Intake
from gptoss_operator.keys import ClusterKey, DeploymentKey
from gptoss_operator.leadership import AlwaysLeader
from gptoss_operator.resync import Resync
from gptoss_operator.workqueue import WorkQueue

KEY = DeploymentKey("ml", "assistant")


def deployment(version: int, *, uid: str = "first", image: str = "") -> dict[str, Any]:
    metadata = {"namespace": KEY.namespace, "name": KEY.name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"model": {"name": "gpt-oss-20b", "uri": f"s3://models/{image}"}}}


class Clock:
    time = 0.0

    def now(self) -> float:
        return self.time

    def wall(self) -> str:
        return "2026-01-01T00:00:00Z"


class Room:
    """A resync, and an API server whose lists are snapshots: news may arrive before one is handed over."""

    def __init__(self) -> None:
        self.stored: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in Kind}
        self.meanwhile: Callable[[], None] = lambda: None
        self.clock = Clock()
        self.cache = Cache()
        self.queue: WorkQueue[Any] = WorkQueue()
        self.intake = Intake(cache=self.cache, queue=self.queue, clock=self.clock)
        self.resync = Resync(
            kubernetes=self,  # type: ignore[arg-type]
            cache=self.cache,
            intake=self.intake,
            queue=self.queue,
            clusters=("local",),
            seconds=300,
            leadership=AlwaysLeader(),
        )

    async def list(self, kind: Kind) -> list[dict[str, Any]]:
        snapshot = list(self.stored[kind])
        if kind is Kind.DEPLOYMENT:
            self.meanwhile()
        return snapshot

    async def delete_report(self, name: str) -> None:
        raise Forbidden(f"may not delete {name}", status=403)

    @property
    def known(self) -> dict[str, Any] | None:
        return self.cache.get(Kind.DEPLOYMENT, KEY.namespace, KEY.name)

    async def waiting(self) -> set[Any]:
        keys = set()
        while len(self.queue):
            keys.add(key := await self.queue.get())
            self.queue.done(key)
        return keys


async def test_what_a_list_lacks_is_gone() -> None:
    room = Room()
    room.intake.seen(Kind.DEPLOYMENT, deployment(5))
    await room.resync.once()
    assert room.known is None
    assert KEY in await room.waiting()


async def test_one_that_got_the_name_of_a_deleted_one_while_it_listed_is_not_subtracted() -> None:
    room = Room()
    room.intake.seen(Kind.DEPLOYMENT, deployment(5))
    room.meanwhile = lambda: room.intake.seen(Kind.DEPLOYMENT, deployment(9, uid="second"))
    await room.resync.once()
    assert room.known == deployment(9, uid="second")


async def test_an_older_list_brings_back_nobody_who_was_replaced_or_changed_meanwhile() -> None:
    for newer in (deployment(9, uid="second"), deployment(9, image="new")):
        room = Room()
        room.stored[Kind.DEPLOYMENT] = [deployment(5)]
        room.meanwhile = lambda room=room, newer=newer: room.intake.seen(Kind.DEPLOYMENT, newer)  # type: ignore[misc]
        await room.resync.once()
        assert room.known == newer


async def test_a_restored_backup_is_believed_although_its_versions_are_lower() -> None:
    room = Room()
    room.intake.seen(Kind.DEPLOYMENT, deployment(500, image="lost"))
    room.stored[Kind.DEPLOYMENT] = [deployment(20, image="restored")]
    await room.resync.once()
    assert room.known == deployment(20, image="restored")


async def test_a_report_that_cannot_be_deleted_keeps_nothing_from_being_looked_at() -> None:
    room = Room()
    report = {"metadata": {"namespace": "s", "name": "gone", "uid": "g", "resourceVersion": "3"}}
    report["spec"] = {"gateway": "gone", "heartbeat": 1, "renewedAt": "2026-01-01T00:00:00Z", "deployments": []}
    room.stored = {kind: [] for kind in Kind} | {Kind.REPORT: [report], Kind.DEPLOYMENT: [deployment(5)]}
    await room.resync.once()
    room.clock.time = 4000.0
    await room.waiting()
    assert room.intake.dead_gateways() == ["gone"]
    await room.resync.once()
    assert await room.waiting() == {KEY, ClusterKey("local")}
