"""Asks a pod how far its pull is. What it says is shown to people, and nothing relies on it."""

import asyncio

import aiohttp

from gptoss_api.pull_report import MAX_REPORT_BYTES, REPORT_PORT

_SECONDS = 2.0


async def report_at(session: aiohttp.ClientSession, address: str, name: str) -> str | None:
    """Return a report of a pod by the pod's address; None if it does not answer so, within a deadline of its own."""
    host = f"[{address}]" if ":" in address else address
    try:
        async with (
            asyncio.timeout(_SECONDS),
            session.get(f"http://{host}:{REPORT_PORT}/{name}", allow_redirects=False) as response,
        ):
            length = response.content_length
            if response.status != 200 or length is None or length > MAX_REPORT_BYTES:
                return None
            return (await response.read()).decode()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
