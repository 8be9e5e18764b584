"""Names that mean another address after they were checked: each connection is looked at before a byte is sent.

A server listens at an address of its own, which stands for a cloud's metadata service, and notes what it hears.
"""

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from gptoss_weights.errors import SourceNotAllowedError
from gptoss_weights.sources import SourceSettings, endpoint, open_source
from tests.contract.weights.blobs import ACCOUNT, KEY
from tests.contract.weights.hub import COMMIT
from tests.contract.weights.test_s3 import Misbehaving, misbehaving, send

__all__ = ["misbehaving"]

METADATA = "127.0.0.66"
STORE = "store.example"
GOOD = "127.0.0.1"


@dataclass
class Service:
    """What connected, and what it said."""

    port: int
    heard: list[bytes] = field(default_factory=list)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def silent(self) -> bool:
        """Whether one came, and left without a word."""
        assert self.ended.acquire(timeout=60)
        return self.heard == [b""]


@contextmanager
def listening_at(address: str, port: int) -> Iterator[Service]:
    with socket.create_server((address, port)) as server:
        service = Service(server.getsockname()[1])

        def hear() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    service.heard.append(connection.recv(65536))
                service.ended.release()

        thread = threading.Thread(target=hear)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def metadata(misbehaving: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service at a forbidden address, at the port of a store at an ordinary one."""
    forbidden = (*endpoint.METADATA_SERVICES, ipaddress.ip_network(f"{METADATA}/32"))
    monkeypatch.setattr(endpoint, "METADATA_SERVICES", forbidden)
    with listening_at(METADATA, urlsplit(misbehaving.endpoint).port or 0) as service:
        yield service


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let names of example mean the store so many times, and the metadata service from then on."""
    real = socket.getaddrinfo
    left = 0

    def answers(host: str, *arguments: object, **options: object) -> object:
        nonlocal left
        if not str(host).endswith(".example"):
            return real(host, *arguments, **options)
        left -= 1
        return real(GOOD if left >= 0 else METADATA, *arguments, **options)

    def times(count: int) -> None:
        nonlocal left
        left = count

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    return times


def settings(place: str, **changes: object) -> SourceSettings:
    return SourceSettings(
        s3_endpoint=place,
        s3_access_key_id="key",
        s3_secret_access_key="secret",
        azure_account=ACCOUNT,
        azure_endpoint=f"{place}/{ACCOUNT}",
        azure_account_key=KEY,
        hf_endpoint=place,
        **changes,
    )


SOURCES = {"s3": ("s3://models/m", None), "az": ("az://models/m", None), "hf": ("hf://acme/m", COMMIT)}


@pytest.mark.parametrize(("uri", "revision"), SOURCES.values(), ids=SOURCES)
def test_a_name_that_means_another_address_after_it_was_checked(
    metadata: Service, resolve: Callable[[int], None], uri: str, revision: str | None
) -> None:
    resolve(1)
    found = settings(f"http://{STORE}:{metadata.port}")
    with open_source(uri, revision=revision, settings=found) as source:
        with pytest.raises(SourceNotAllowedError, match="link-local or metadata address") as caught:
            source.read_small("model.sig", limit=10)
        assert metadata.silent()
    assert not caught.value.retryable


def test_each_connection_is_looked_at_not_only_the_first(
    metadata: Service, misbehaving: Misbehaving, resolve: Callable[[int], None]
) -> None:
    misbehaving.answer = lambda handler, _: send(handler, 200, b"signed", ETag='"v1"', Connection="close")
    resolve(2)
    with open_source("s3://models/m", settings=settings(f"http://{STORE}:{metadata.port}")) as source:
        assert source.read_small("model.sig", limit=10) == b"signed"
        with pytest.raises(SourceNotAllowedError, match=r"link-local or metadata address"):
            source.stat("config.json")
        assert metadata.silent()
    assert len(misbehaving.requests) == 1


def test_a_host_that_a_hub_redirects_to_is_looked_at_too(
    metadata: Service, misbehaving: Misbehaving, resolve: Callable[[int], None]
) -> None:
    place = f"http://files.example:{metadata.port}/x"
    moved = {"Location": place, "X-Repo-Commit": COMMIT}
    misbehaving.answer = lambda handler, _: send(handler, 302, **moved)
    resolve(0)
    allowed = settings(misbehaving.endpoint, hf_download_hosts=(f"files.example:{metadata.port}",))
    with open_source("hf://acme/m", revision=COMMIT, settings=allowed) as source:
        with pytest.raises(SourceNotAllowedError, match="link-local or metadata address"):
            source.read_small("model.sig", limit=10)
        assert metadata.silent()
