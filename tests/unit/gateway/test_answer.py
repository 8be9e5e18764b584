"""One connection to an engine: however an answer is cut into packets, its reader gets the same bytes, or a loss."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.answer import MAX_HEAD_BYTES, MAX_UNREAD_BYTES, Line
from gptoss_gateway.errors import ClientLeftError, EngineLostError

BODY = b"data: one\n\ndata: two\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\n"
SIZED = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\nb\r\ndata: two\n\n\r\n0\r\nX-Trailer: 1\r\n\r\n"
)
UNTIL_CLOSED = HEAD + b"\r\n" + BODY
EARLY = b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/plain\r\n\r\n"
WHOLE = [SIZED, CHUNKED, EARLY + EARLY + CHUNKED, UNTIL_CLOSED]


class Wire(asyncio.Transport):
    """A transport that notes what is done to it."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line, self.sent, self.paused, self.aborted, self.unsent = line, b"", False, False, 0
        line.connection_made(self)

    def writelines(self, parts) -> None:
        self.sent += b"".join(parts)

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.line.connection_lost, None)


async def asked() -> tuple[Line, Wire, asyncio.Task[None]]:
    line = Line(asyncio.get_running_loop())
    wire = Wire(line)
    asking = asyncio.create_task(line.ask(b"POST / HTTP/1.1\r\n\r\n", b"{}"))
    await asyncio.sleep(0)
    return line, wire, asking


def packets(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


@given(
    which=st.sampled_from(WHOLE), cuts=st.lists(st.integers(0, 300), max_size=12), poured=st.booleans(),
    early=st.booleans(),
)  # fmt: skip
def test_any_cutting_gives_the_same_answer_pulled_or_poured(which, cuts, poured, early):
    async def check() -> None:
        line, _, asking = await asked()
        pieces: list[bytes] = []
        reading = asyncio.create_task(read(line, asking, pieces, poured=poured))
        for packet in packets(which, cuts):
            line.data_received(packet)
            if not early:  # else the reader comes when all is there
                for _ in range(3):
                    await asyncio.sleep(0)
        if which is UNTIL_CLOSED:
            line.connection_lost(None)
        await reading
        assert (line.status, line.content_type) == (200, "text/event-stream")
        assert b"".join(pieces) == BODY
        assert line.rest() == (which is not UNTIL_CLOSED)

    asyncio.run(check())


async def read(line: Line, asking: asyncio.Task[None], pieces: list[bytes], *, poured: bool) -> None:
    await asking
    if poured:
        assert await line.pour(lambda piece: pieces.append(piece) or True)
        return
    while piece := await line.read():
        pieces.append(piece)


@given(which=st.sampled_from([SIZED, CHUNKED]), keep=st.integers(0, 400), poured=st.booleans())
def test_an_answer_that_is_cut_off_is_a_loss_after_what_came(which, keep, poured):
    async def check() -> None:
        line, _, asking = await asked()
        line.data_received(which[: min(keep, which.index(b"two"))] or b"H")
        line.connection_lost(None)
        pieces: list[bytes] = []
        with pytest.raises(EngineLostError):
            await read(line, asking, pieces, poured=poured)
        assert BODY.startswith(b"".join(pieces))
        assert not line.rest()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "not HTTP|closed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_HEAD_BYTES + 1), "head is too large"),
        (EARLY * (MAX_HEAD_BYTES // len(EARLY) + 2), "head is too large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "not HTTP"),
    ],
)
async def test_what_is_not_an_answer_is_a_loss_and_ends_the_connection(what, why):
    line, wire, asking = await asked()
    for start in range(0, len(what), 1000):
        line.data_received(what[start : start + 1000])
    with pytest.raises(EngineLostError, match=why):
        await asking
    assert wire.aborted
    assert not line.rest()


@pytest.mark.parametrize(
    "spoiled",
    [
        SIZED + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        SIZED.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n"),
        SIZED.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
async def test_a_connection_is_not_used_again_where_the_next_answer_could_be_another_ones(spoiled):
    line, _, asking = await asked()
    line.data_received(spoiled)
    await asking
    assert await line.read() == BODY
    assert await line.read() == b""
    assert not line.rest()


async def test_a_connection_whose_request_is_not_sent_yet_is_not_used_again():
    line, wire, asking = await asked()
    line.data_received(SIZED)
    await asking
    await line.read()
    wire.unsent = 1
    assert not line.rest()


async def test_bytes_that_nobody_asked_for_end_an_idle_connection():
    line, wire, asking = await asked()
    line.data_received(SIZED)
    await asking
    await line.read()
    assert line.rest()
    line.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert wire.aborted


async def test_an_answer_that_nobody_reads_holds_its_engine_back():
    line, wire, asking = await asked()
    line.data_received(HEAD + b"\r\n")
    await asking
    for _ in range(MAX_UNREAD_BYTES // 1000 + 1):
        assert not wire.paused
        line.data_received(b"x" * 1000)
    assert wire.paused
    assert len(await line.read()) > MAX_UNREAD_BYTES
    assert not wire.paused


async def test_a_sink_that_is_full_holds_the_engine_back_and_loses_nothing():
    line, wire, asking = await asked()
    line.data_received(HEAD + b"\r\n")
    await asking
    pieces: list[bytes] = []
    pouring = asyncio.create_task(line.pour(lambda piece: pieces.append(piece)))  # None: no more
    await asyncio.sleep(0)
    line.data_received(b"one")
    assert not await pouring
    assert wire.paused
    line.data_received(b"two")  # was on its way
    line.connection_lost(None)
    assert pieces == [b"one"]
    assert not await line.pour(lambda piece: pieces.append(piece))
    assert await line.pour(lambda piece: True)
    assert pieces == [b"one", b"two"]


async def test_what_the_sink_raises_is_its_readers():
    line, wire, asking = await asked()
    line.data_received(HEAD + b"\r\n")
    await asking

    def sink(_: bytes) -> bool:
        raise ZeroDivisionError

    pouring = asyncio.create_task(line.pour(sink))
    await asyncio.sleep(0)
    line.data_received(b"one")
    with pytest.raises(ZeroDivisionError):
        await pouring
    assert wire.paused


async def test_a_line_whose_reader_left_with_the_last_piece_is_not_used_again():
    line, wire, asking = await asked()
    line.data_received(SIZED[:-1])
    await asking
    assert await line.read() == BODY[:-1]

    def gone(piece: bytes) -> bool:
        raise ClientLeftError

    pouring = asyncio.create_task(line.pour(gone))
    await asyncio.sleep(0)
    line.data_received(SIZED[-1:])
    with pytest.raises(ClientLeftError):
        await pouring
    assert wire.paused
    assert not line.rest(), "nobody would read what comes next"
