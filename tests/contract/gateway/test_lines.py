"""The lines to engines, over real sockets: which are used again, and what is told of those that can't be had."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from gptoss_gateway import lines as module
from gptoss_gateway.errors import EngineLostError, UpstreamUnavailableError
from gptoss_gateway.lines import Lines
from tests.contract.gateway.house import eventually

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Engine:
    """Answers every request alike; ``heads`` holds what was asked, by connection."""

    def __init__(self) -> None:
        self.heads: list[list[str]] = []
        self.answer = ANSWER
        self.writers: list[asyncio.StreamWriter] = []
        self.ended = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.heads.append(heads := [])
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                heads.append(head)
                await reader.readexactly(int(head.lower().partition("content-length: ")[2].split("\r\n")[0]))
                writer.write(self.answer)
                await writer.drain()
        self.ended += 1
        writer.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield engine
    server.close()
    for writer in engine.writers:
        writer.close()
    await eventually(lambda: engine.ended == len(engine.heads))


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


async def read(lines: Lines, url: str) -> bytes:
    answer = await lines.post(url, {"X-One": "1"}, b"{}")
    try:
        body = await answer.read()
        assert await answer.read() == b""
        return body
    finally:
        answer.close()


async def test_a_request_is_what_it_should_be_and_the_next_goes_over_the_same_line(engine, lines):
    assert await read(lines, engine.url + "/gptoss/ml/a/v1/completions") == b"{}"
    assert await read(lines, engine.url) == b"{}"
    (heads,) = engine.heads
    host = engine.url.removeprefix("http://")
    assert heads[0] == (
        f"POST /gptoss/ml/a/v1/completions HTTP/1.1\r\nHost: {host}\r\nX-One: 1\r\nContent-Length: 2\r\n\r\n"
    )
    assert heads[1].startswith("POST / HTTP/1.1\r\n")


async def test_an_answer_that_was_not_read_to_its_end_ends_its_line(engine, lines):
    (await lines.post(engine.url, {}, b"{}")).close()
    await eventually(lambda: engine.ended == 1)
    await read(lines, engine.url)
    assert len(engine.heads) == 2


async def test_requests_at_once_have_lines_of_their_own(engine, lines):
    await asyncio.gather(*(read(lines, engine.url) for _ in range(3)))
    assert len(engine.heads) == 3


async def test_a_line_that_the_engine_closed_meanwhile_is_not_taken(engine, lines):
    await read(lines, engine.url)
    engine.writers[0].close()
    await eventually(lambda: not any(line.is_open for idle in lines._idle.values() for line, _ in idle))
    assert await read(lines, engine.url) == b"{}"
    assert len(engine.heads) == 2


@pytest.mark.parametrize("swept", [True, False])
async def test_a_line_grows_old(engine, lines, monkeypatch, swept):
    await read(lines, engine.url)
    monkeypatch.setattr(module, "IDLE_SECONDS", -1.0)
    if swept:
        lines.sweep()
    else:
        await read(lines, engine.url)
    await eventually(lambda: engine.ended == 1)


async def test_no_request_begins_on_a_line_that_was_opened_long_ago(engine, lines, monkeypatch):
    await read(lines, engine.url)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    await read(lines, engine.url)
    await eventually(lambda: engine.ended == 2)
    assert [len(heads) for heads in engine.heads] == [1, 1]
    assert not any(lines._idle.values())


async def test_a_line_is_not_ended_under_an_answer(engine, lines, monkeypatch):
    answer = await lines.post(engine.url, {}, b"{}")
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    lines.sweep()
    assert await answer.read() == b"{}"
    answer.close()
    await eventually(lambda: engine.ended == 1)


async def test_no_line_is_told_apart_from_one_that_broke(engine, lines):
    engine.answer = b""
    asking = asyncio.create_task(lines.post(engine.url, {}, b"{}"))
    await eventually(lambda: bool(engine.heads and engine.heads[0]))
    engine.writers[0].transport.abort()
    with pytest.raises(EngineLostError):
        await asking
    with pytest.raises(UpstreamUnavailableError, match="no connection") as caught:
        await lines.post("http://127.0.0.1:1", {}, b"{}")
    assert not caught.value.reached_engine


async def test_a_request_that_is_given_up_ends_its_line(engine, lines):
    engine.answer = b""
    asking = asyncio.create_task(lines.post(engine.url, {}, b"{}"))
    await eventually(lambda: bool(engine.heads and engine.heads[0]))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(lambda: engine.ended == 1)


@pytest.mark.parametrize("value", ["a\r\nX-Two: 2", "a\nb", "a\0b", "a\u2028b"])
async def test_a_header_cannot_bring_another_one(engine, lines, value):
    with pytest.raises(UpstreamUnavailableError, match="control characters"):
        await lines.post(engine.url, {"X-One": value}, b"{}")
    assert engine.heads == []
