"""Hostile bytes on raw sockets: refused cheaply, in the API's shape, and no engine hears of them."""

import asyncio
import contextlib
import gzip
import json
import tracemalloc

import pytest

from tests.contract.gateway.house import KEY, OTHER_KEY, client, eventually, model_object
from tests.contract.gateway.test_holding import ask
from tests.contract.gateway.test_passing_through import MESSAGES, metrics

BODY = json.dumps({"model": "assistant", "messages": MESSAGES}).encode()
START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
AUTHORIZATION = f"Authorization: Bearer {KEY}\r\n".encode()
JSON = b"Content-Type: application/json\r\n"
HEAD = START + AUTHORIZATION + JSON
LENGTH = b"Content-Length: %d\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


class Wire:
    """A connection that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer with a length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split()[1]), headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def rest(self) -> bytes:
        """Read until the gateway closes."""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def wire(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def time_to_read(monkeypatch):
    """A refusal waits for a client that still sends, on a busy machine too."""
    monkeypatch.setattr("gptoss_gateway.connection._LINGER_SECONDS", 60.0)


@pytest.fixture
async def awake(house):
    house.apply(model_object("serving"))
    return house.deploy()


BROKEN = {
    "both lengths": HEAD + LENGTH % len(BODY) + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "both lengths, other order": HEAD + CHUNKED + LENGTH % 4 + b"\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": HEAD + LENGTH % len(BODY) + LENGTH % (len(BODY) + 1) + b"\r\n" + BODY + SMUGGLED,
    "the same length twice": HEAD + LENGTH % len(BODY) * 2 + b"\r\n" + BODY + SMUGGLED,
    "a list of lengths": HEAD + b"Content-Length: 4, 4\r\n\r\n" + BODY,
    "a signed length": HEAD + b"Content-Length: +4\r\n\r\n" + BODY,
    "a negative length": HEAD + b"Content-Length: -4\r\n\r\n" + BODY,
    "an endless length": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + BODY,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding after chunked": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two codings": HEAD + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a space before a colon": HEAD + b"Content-Length : 4\r\n\r\n" + BODY,
    "a folded line": HEAD + b"X-A: b\r\n c\r\n" + LENGTH % 0 + b"\r\n",
    "bare line feeds": HEAD.replace(b"\r\n", b"\n") + b"\n",
    "a zero byte": HEAD + b"X-A: \x00\r\n\r\n",
    "no host": START.replace(b"Host: gateway\r\n", b"") + LENGTH % 0 + b"\r\n",
    "two hosts": HEAD + b"Host: other\r\n\r\n",
    "no chunk size": HEAD + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
    "a negative chunk": HEAD + CHUNKED + b"\r\n-1\r\nabc\r\n0\r\n\r\n",
    "an endless chunk": HEAD + CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a chunk without its end": HEAD + CHUNKED + b"\r\n3\r\nabcX0\r\n\r\n" + SMUGGLED,
    "a chunk line with a bare line feed": HEAD + CHUNKED + b"\r\n3\nabc\n0\n\n" + SMUGGLED,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a path that is not ASCII": b"GET /\xff HTTP/1.1\r\nHost: gateway\r\n\r\n",
}


@pytest.mark.parametrize("shape", BROKEN)
async def test_broken_and_ambiguous_http_is_400_once_and_the_connection_ends(awake, house, shape, caplog):
    server = await house.open_gateway()
    async with wire(server) as connection:
        await connection.send(BROKEN[shape])
        status, _, body = await connection.answer()
        assert status == 400
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
        assert await connection.rest() == b""
    assert house.engines.requests == []
    assert KEY not in body.decode() + caplog.text
    assert "Traceback" not in caplog.text
    assert 'gptoss_gateway_refused_requests_total{code="400"} 1.0' in await metrics(server)


async def test_chunking_that_breaks_after_the_head_is_400(awake, house):
    server = await house.open_gateway()
    async with wire(server) as connection:
        await connection.send(HEAD + CHUNKED + b'\r\n5\r\n{"mod\r\n')
        await asyncio.sleep(0.1)
        await connection.send(b"nonsense\r\n" + SMUGGLED)
        status, _, body = await connection.answer()
        assert status == 400
        assert "transfer encoding is broken" in json.loads(body)["error"]["message"]
    assert house.engines.requests == []


async def test_a_body_that_never_ends_is_refused_by_its_size(awake, house, time_to_read):
    server = await house.open_gateway(limits={"maxBodyBytes": 65536})
    async with wire(server) as connection:
        await connection.send(HEAD + CHUNKED + b"\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (413, "close")


async def test_a_body_said_to_be_huge_is_refused_before_it_is_sent(awake, house):
    server = await house.open_gateway()
    async with wire(server) as connection:
        await connection.send(HEAD + LENGTH % 2**40 + b"Expect: 100-continue\r\n\r\n")
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (413, "close")


async def test_who_asks_before_sending_is_invited_only_with_a_key(awake, house):
    server = await house.open_gateway()
    expecting = JSON + LENGTH % len(BODY) + b"Expect: 100-continue\r\n\r\n"
    async with wire(server) as connection:
        await connection.send(START + expecting)
        assert (await connection.answer())[0] == 401
    async with wire(server) as connection:
        await connection.send(START + AUTHORIZATION + expecting)
        assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await connection.send(BODY)
        status, _, body = await connection.answer()
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"] == "Hello world"


async def test_a_compressed_bomb_is_never_opened(awake, house):
    server = await house.open_gateway()
    bomb = gzip.compress(b" " * 2**24)
    async with wire(server) as connection:
        await connection.send(HEAD + b"Content-Encoding: gzip\r\n" + LENGTH % len(bomb) + b"\r\n" + bomb)
        assert (await connection.answer())[0] == 415
    assert server.gateway.intake.taken == 0


@pytest.mark.parametrize(
    "head",
    [
        b"X-A: " + b"a" * 40_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(50)),
        b"".join(b"X-%d: a\r\n" % n for n in range(1000)),
    ],
    ids=["one long header", "long headers", "many headers"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_large_heads_are_431(awake, house, time_to_read, head, at_once):
    server = await house.open_gateway()
    async with wire(server) as connection:
        sent = HEAD + head + LENGTH % 0 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            if at_once:
                await connection.send(sent)
            else:
                for start in range(0, len(sent), 4096):
                    await connection.send(sent[start : start + 4096])
                    await asyncio.sleep(0.002)
        status, _, body = await connection.answer()
        assert await connection.rest() == b""
    assert status == 431
    assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert house.engines.requests == []


async def test_a_head_that_trickles_is_ended_and_others_do_not_notice(awake, house, time_to_read):
    server = await house.open_gateway(limits={"headSeconds": 0.4})
    async with contextlib.AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(wire(server)) for _ in range(100)]
        for connection in slow:
            await connection.send(START)
        async with client(server) as api:
            assert (await ask(api)).choices[0].message.content == "Hello world"
        for _ in range(6):
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    await connection.send(b"X-A: b\r\n")
            await asyncio.sleep(0.1)
        for connection in slow:
            assert (await connection.answer())[0] == 408
            assert await connection.rest() == b""


async def test_a_second_head_that_trickles_is_ended_too_and_idle_connections_are_not(awake, house):
    server = await house.open_gateway(limits={"headSeconds": 1.0})
    async with wire(server) as connection, wire(server) as idle:
        for each in (connection, idle):
            await each.send(HEAD + LENGTH % len(BODY) + b"\r\n" + BODY)
            assert (await each.answer())[0] == 200
        await connection.send(b"POST /v1/chat")
        assert (await connection.answer())[0] == 408
        await idle.send(HEAD + LENGTH % len(BODY) + b"\r\n" + BODY)
        assert (await idle.answer())[0] == 200


async def test_a_connection_that_says_nothing_is_closed_and_its_place_is_free(awake, house, monkeypatch):
    monkeypatch.setattr("gptoss_gateway.connection._KEEPALIVE_SECONDS", 0.3)
    server = await house.open_gateway(limits={"maxConnections": 1})
    async with wire(server) as silent:
        assert await silent.rest() == b""
    async with client(server) as api:
        assert (await ask(api)).choices[0].message.content == "Hello world"


async def test_requests_behind_one_that_is_answered_wait_in_the_kernel_and_not_in_memory(awake, house):
    """A client may send the next requests before the first is answered, and without an end."""
    awake.paused.clear()
    server = await house.open_gateway()
    large = b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\nX-A: %s\r\n\r\n" % (b"a" * 30_000)
    count = 2000
    async with wire(server) as connection:
        await connection.send(HEAD + LENGTH % len(BODY) + b"\r\n" + BODY)
        await eventually(lambda: len(awake.posts) == 1)
        sending = asyncio.create_task(connection.send(large * count))
        await asyncio.wait({sending}, timeout=3)
        assert not sending.done(), "60 MB were taken in"
        awake.paused.set()
        assert (await connection.answer())[0] == 200
        async with asyncio.timeout(120):
            for _ in range(count):
                assert (await connection.answer())[0] == 401
            await sending


async def test_a_body_that_trickles_is_408(awake, house, time_to_read):
    server = await house.open_gateway(limits={"bodySeconds": 0.3})
    async with wire(server) as connection:
        await connection.send(HEAD + LENGTH % len(BODY) + b"\r\n")
        for byte in BODY[:5]:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.1)
        status, headers, body = await connection.answer()
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert server.gateway.intake.taken == 0


async def test_a_long_answer_does_not_count_as_a_slow_head(awake, house):
    server = await house.open_gateway(limits={"headSeconds": 1.0, "bodySeconds": 1.0})
    awake.paused.clear()
    async with client(server) as api:
        answer = ask(api)
        await eventually(lambda: bool(awake.posts))
        await asyncio.sleep(1.5)
        awake.paused.set()
        assert (await answer).choices[0].message.content == "Hello world"


@pytest.mark.parametrize("bound", ["maxConnections", "maxConnectionsPerClient"])
async def test_connections_are_bounded_and_places_come_back(awake, house, bound):
    server = await house.open_gateway(limits={bound: 2})
    request = HEAD + LENGTH % len(BODY) + b"\r\n" + BODY
    async with wire(server) as first, wire(server) as second:
        for connection in (first, second):
            await connection.send(request)
            assert (await connection.answer())[0] == 200
        async with wire(server) as third:
            status, headers, _ = await third.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert await third.rest() == b""
    async with asyncio.timeout(60):
        while True:
            async with wire(server) as connection:
                await connection.send(request)
                if (await connection.answer())[0] == 200:
                    return


async def test_bodies_together_are_bounded_and_memory_comes_back_with_the_first_byte_of_an_answer(awake, house):
    server = await house.open_gateway(limits={"maxBodiesBytes": 1500})
    large = json.dumps({"model": "assistant", "messages": MESSAGES, "stream": True, "x": "a" * 1000}).encode()
    awake.paused.clear()
    request = HEAD + LENGTH % len(large) + b"\r\n" + large
    async with wire(server) as coming, wire(server) as streaming:
        await coming.send(HEAD + LENGTH % len(large) + b"\r\n" + large[:1000])
        await eventually(lambda: server.gateway.intake.taken == 1000)
        await streaming.send(request)
        status, _, body = await streaming.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "gateway_busy")
        await coming.send(large[1000:])
        await asyncio.wait_for(awake.streaming.wait(), 60)
        await eventually(lambda: server.gateway.intake.taken == 0)
        assert not awake.aborted.is_set()


async def test_one_tenants_bodies_leave_room_for_anothers(house):
    house.apply(model_object("serving"))
    house.apply(model_object("serving", name="theirs", namespace="other", uid="their-uid"))
    house.deploy("theirs", "other", "their-uid")
    server = await house.open_gateway(limits={"maxBodiesBytes": 9000, "maxBodyBytes": 9000, "bodySeconds": 600})
    mine = json.dumps({"model": "assistant", "messages": MESSAGES, "x": "a" * 400}).encode()
    async with wire(server) as greedy, wire(server) as second:
        await greedy.send(HEAD + LENGTH % 8000 + b"\r\n" + b" " * 7900)
        await eventually(lambda: server.gateway.intake.taken == 7900)
        await second.send(HEAD + LENGTH % len(mine) + b"\r\n" + mine)
        status, _, body = await second.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "gateway_busy")
        async with client(server, key=OTHER_KEY) as api:
            answer = await api.chat.completions.create(model="theirs", messages=MESSAGES, user="a" * 400)
        assert answer.choices[0].message.content == "Hello world"
        assert server.gateway.intake.taken == 7900


ODD = {
    "a host without its end": b"GET http://[::1/v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a port that is none": b"GET http://gateway:99999999/v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a tunnel": b"CONNECT gateway:443 HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a tunnel to nowhere": b"CONNECT :::: HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "slashes": b"POST //v1//chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n",
    "percents": b"GET /v1/models/%ff%00%zz?%=&;#x HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a model that climbs": b"GET /v1/models/../../x HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "another host": b"GET http://elsewhere/v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "a websocket": b"GET /v1/realtime HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an unknown method": b"BREW /v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n",
}


@pytest.mark.parametrize("shape", ODD)
async def test_odd_targets_are_the_clients_mistake(awake, house, shape, caplog):
    server = await house.open_gateway()
    async with wire(server) as connection:
        await connection.send(ODD[shape])
        status, _, body = await connection.answer()
    assert 400 <= status < 500, body
    assert json.loads(body)["error"]["message"]
    assert house.engines.requests == []
    assert "Traceback" not in caplog.text


async def test_a_crowd_of_hostile_requests_leaves_memory_flat(awake, house):
    server = await house.open_gateway(limits={"headSeconds": 0.3, "bodySeconds": 0.3, "maxBodyBytes": 65536})
    hostile = [
        *BROKEN.values(),
        HEAD + LENGTH % 65536 + b"\r\n" + b'{"model":"assistant","x":' + b"[" * 60000,
        HEAD + CHUNKED + b"\r\n" + b"8000\r\n" + b"x" * 0x8000 + b"\r\n",
        HEAD + b"X-A: " + b"a" * 100_000,
        START + b"Connection: close\r\n" + LENGTH % 65536 + b"\r\n" + b"x" * 65536,
        HEAD.replace(KEY.encode(), OTHER_KEY.encode()) + b"Connection: close\r\n" + LENGTH % len(BODY) + b"\r\n" + BODY,
    ]

    async def attack(data: bytes) -> None:
        async with wire(server) as connection:
            with contextlib.suppress(ConnectionError):
                await connection.send(data)
            await connection.rest()

    async def memory_after_a_wave() -> int:
        await asyncio.gather(*(attack(data) for data in hostile))
        await eventually(lambda: not server.gateway.intake.taken)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        await memory_after_a_wave()
        before = await memory_after_a_wave()
        for _ in range(3):
            after = await memory_after_a_wave()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000
    assert house.engines.requests == []
    async with client(server) as api:
        assert (await ask(api)).choices[0].message.content == "Hello world"
