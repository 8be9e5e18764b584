"""Streams that are held open with comments while a model wakes, as the client libraries of each dialect take them."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from gptoss_gateway import admission
from gptoss_gateway.exchange import Exchange
from gptoss_gateway.server import Server
from tests.contract.gateway.dialects import ERRORS, STREAMS
from tests.contract.gateway.house import UID, House, eventually, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED

DIALECTS = pytest.mark.parametrize("dialect", STREAMS)


class Asleep:
    """A gateway whose one model sleeps, and what it told the streams that wait for it."""

    def __init__(self, house: House, server: Server, beats: list[str]) -> None:
        self.house, self.server, self.beats = house, server, beats

    async def until_told(self, times: int, reading: asyncio.Task[Any]) -> None:
        """Wait until streams have got that many comments, while somebody reads them."""
        await eventually(lambda: len(self.beats) >= times or reading.done())
        if reading.done():
            reading.result()

    def reading(self, dialect: str, words: list[str]) -> asyncio.Task[None]:
        async def read() -> None:
            async for word in STREAMS[dialect](self.server):
                words.append(word)  # noqa: PERF401 - what came before an error counts

        return asyncio.create_task(read())


async def fall_asleep(house: House, monkeypatch: pytest.MonkeyPatch) -> Asleep:
    """Open a gateway that is quick to tell those who wait."""
    monkeypatch.setattr(admission, "FIRST_HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(admission, "HEARTBEAT_SECONDS", 0.05)
    beats: list[str] = []
    beat = Exchange.heartbeat

    async def noted(self: Exchange, comment: str) -> None:
        await beat(self, comment)
        beats.append(comment)

    monkeypatch.setattr(Exchange, "heartbeat", noted)
    house.apply(model_object("idle", scaling={"wakeTimeoutSeconds": 100}))
    return Asleep(house, await house.open_gateway(), beats)


@pytest.fixture
async def asleep(house: House, monkeypatch: pytest.MonkeyPatch) -> Asleep:
    return await fall_asleep(house, monkeypatch)


@DIALECTS
async def test_comments_disturb_no_client(asleep, house, dialect):
    words: list[str] = []
    reading = asleep.reading(dialect, words)
    await asleep.until_told(3, reading)
    assert words == []
    house.deploy()
    await reading
    assert words == ["Hello", " world"]


@DIALECTS
async def test_a_model_that_turns_out_not_to_start_is_an_error_of_the_stream(asleep, house, dialect):
    words: list[str] = []
    reading = asleep.reading(dialect, words)
    await asleep.until_told(2, reading)
    house.apply(model_object("stalled"))
    with pytest.raises(ERRORS, match="UntrustedSigner"):
        await reading
    assert words == []
    assert asleep.server.gateway.ledger.counts(UID) == (0, 0)


@DIALECTS
async def test_what_the_engine_refuses_after_the_wake_is_an_error_of_the_stream(asleep, house, dialect):
    words: list[str] = []
    reading = asleep.reading(dialect, words)
    await asleep.until_told(2, reading)
    application = house.deploy()
    application.faults.append("json-400")
    with pytest.raises(ERRORS, match="max_tokens too large"):
        await reading
    assert (words, len(application.posts)) == ([], 1)


@DIALECTS
async def test_an_attempt_that_fails_is_made_again_though_comments_were_sent(asleep, house, dialect):
    words: list[str] = []
    reading = asleep.reading(dialect, words)
    await asleep.until_told(2, reading)
    application = house.deploy()
    application.faults.extend(["reset", "cut-before-first"])
    await reading
    assert (words, len(application.posts)) == (["Hello", " world"], 3)


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        ("the gateway", {"code": "UntrustedSigner", "param": None}),
        ("the engine", {"code": "400", "param": None, "message": "max_tokens too large"}),
    ],
)
async def test_an_error_event_of_responses_has_the_members_that_its_schema_asks_for(asleep, house, cause, error):
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            asleep.server.url + "/v1/responses",
            json={"model": "assistant", "input": "Hi", "stream": True},
            headers=AUTHORIZED,
        ) as response,
    ):
        await eventually(lambda: len(asleep.beats) >= 2)
        if cause == "the engine":
            house.deploy().faults.append("json-400")
        else:
            house.apply(model_object("stalled"))
        text = await response.text()
    name, data = [line for line in text.splitlines() if line and not line.startswith(":")]
    assert name == "event: error"
    event = json.loads(data.removeprefix("data: "))
    assert event.items() >= {"type": "error", "sequence_number": 0, **error}.items()
    assert event["message"] == event["error"]["message"]
