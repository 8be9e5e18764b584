"""Tokens are read beside the event loop, and a file that hangs is a cluster that does not answer."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from gptoss_api.clusters import RayCluster
from gptoss_operator.substrates import dashboard
from gptoss_operator.substrates.dashboard import ClusterUnreachableError, RayDashboard, engine_answers
from gptoss_operator.token_file import TokenFile

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A file that nobody writes: whoever opens it waits."""
    path = tmp_path / "token"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # no thread is left behind


async def test_it_is_read_anew_each_time(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "token")
    for token in ("one", "two"):
        file.path.write_text(token)
        assert await file.read() == token
    file.path.unlink()
    with pytest.raises(FileNotFoundError):
        await file.read()


async def test_a_dashboards_token_that_cannot_be_read_leaves_the_cluster_unknown(
    hanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "_GET_SECONDS", 0.2)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ClusterUnreachableError, match="did not answer in time"):
            await RayDashboard(_cluster(hanging, tmp_path), session).applications()
        with pytest.raises(ClusterUnreachableError, match="token file of Ray cluster local can't be read"):
            await RayDashboard(_cluster(tmp_path / "none", tmp_path), session).applications()


async def test_an_engine_is_not_asked_without_the_token(hanging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "_PROBE_SECONDS", 0.2)
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        assert await engine_answers(session, NOWHERE, TokenFile(hanging)) is False


def _cluster(token: Path, folder: Path) -> RayCluster:
    return RayCluster(
        name="local",
        dashboard_url=NOWHERE,
        serve_url=NOWHERE,
        token_file=token,
        gateway_token_file=folder / "gateway-token",
    )
