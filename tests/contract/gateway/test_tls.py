"""The listener with a certificate: real handshakes, files that change under open streams, clients that do not play."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import openai
import pytest
import uvloop

from gptoss_gateway.certificate import Certificate
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.server import Server
from gptoss_gateway.settings import TLS
from tests.contract.gateway.certificates import Authority, Mounted, encrypted
from tests.contract.gateway.house import KEY, House, eventually, model_object
from tests.contract.gateway.test_abuse import BODY, HEAD, LENGTH
from tests.contract.gateway.test_passing_through import MESSAGES, metrics

REQUEST = HEAD + LENGTH % len(BODY) + b"\r\n" + BODY


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def secret(tmp_path: Path, authority: Authority) -> Mounted:
    mounted = Mounted(tmp_path / "tls")
    mounted.pair(authority.issue(), ca_crt=authority.pem)
    return mounted


def tls(secret: Mounted, **more: Any) -> dict[str, Any]:
    return {"certFile": secret.folder / "tls.crt", "keyFile": secret.folder / "tls.key", **more}


async def awake(house: House, secret: Mounted):
    house.apply(model_object("serving"))
    application = house.deploy()
    return await house.open_gateway(tls=tls(secret)), application


@contextlib.asynccontextmanager
async def client(server: Server, context: ssl.SSLContext) -> AsyncIterator[openai.AsyncOpenAI]:
    options = {"base_url": server.url + "/v1", "api_key": KEY, "max_retries": 0, "timeout": 60.0}
    http = openai.DefaultAsyncHttpxClient(verify=context)
    async with openai.AsyncOpenAI(**options, http_client=http) as api:
        yield api


async def stream(api: openai.AsyncOpenAI):
    return await api.chat.completions.create(model="assistant", messages=MESSAGES, stream=True)


def port(server: Server) -> int:
    return int(server.url.rsplit(":", 1)[1])


async def handshake(server: Server, context: ssl.SSLContext) -> SimpleNamespace:
    """Shake hands and leave; what the gateway showed."""
    _, writer = await asyncio.open_connection("127.0.0.1", port(server), ssl=context)
    shown = writer.get_extra_info("ssl_object")
    seen = SimpleNamespace(
        serial=int(shown.getpeercert()["serialNumber"], 16),
        version=shown.version(),
        protocol=shown.selected_alpn_protocol(),
    )
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return seen


async def test_clients_speak_tls_1_3_and_see_no_other_difference(house, secret, authority):
    server, _ = await awake(house, secret)
    assert server.url.startswith("https://")
    async with client(server, authority.trusting()) as api:
        whole = await api.chat.completions.create(model="assistant", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello world"
        assert "".join([chunk.choices[0].delta.content async for chunk in await stream(api)]) == "Hello world"
    context = authority.trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    seen = await handshake(server, context)
    assert (seen.version, seen.protocol) == ("TLSv1.3", "http/1.1")


async def test_large_bodies_and_answers_pass(house, secret, authority):
    server, application = await awake(house, secret)
    application.words = ["word" * 50_000] * 20
    messages = [{"role": "user", "content": "x" * 900_000}]
    async with client(server, authority.trusting()) as api:
        answer = await api.chat.completions.create(model="assistant", messages=messages, stream=True)
        assert sum([len(chunk.choices[0].delta.content) async for chunk in answer]) == 4_000_000
    assert len(application.posts[0][2]) > 900_000


async def test_a_new_certificate_is_shown_to_new_clients_while_an_open_stream_goes_on(house, secret, authority):
    server, application = await awake(house, secret)
    application.paused.clear()
    before = await handshake(server, authority.trusting())
    async with client(server, authority.trusting()) as api:
        answer = aiter(await stream(api))
        assert (await anext(answer)).choices[0].delta.content == "Hello"
        renewed = authority.issue(days=90)
        assert renewed.serial != before.serial
        secret.pair(renewed)
        await server.refresh()
        assert (await handshake(server, authority.trusting())).serial == renewed.serial
        application.paused.set()
        assert [chunk.choices[0].delta.content async for chunk in answer] == [" world"]
    assert await expiry(server) == pytest.approx(90 * 86400, abs=3600)


async def expiry(server: Server) -> float:
    """Return how many seconds the shown certificate is good for, by the metric."""
    name = "gptoss_gateway_certificate_expiry_timestamp_seconds "
    (line,) = [line for line in (await metrics(server)).splitlines() if line.startswith(name)]
    return float(line.removeprefix(name)) - time.time()


def other_key(authority: Authority, secret: Mounted) -> None:
    secret.put(tls_crt=authority.issue().certificate, tls_key=authority.issue().key)


def rubbish(authority: Authority, secret: Mounted) -> None:
    secret.put(tls_crt=b"-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n", tls_key=b"")


def no_certificate(authority: Authority, secret: Mounted) -> None:
    secret.put(tls_crt=b"", tls_key=authority.issue().key)


def locked_key(authority: Authority, secret: Mounted) -> None:
    pair = authority.issue()
    secret.put(tls_crt=pair.certificate, tls_key=encrypted(pair))


def gone(authority: Authority, secret: Mounted) -> None:
    secret.put()


BROKEN = [other_key, rubbish, no_certificate, locked_key, gone]


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_certificate_that_cannot_be_used_leaves_the_last_good_one_in_force(
    house, secret, authority, caplog, broken
):
    server, _ = await awake(house, secret)
    before = await handshake(server, authority.trusting())
    broken(authority, secret)
    await server.refresh()
    assert (await handshake(server, authority.trusting())).serial == before.serial
    assert "gptoss_gateway_certificate_stale 1.0" in await metrics(server)
    assert "the last good one stays in force" in caplog.text
    assert "PRIVATE KEY" not in caplog.text
    healed = authority.issue()
    secret.pair(healed)
    await server.refresh()
    assert (await handshake(server, authority.trusting())).serial == healed.serial
    assert "gptoss_gateway_certificate_stale 0.0" in await metrics(server)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_gateway_does_not_start_with_a_certificate_that_cannot_be_used(authority, secret, broken):
    broken(authority, secret)
    with pytest.raises(SettingsError, match=r"^tls\.(cert|key)File .*tls\.(crt|key): "):
        Certificate(TLS.model_validate(tls(secret)))


def test_a_file_of_client_authorities_without_any_is_refused(authority, secret):
    (secret.folder / "clients.pem").write_bytes(authority.issue().certificate)
    with pytest.raises(SettingsError, match=r"tls\.clientCAFile .*clients\.pem: has no authority's certificate"):
        Certificate(TLS.model_validate(tls(secret, clientCAFile=secret.folder / "clients.pem")))


async def test_only_clients_of_the_given_authority_get_as_far_as_a_key(house, secret, authority, tmp_path):
    house.apply(model_object("serving"))
    house.deploy()
    old, new = Authority("old"), Authority("new")
    for name, issuer in {"old": old, "new": new}.items():
        pair = issuer.issue("client")
        (tmp_path / f"{name}.pem").write_bytes(pair.certificate + pair.key)
    secret.pair(authority.issue(), ca_crt=old.pem)
    server = await house.open_gateway(tls=tls(secret, clientCAFile=secret.folder / "ca.crt"))

    async def gets_in(certificate: Path | None) -> bool:
        context = authority.trusting(certificate)
        try:
            async with client(server, context) as api:
                return [model.id async for model in api.models.list()] == ["assistant"]
        except openai.APIConnectionError:
            return False

    assert await gets_in(tmp_path / "old.pem")
    assert not await gets_in(None)
    assert not await gets_in(tmp_path / "new.pem")
    secret.pair(authority.issue(), ca_crt=new.pem)
    await server.refresh()
    assert await gets_in(tmp_path / "new.pem")
    assert not await gets_in(tmp_path / "old.pem")


async def test_a_session_does_not_outlive_the_trust_in_its_client(house, secret, authority, tmp_path):
    pair = authority.issue("client")
    (tmp_path / "client.pem").write_bytes(pair.certificate + pair.key)
    server = await house.open_gateway(tls=tls(secret, clientCAFile=secret.folder / "ca.crt"))
    wire = Wire(server, authority.trusting(tmp_path / "client.pem"))
    await wire.connect()
    await wire.send(await wire.shake() + wire.sealed(REQUEST))
    assert b"HTTP/1.1 " in await wire.receive()
    assert wire.ssl.session is None or not wire.ssl.session.has_ticket
    wire.close()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_minimum_version_is_kept(house, secret, authority, newest):
    context = authority.trusting()
    context.maximum_version = newest
    lenient = await house.open_gateway("one", tls=tls(secret))
    strict = await house.open_gateway("two", tls=tls(secret, minimumVersion="TLSv1.3"))
    assert (await handshake(lenient, context)).version == newest.name.replace("_", ".")
    if newest is ssl.TLSVersion.TLSv1_3:
        assert (await handshake(strict, context)).version == "TLSv1.3"
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(strict, context)


async def test_a_client_that_leaves_its_stream_ends_the_engines_work(house, secret, authority):
    server, application = await awake(house, secret)
    application.paused.clear()
    async with client(server, authority.trusting()) as api:
        answer = await stream(api)
        await anext(aiter(answer))
        await answer.close()
        await asyncio.wait_for(application.aborted.wait(), 60)


class Wire:
    """A client that does its TLS by hand, so that a test decides what comes in one packet."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._port = port(server)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def shake(self) -> bytes:
        """Go through the handshake but for our last flight, which is returned."""
        while True:
            try:
                self.ssl.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self._outgoing.read())
                self._incoming.write(await self._reader.read(65536))
            else:
                return self._outgoing.read()

    def sealed(self, data: bytes) -> bytes:
        self.ssl.write(data)
        return self._outgoing.read()

    async def receive(self) -> bytes:
        """Return the next bytes, or none when the gateway closed."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return self.ssl.read(65536)
                except ssl.SSLWantReadError:
                    if not (data := await self._reader.read(65536)):
                        return b""
                    self._incoming.write(data)
                except ssl.SSLZeroReturnError:
                    return b""

    async def ends(self) -> bool:
        """Tell whether the gateway closes."""
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while await self._reader.read(65536):
                    pass
        return True

    def close(self) -> None:
        self._writer.close()


@contextlib.asynccontextmanager
async def wire(server: Server, authority: Authority) -> AsyncIterator[Wire]:
    connection = Wire(server, authority.trusting())
    await connection.connect()
    try:
        yield connection
    finally:
        connection.close()


async def test_a_request_that_comes_with_the_handshakes_end_is_answered(house, secret, authority):
    server, _ = await awake(house, secret)
    async with wire(server, authority) as connection:
        await connection.send(await connection.shake() + connection.sealed(REQUEST))
        answer = b""
        while b"Hello world" not in answer:
            answer += await connection.receive()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_head_that_began_with_the_handshakes_end_has_its_time_too(house, secret, authority):
    server = await house.open_gateway(tls=tls(secret), limits={"headSeconds": 0.3})
    async with wire(server, authority) as connection:
        await connection.send(await connection.shake() + connection.sealed(HEAD))
        assert (await connection.receive()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01"], ids=["says nothing", "stops in its hello"])
async def test_a_handshake_that_does_not_come_to_its_end_is_given_up(house, secret, authority, first):
    server = await house.open_gateway(tls=tls(secret), limits={"headSeconds": 0.3})
    async with wire(server, authority) as connection:
        await connection.send(first)
        assert await connection.ends()
    assert "gptoss_gateway_failed_handshakes_total 1.0" in await metrics(server)


@pytest.mark.parametrize("data", [REQUEST, b"\x00" * 600, b"\x16\x03\x01\x02\x00\x01" + b"\xff" * 600])
async def test_what_is_no_handshake_is_closed_and_counted(house, secret, authority, data, caplog):
    server, application = await awake(house, secret)
    async with wire(server, authority) as connection:
        await connection.send(data)
        assert await connection.ends()
    await eventually(lambda: server.gateway.metering.registry.get_sample_value(FAILED) == 1)
    assert application.posts == []
    assert "Traceback" not in caplog.text


FAILED = "gptoss_gateway_failed_handshakes_total"


async def test_clients_that_only_connect_take_up_places_and_give_them_back(house, secret, authority):
    server = await house.open_gateway(tls=tls(secret), limits={"maxConnectionsPerClient": 2})
    async with wire(server, authority) as first, wire(server, authority), wire(server, authority) as third:
        assert await third.ends(), "there is no place for a third"
        first.close()
        await eventually(lambda: server.gateway.metering.registry.get_sample_value(FAILED) == 1)
        async with client(server, authority.trusting()) as api:
            assert [model.id async for model in api.models.list()] == [], "its handshake's place became its own"


async def test_it_stops_without_waiting_for_clients_in_their_handshake(house, secret, authority):
    server = await house.open_gateway(tls=tls(secret), limits={"headSeconds": 3600})
    async with wire(server, authority) as silent, wire(server, authority) as idle:
        await idle.send(await idle.shake())
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            url = server.url + "/v1/models"
            async with session.get(url, ssl=authority.trusting(), headers={"Authorization": f"Bearer {KEY}"}) as answer:
                assert json.loads(await answer.read())["data"] == []
            await server.stop()
            house.servers.remove(server)
            assert await silent.ends()
            assert await idle.ends()


@pytest.mark.parametrize(
    "behaviour",
    [
        test_clients_speak_tls_1_3_and_see_no_other_difference,
        test_large_bodies_and_answers_pass,
        test_a_new_certificate_is_shown_to_new_clients_while_an_open_stream_goes_on,
        test_a_client_that_leaves_its_stream_ends_the_engines_work,
        test_a_request_that_comes_with_the_handshakes_end_is_answered,
        test_a_head_that_began_with_the_handshakes_end_has_its_time_too,
        test_clients_that_only_connect_take_up_places_and_give_them_back,
        test_it_stops_without_waiting_for_clients_in_their_handshake,
    ],
    ids=lambda behaviour: behaviour.__name__.removeprefix("test_"),
)
def test_on_the_products_event_loop_whose_tls_is_its_own(behaviour, tmp_path, secret, authority):
    async def run() -> None:
        house = House(tmp_path)
        await house.start()
        try:
            await behaviour(house, secret, authority)
        finally:
            await house.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
