"""Heads of Ray that go, on a real KubeRay: lost ones with a Redis behind them, others with their whole Ray cluster."""

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.house import GONE_SECONDS, MODELS, START_SECONDS, House, Reply, talking

NAME = "outlives"
REDIS, PORT = "redis", 6379
RAYS_PATIENCE = 60
"""Seconds after which a node of Ray's ends itself, if nobody tells it more, for want of a head."""


@pytest.fixture
def password(house: House) -> Iterator[str]:
    """A Redis in the models' namespace with this password, and an operator that keeps heads' state in it."""
    address = f"redis://{REDIS}.{{namespace}}.svc:{PORT}"
    store = {"namespaces": [MODELS], "redisAddress": address, "passwordSecret": {"name": REDIS}}
    with house.redis(REDIS, PORT) as password:
        house.upgrade(gcsFaultTolerance=[store])
        yield password
        if house.spec(NAME) is not None:
            _put_to_sleep(house)  # deleted while awake it would leave its keys in Redis
            house.delete(NAME)
        house.upgrade()


def test_engines_outlive_their_head(house: House, password: str):
    house.deploy(NAME, engine={"maxModelLen": 2048, "maxNumSeqs": 4})
    house.wait(NAME, "Ready", "True", "Serving")
    heads, workers = house.uids(NAME, "head"), house.uids(NAME, "worker")
    assert (len(heads), len(workers)) == (1, 1)
    with house.gateway() as ask:

        def stream() -> Reply:
            return ask(NAME, stream=True, max_tokens=500, ignore_eos=True)

        with talking(stream, clients=1, pause=5) as replies:
            house.cluster.until(lambda: replies, seconds=START_SECONDS, what="a first answer")
            (head,) = house.pods(NAME, "head")
            name = head["metadata"]["name"]
            house.cluster.kubectl("delete", "pod", name, "-n", MODELS, "--grace-period=1", seconds=GONE_SECONDS)
            house.cluster.until(
                lambda: house.uids(NAME, "head", ready=True) - heads,
                seconds=START_SECONDS,
                what=lambda: f"another head, but {house.describe(NAME)}",
            )
            house.wait(NAME, "Ready", "True", "Serving")
            told = len(replies)
            house.cluster.until(lambda: len(replies) > told + 2, seconds=START_SECONDS, what="answers go on")
    assert [reply for reply in replies if not reply.is_whole] == []
    assert house.uids(NAME, "worker") == workers
    assert _keys(house, password) > 0

    _put_to_sleep(house)
    assert _keys(house, password) == 0


def test_streams_outlive_a_head_that_goes_with_its_ray_cluster(house: House):
    """Without a Redis, and through the worker's own proxy: a head that passes streams on waits for them."""
    name = "suspended"
    house.deploy(name, engine={"maxModelLen": 32768, "maxNumSeqs": 4}, memory="8Gi")
    try:
        house.wait(name, "Ready", "True", "Serving")
        (worker,) = house.pods(name, "worker")
        with house.listening(name, worker, tokens=30_000) as stream:
            house.cluster.until(lambda: stream.events, seconds=GONE_SECONDS, what="the stream's first event")
            house.patch(name, {"suspend": True})
            house.cluster.until(
                lambda: not house.pods(name, "head"), seconds=GONE_SECONDS, what=lambda: house.describe(name)
            )
            head_gone = time.monotonic()
        assert stream.events[-1:] == ["data: [DONE]"], stream.events[-1:]
        assert stream.ended_at > head_gone + RAYS_PATIENCE, "too short a stream shows nothing: ask for more tokens"
        house.cluster.until(lambda: not house.pods(name), seconds=GONE_SECONDS, what=lambda: house.describe(name))
    finally:
        house.delete(name)


def _put_to_sleep(house: House) -> None:
    house.patch(NAME, {"suspend": True})
    house.cluster.until(lambda: not house.pods(NAME), seconds=GONE_SECONDS, what=lambda: house.describe(NAME))


def _keys(house: House, password: str) -> int:
    """How many keys there are in Redis."""
    with house.cluster.forward(REDIS, PORT, MODELS) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port or 0), timeout=30) as redis:
            redis.sendall(f"AUTH {password}\r\nDBSIZE\r\nQUIT\r\n".encode())
            said = b"".join(iter(lambda: redis.recv(4096), b"")).decode()
    authenticated, size, _ = said.split("\r\n", 2)
    assert authenticated == "+OK", said
    return int(size.removeprefix(":"))
