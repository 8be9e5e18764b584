"""Files that change under a running gateway are read beside its event loop."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
import yaml

from tests.contract.gateway.house import OTHER_KEY, client, eventually, hashed, model_object
from tests.contract.gateway.test_holding import ask
from tests.contract.gateway.test_tls import authority, handshake  # noqa: F401 - one of them is a fixture
from tests.contract.gateway.test_tls import client as tls_client

PATIENCE_SECONDS = 30.0


class Slow:
    """A file whose reader waits until it is written, or for so long that ``gave_up`` says it: a test must end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(new := path.with_name("slow"))
        new.replace(path)
        self._path = path
        self._pipe: int | None = None
        self.gave_up = False
        self._watchman = threading.Timer(PATIENCE_SECONDS, self._give_up)
        self._watchman.daemon = True
        self._watchman.start()

    def is_being_read(self) -> bool:
        """Whether somebody has opened it, and now waits."""
        try:
            self._pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def _give_up(self) -> None:
        self.gave_up = True
        self.write("")

    def write(self, text: str) -> None:
        """Let the reader have it."""
        self._watchman.cancel()
        if self._pipe is None and not self.is_being_read():
            return
        pipe, self._pipe = self._pipe, None
        os.write(pipe, text.encode())
        self._path.with_name("done").write_text(text)  # whoever looks again finds it there
        self._path.with_name("done").replace(self._path)
        os.close(pipe)


@pytest.mark.parametrize("name", ["keys.yaml", "token"])
async def test_a_file_that_is_read_slowly_stalls_no_stream(house, name):
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway()
    async with client(server) as api:
        stream = await ask(api, stream=True)
        chunks = aiter(stream)
        assert (await anext(chunks)).choices[0].delta.content == "Hello"
        before = (house.folder / name).read_text()
        file = Slow(house.folder / name)
        await eventually(file.is_being_read)
        application.paused.set()
        assert [chunk.choices[0].delta.content async for chunk in chunks] == [" world"]
        await ask(api)
        assert not file.gave_up
        file.write(before)
        await ask(api)


async def test_a_certificate_that_is_read_slowly_stalls_no_stream_and_counts_once_it_is_read(
    house, authority, tmp_path  # noqa: F811
):  # fmt: skip
    house.apply(model_object("serving"))
    application = house.deploy()
    application.paused.clear()
    before, after = authority.issue(), authority.issue()
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    certificate.write_bytes(before.certificate)
    key.write_bytes(before.key)
    server = await house.open_gateway(tls={"certFile": certificate, "keyFile": key})
    async with tls_client(server, authority.trusting()) as api:
        stream = await ask(api, stream=True)
        chunks = aiter(stream)
        assert (await anext(chunks)).choices[0].delta.content == "Hello"
        file = Slow(certificate)
        await eventually(file.is_being_read)
        application.paused.set()
        assert [chunk.choices[0].delta.content async for chunk in chunks] == [" world"]
        assert (await handshake(server, authority.trusting())).serial == before.serial
        assert not file.gave_up
        key.write_bytes(after.key)
        file.write(after.certificate.decode())

        async def is_shown() -> bool:
            return (await handshake(server, authority.trusting())).serial == after.serial

        async with asyncio.timeout(60):
            while not await is_shown():  # noqa: ASYNC110 - a thread reads it
                await asyncio.sleep(0.05)


async def test_what_is_read_slowly_counts_once_it_is_read(house):
    house.apply(model_object("serving"))
    house.deploy()
    server = await house.open_gateway()
    file = Slow(house.keys_file)
    await eventually(file.is_being_read)
    async with client(server, key=OTHER_KEY) as api:
        file.write(yaml.safe_dump({"tenants": [{"name": "new", "keys": [hashed(OTHER_KEY)], "namespaces": ["ml"]}]}))
        await eventually(lambda: _lists(server, OTHER_KEY) == ["assistant"])
        await ask(api)


def _lists(server, key: str) -> list[str]:
    caller = server.gateway._keys.authenticate({"Authorization": f"Bearer {key}"})
    return [name for name, _ in server.gateway.catalogue.visible(caller)]
