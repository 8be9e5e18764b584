"""OpenAI's client for Node accepts what the gateway sends: streams, heartbeats, refusals. `make test-node` runs it."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract.gateway.house import KEY, UID, House, hashed, model_object
from tests.contract.gateway.test_held_streams import fall_asleep

HERE = Path(__file__).parent
NODE = os.environ.get("GPTOSS_TEST_NODE", "")
pytestmark = pytest.mark.skipif(not NODE, reason="needs Node and its openai client: make test-node")


@pytest.fixture
async def house(tmp_path: Path):
    house = House(tmp_path)
    await house.start()
    yield house
    await house.stop()


async def client(server, what: str, key: str = KEY) -> dict[str, Any]:
    program = await asyncio.create_subprocess_exec(
        NODE, str(HERE / "client.mjs"), what, server.url + "/v1", key,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            out, errors = await program.communicate()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
    assert program.returncode == 0, errors.decode()
    return json.loads(out)


async def test_whole_answers_streams_and_typed_events_arrive(house):
    house.apply(model_object("serving"))
    house.deploy()
    server = await house.open_gateway()
    assert await client(server, "models") == {"saw": ["assistant"]}
    assert await client(server, "whole") == {"saw": "Hello world"}
    assert await client(server, "stream") == {"saw": "Hello world"}
    kinds = (await client(server, "responses"))["saw"]
    assert kinds == ["response.output_text.delta"] * 2 + ["response.completed"]


WAITS = pytest.mark.parametrize(
    ("what", "saw"),
    [("stream", "Hello world"), ("responses", ["response.output_text.delta"] * 2 + ["response.completed"])],
)


@WAITS
async def test_a_stream_that_waits_for_a_wake_is_not_disturbed_by_its_heartbeats(house, monkeypatch, what, saw):
    asleep = await fall_asleep(house, monkeypatch)
    asking = asyncio.create_task(client(asleep.server, what))
    await asleep.until_told(3, asking)
    house.deploy()
    house.apply(model_object("serving"))
    assert await asking == {"saw": saw}


@WAITS
async def test_an_error_after_heartbeats_is_an_error_of_the_stream(house, monkeypatch, what, saw):
    asleep = await fall_asleep(house, monkeypatch)
    asking = asyncio.create_task(client(asleep.server, what))
    await asleep.until_told(2, asking)
    house.apply(model_object("stalled"))
    seen = await asking
    assert (seen["kind"], seen["code"]) == ("APIError", "UntrustedSigner")
    assert asleep.server.gateway.ledger.counts(UID) == (0, 0)


async def test_refusals_are_the_clients_own_kinds_of_error(house):
    house.apply(model_object("serving"))
    house.deploy()
    limits = {"requestsPerMinute": 1}
    house.write_keys([{"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"], "limits": limits}])
    server = await house.open_gateway()
    unknown = await client(server, "whole", "gptoss-" + "z" * 43)
    assert (unknown["kind"], unknown["status"], unknown["code"]) == ("AuthenticationError", 401, "invalid_api_key")
    assert await client(server, "whole") == {"saw": "Hello world"}
    limited = await client(server, "whole")
    assert (limited["kind"], limited["status"], limited["code"]) == ("RateLimitError", 429, "rate_limit_exceeded")
    assert int(limited["headers"]["retry-after"]) >= 1
