"""What nodes tell of their pulls is believed while it changes, and is never taken for nothing or for all."""

import asyncio
import json
from typing import Any

import pytest

from gptoss_api.pull_report import PullReport, report_name
from gptoss_operator.substrates import pulls
from gptoss_operator.substrates.pulls import STALE_SECONDS, Pulling, Pulls, pull_status
from tests.builders import DIGEST

GIB = 1024**3
FILE = report_name(DIGEST)


def said(beat: int, **more: Any) -> str:
    report = {
        "schema": 1,
        "startedAt": "2026-11-21T20:00:00+02:00",
        "beat": beat,
        "filesDone": 3,
        "filesTotal": 10,
        "bytesDone": GIB,
        "bytesTotal": 4 * GIB,
        **more,
    }
    return json.dumps({name: value for name, value in report.items() if value is not None})


class Nodes:
    """Nodes' files, a clock that the test moves, and one look after the other."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], str] = {}
        self.read: list[tuple[str, str]] = []
        self.news = 0
        self.now = 100.0
        self.broken = False
        self.pulls = Pulls(read=self._read, news=self._hear, clock=lambda: self.now)

    async def _read(self, node: str, name: str) -> str | None:
        self.read.append((node, name))
        if self.broken:
            raise RuntimeError("a bug")
        return self.files.get((node, name))

    def _hear(self) -> None:
        self.news += 1

    async def look(self, *nodes: str, seconds: float | None = None) -> Any:
        """Look, some time after the last look; return what is known of application ``a``."""
        self.now += pulls.PAUSE_SECONDS if seconds is None else seconds
        wanted = {"a": Pulling(manifest_digest=DIGEST, nodes=frozenset(nodes))} if nodes else {}
        self.pulls.look(wanted)
        looks = [task for task in asyncio.all_tasks() if task.get_name() == "pulls of weights"]
        await asyncio.gather(*looks)
        return self.pulls.of("a")


async def test_a_pull_is_told_once_its_file_was_seen_to_change_and_until_it_is_gone() -> None:
    nodes = Nodes()
    assert await nodes.look("n1") is None
    nodes.files["n1", FILE] = said(1)
    assert await nodes.look("n1") is None, "a killed process may have left it"
    nodes.files["n1", FILE] = said(2, bytesPerSecond=GIB)
    pull = await nodes.look("n1")
    assert (pull.progress, pull.bytes_done, pull.bytes_total, pull.files_done) == ("25% of 4.0 GiB", GIB, 4 * GIB, 3)
    assert (pull.bytes_per_second, pull.seconds_left, pull.started_at) == (GIB, 3, "2026-11-21T18:00:00Z")
    del nodes.files["n1", FILE]
    assert await nodes.look("n1") is None
    assert nodes.news == 2


async def test_a_file_that_stays_as_it_is_belongs_to_nobody() -> None:
    nodes = Nodes()
    for beat in (1, 2):
        nodes.files["n1", FILE] = said(beat)
        await nodes.look("n1")
    assert await nodes.look("n1", seconds=STALE_SECONDS) is not None
    assert await nodes.look("n1", seconds=STALE_SECONDS) is None


async def test_what_is_not_known_is_absent() -> None:
    pull = pull_status(PullReport.model_validate_json(said(1)))
    assert pull.bytes_per_second is None
    assert pull.seconds_left is None
    still = pull_status(PullReport.model_validate_json(said(1, bytesPerSecond=0)))
    assert (still.bytes_per_second, still.seconds_left) == (0, None)


async def test_of_several_nodes_the_one_that_is_least_far_is_told() -> None:
    nodes = Nodes()
    for beat in (1, 2):
        nodes.files["n1", FILE] = said(beat, bytesDone=4 * GIB)
        nodes.files["n2", FILE] = said(beat, bytesDone=2 * GIB)
        pull = await nodes.look("n1", "n2")
    assert pull.progress == "50% of 4.0 GiB"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x00",
        said(2, bytesDone=-1),
        said(2, bytesTotal=0),
        said(2, bytesTotal=2**64),
        said(2, startedAt="yesterday"),
        said(2, startedAt="2026-11-21T20:00:00"),
        said(2, schema=2),
        said(2, more="text"),
    ],
)
async def test_what_makes_no_sense_is_nothing(text: str) -> None:
    nodes = Nodes()
    nodes.files["n1", FILE] = said(1)
    await nodes.look("n1")
    nodes.files["n1", FILE] = text
    assert await nodes.look("n1") is None


async def test_nobody_is_asked_more_often_than_every_few_seconds_and_where_nothing_starts_not_at_all() -> None:
    nodes = Nodes()
    await nodes.look("n1")
    await nodes.look("n1", seconds=pulls.PAUSE_SECONDS / 2)
    assert nodes.read == [("n1", FILE)]
    await nodes.look()
    await nodes.look()
    assert nodes.read == [("n1", FILE)]


async def test_what_has_started_is_told_no_more_at_once() -> None:
    nodes = Nodes()
    for beat in (1, 2):
        nodes.files["n1", FILE] = said(beat)
        await nodes.look("n1")
    assert nodes.pulls.of("a") is not None
    assert await nodes.look(seconds=0) is None


async def test_a_look_that_fails_tells_nothing_and_the_next_one_does(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes()
    for beat in (1, 2):
        nodes.files["n1", FILE] = said(beat)
        await nodes.look("n1")
    nodes.broken = True
    assert await nodes.look("n1") is None
    assert "the look at pulls failed" in caplog.text
    nodes.broken = False
    nodes.files["n1", FILE] = said(3)
    assert await nodes.look("n1") is not None


async def test_a_look_that_hangs_ends_with_the_operator() -> None:
    hanging = asyncio.Event()

    async def read(node: str, name: str) -> str | None:
        await hanging.wait()
        return None

    now = [0.0]
    hung = Pulls(read=read, news=lambda: None, clock=lambda: now[0])
    hung.look({"a": Pulling(manifest_digest=DIGEST, nodes=frozenset({"n1"}))})
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await hung.close()
