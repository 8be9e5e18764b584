"""Two operators, one Lease: whatever happens to the leader, exactly one goes on, and no replica notices."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.ports import free_ports
from tests.apiserver.operator.house import PATIENCE, SYSTEM, Stack, stack

ELECTION = {"leaseSeconds": 12, "deadlineSeconds": 9, "renewSeconds": 1.5, "retrySeconds": 0.5}
# So long that nobody waits for its end within a test: whoever leads was given it.
ENDLESS = {"leaseSeconds": 600, "deadlineSeconds": 590, "renewSeconds": 1.5, "retrySeconds": 0.5}


@dataclass
class Replica:
    """One of the operators."""

    name: str
    port: int
    process: asyncio.subprocess.Process

    async def leads(self) -> bool | None:
        """What it says of itself; None if it says nothing."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
                session.get(f"http://127.0.0.1:{self.port}/metrics") as answer,
            ):
                return "gptoss_operator_leads 1.0" in await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def ready(self) -> bool:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
                session.get(f"http://127.0.0.1:{self.port}/readyz") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@dataclass
class Pair:
    """A leader and its standby."""

    home: Stack
    leader: Replica
    standby: Replica

    async def holder(self) -> str:
        return await self.home.kubectl(
            "get", "lease", "gptoss-operator", "-n", SYSTEM, "-o", "jsonpath={.spec.holderIdentity}"
        )


async def start(home: Stack, name: str, terms: Mapping[str, float]) -> Replica:
    port = free_ports(1)[0]
    metrics = {"host": "127.0.0.1", "port": port}
    settings = {**home.settings, "metrics": metrics, "leaderElection": dict(terms)}
    return Replica(name, port, await home.spawn(name, settings, "--identity", name))


@pytest.fixture
def terms() -> Mapping[str, float]:
    """The times of this test's election."""
    return ELECTION


@pytest.fixture
async def pair(
    control_plane: ControlPlane, crds: list[str], namespace: str, tmp_path: Path, terms: Mapping[str, float]
) -> AsyncIterator[Pair]:
    async with stack(control_plane, namespace, tmp_path, 0, start=False) as home:
        await home.kubectl("delete", "lease", "gptoss-operator", "-n", SYSTEM, "--ignore-not-found")
        leader = await start(home, "first", terms)
        await home.eventually(leader.leads, "the first leads")
        standby = await start(home, "second", terms)
        await home.eventually(standby.ready, "the second is ready")
        try:
            await home.apply()
            await home.wait_for("Ready", "True", "Serving")
            yield Pair(home, leader, standby)
        finally:
            for replica in (leader, standby):
                if replica.process.returncode is None:
                    replica.send(signal.SIGCONT)
                    replica.send(signal.SIGKILL)
                    await replica.process.wait()
            for name in ("first", "second"):
                print(f"--- {name}\n{(home.folder / f'{name}.log').read_text()[-3000:]}")


async def _works(pair: Pair) -> None:
    """Whoever leads now does what a user asks for."""
    home = pair.home
    await home.apply("other")
    await home.wait_for("Ready", "True", "Serving", "other")
    assert home.ray.starts[home.app("assistant")] == 1
    assert set(home.ray.applications) == {home.app("assistant"), home.app("other")}


async def test_a_killed_leader_is_replaced_within_the_lease_and_no_replica_notices(pair: Pair) -> None:
    assert await pair.standby.leads() is False
    before = (await pair.home.deployment())["status"]
    pair.leader.send(signal.SIGKILL)
    killed = time.monotonic()
    await pair.home.eventually(pair.standby.leads, "the standby leads")
    assert time.monotonic() - killed < 3 * ELECTION["leaseSeconds"]
    await _works(pair)
    assert (await pair.home.deployment())["status"] == before


@pytest.mark.parametrize("terms", [ENDLESS], ids=["a lease that outlasts the test"])
async def test_a_leader_that_ends_hands_over_at_once(pair: Pair) -> None:
    pair.leader.send(signal.SIGTERM)
    await pair.leader.process.wait()
    await pair.home.eventually(pair.standby.leads, "the standby leads")
    assert await pair.holder() == "second"
    await _works(pair)


async def test_a_leader_that_was_stopped_writes_nothing_after_it_was_replaced(pair: Pair) -> None:
    home = pair.home
    home.ray.hang.clear()  # the leader is in the midst of its look at the cluster when it is stopped
    looks = home.ray.gets
    await home.apply(engine={"maxNumSeqs": 8})
    await home.eventually(lambda: _observed(home, 2), "the leader has decided")
    await home.until(lambda: home.ray.gets > looks)
    pair.leader.send(signal.SIGSTOP)
    home.ray.hang.set()
    await home.eventually(pair.standby.leads, "the standby leads")
    await home.until(lambda: home.ray.starts[home.app("assistant")] == 2)
    await home.wait_for("Ready", "True", "Serving")
    await home.apply(engine={"maxNumSeqs": 16})
    await home.until(lambda: home.ray.starts[home.app("assistant")] == 3)
    await home.eventually(lambda: _observed(home, 3), "the standby has decided")
    await home.wait_for("Ready", "True", "Serving")
    writes, status = len(home.ray.puts), await _settled(home)
    pair.leader.send(signal.SIGCONT)
    assert await asyncio.wait_for(pair.leader.process.wait(), PATIENCE) == 1
    assert "is held by second now" in (home.folder / "first.log").read_text()
    assert len(home.ray.puts) == writes
    assert (await home.deployment())["status"] == status
    assert await pair.standby.leads()


async def test_nobody_writes_while_the_api_server_is_away_and_one_goes_on_afterwards(pair: Pair) -> None:
    plane, home = pair.home.plane, pair.home
    await asyncio.to_thread(plane.kill_apiserver)
    try:
        await home.eventually(lambda: _says(pair.leader, False), "the leader knows that it leads no more")
        assert await pair.standby.leads() is False
        writes = len(home.ray.puts)
        home.ray.lose_everything()
        await asyncio.sleep(2 * ELECTION["retrySeconds"])
        assert len(home.ray.puts) == writes
    finally:
        await asyncio.to_thread(plane.start_apiserver)

    async def one_leads() -> bool:
        return [await each.leads() for each in (pair.leader, pair.standby)].count(True) == 1

    await home.eventually(one_leads, "one leads")
    await home.until(lambda: home.app("assistant") in home.ray.applications)
    lease = json.loads(await home.kubectl("get", "lease", "gptoss-operator", "-n", SYSTEM, "-o", "json"))
    assert lease["spec"]["holderIdentity"] in {"first", "second"}


async def _observed(home: Stack, generation: int) -> bool:
    return (await home.deployment())["status"]["observedGeneration"] == generation


async def _settled(home: Stack) -> object:
    """The status, once a look at the cluster after it was Ready has found nothing more to write."""
    looks, status = home.ray.gets, (await home.deployment())["status"]

    async def unchanged() -> bool:
        nonlocal looks, status
        if home.ray.gets < looks + 2:
            return False
        before, looks, status = status, home.ray.gets, (await home.deployment())["status"]
        return before == status

    await home.eventually(unchanged, "the status has come to rest")
    return status


async def _says(replica: Replica, leads: bool) -> bool:
    return await replica.leads() is leads
