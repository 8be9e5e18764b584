"""Asks a waking engine whether it answers, often enough that a held request is released at once.

An application that is being deployed makes requests hang in Ray's fallback proxy, so
each probe is short, and a new one starts every interval whether or not earlier ones came back.
"""

import asyncio
from collections.abc import Callable

import aiohttp
import msgspec

from gptoss_gateway.upstream import Upstream

PROBE_INTERVAL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 1.0
MAX_LIST_BYTES = 256 * 1024
"""Of an engine's list of its models, which has one."""


async def until_answer(
    session: aiohttp.ClientSession,
    locate: Callable[[], tuple[Upstream, str] | None],
) -> bool:
    """Probe until the engine of a model answers.

    ``locate`` says where to probe and for which model id; it is asked before every probe. True as
    soon as an engine lists that id, or refuses this gateway's token; False once ``locate`` returns None.
    """
    probes: set[asyncio.Task[bool]] = set()
    loop = asyncio.get_running_loop()
    next_probe = loop.time()
    try:
        while (target := locate()) is not None:
            if loop.time() >= next_probe:
                next_probe = loop.time() + PROBE_INTERVAL_SECONDS
                probes.add(asyncio.create_task(answers(session, *target)))
            pause = max(0.0, next_probe - loop.time())
            if not probes:
                await asyncio.sleep(pause)
                continue
            done, probes = await asyncio.wait(probes, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if any(probe.result() for probe in done):
                return locate() is not None
        return False
    finally:
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


async def answers(
    session: aiohttp.ClientSession, upstream: Upstream, model_id: str, *, within: float = PROBE_TIMEOUT_SECONDS
) -> bool:
    """Ask an engine once whether it serves a model id; a refused token is an answer too."""
    try:
        async with session.get(
            f"{upstream.url}/v1/models",
            headers=upstream.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=within),
        ) as response:
            if response.status in (401, 403):
                return True  # it is up and refuses us: a request that goes there learns why
            if response.status != 200:
                return False
            models = _MODELS.decode(await _whole(response))
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, RecursionError):
        return False
    return any(model.id == model_id for model in models.data)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """Read a short answer; a long one is none."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_LIST_BYTES:
            return b""
    return bytes(body)


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model]


_MODELS = msgspec.json.Decoder(_Models)
