"""The real Azurite, which is Azure's own emulator: pulls, pins, tokens and refusals. `make test-azure` runs it."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import BlobSasPermissions, ContainerClient, generate_container_sas

from gptoss_weights.errors import (
    AccessDeniedError,
    DigestMismatchError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
)
from gptoss_weights.sources import SourceSettings, open_source
from gptoss_weights.trust import read_bundle
from tests.contract.weights.conftest import SHARD, _no_waiting, pulled, weights
from tests.contract.weights.measured_pull import MOST_MIB, larger_than_lanes, peak_of_pull
from tests.contract.weights.proxy import Cut, Refuse, proxied

__all__ = ["_no_waiting", "pulled", "weights"]

NODE = os.environ.get("GPTOSS_TEST_NODE", "")
PROGRAM = Path(__file__).parent / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
pytestmark = pytest.mark.skipif(not (NODE and PROGRAM.exists()), reason="needs Node and Azurite: make test-azure")

# Azurite's own, the same everywhere: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
START_SECONDS = 120
LISTENS = re.compile(r"successfully listens on (http://127\.0\.0\.1:\d+)")


@pytest.fixture(scope="session")
def azurite(tmp_path_factory) -> Iterator[str]:
    """A running Azurite, on a port of its own choice, that keeps everything in memory; returns its address."""
    log = tmp_path_factory.mktemp("azurite") / "log"
    command = [NODE, str(PROGRAM), "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"]
    with log.open("wb") as out:
        program = subprocess.Popen([*command, "--skipApiVersionCheck"], stdout=out, stderr=out, cwd=log.parent)
    try:
        deadline = time.monotonic() + START_SECONDS
        while (found := LISTENS.search(log.read_text())) is None:
            assert program.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        program.kill()
        program.wait()


@pytest.fixture
def container(azurite, weights, request) -> Iterator[ContainerClient]:
    """A container of this test's own, with the signed model below v1/."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    credential = {"account_name": ACCOUNT, "account_key": KEY}
    with ContainerClient(f"{azurite}/{ACCOUNT}", name, credential=credential) as client:
        client.create_container()
        for path in weights.folder.rglob("*"):
            if path.is_file():
                client.upload_blob(f"v1/{path.relative_to(weights.folder).as_posix()}", path.read_bytes())
        yield client


def place(container: ContainerClient) -> str:
    return f"az://{container.container_name}/v1"


def settings_for(azurite: str, **changes: object) -> SourceSettings:
    values = {"azure_account": ACCOUNT, "azure_endpoint": f"{azurite}/{ACCOUNT}", "azure_account_key": KEY, **changes}
    return SourceSettings(**values)


def token(container: ContainerClient, *, start: timedelta | None = None, expiry: timedelta = timedelta(hours=1)) -> str:
    now = datetime.now(UTC)
    return generate_container_sas(
        ACCOUNT,
        container.container_name,
        account_key=KEY,
        permission=BlobSasPermissions(read=True),
        start=None if start is None else now + start,
        expiry=now + expiry,
    )


@pytest.mark.parametrize("by", ["key", "token"])
def test_pulls_what_was_signed(azurite, container, weights, pulled, by):
    credentials = {} if by == "key" else {"azure_account_key": None, "azure_sas_token": token(container)}
    found = pulled(place(container), settings=settings_for(azurite, **credentials))
    assert found.fetched_bytes == found.bytes
    for path in found.path.rglob("*"):
        assert path.read_bytes() == weights.files[path.name]


def test_a_flipped_byte_is_named_and_its_mending_found(azurite, container, weights, pulled):
    content = bytearray(weights.files[SHARD])
    content[1_000_000] ^= 1
    container.upload_blob(f"v1/{SHARD}", bytes(content), overwrite=True)
    with pytest.raises(DigestMismatchError, match=SHARD):
        pulled(place(container), settings=settings_for(azurite))
    container.upload_blob(f"v1/{SHARD}", weights.files[SHARD], overwrite=True)
    assert pulled(place(container), settings=settings_for(azurite)).bytes


def test_streams_are_pinned_to_the_etag(azurite, container):
    with open_source(place(container), settings=settings_for(azurite)) as source:
        version = source.stat("config.json")
        whole = b"".join(source.stream("config.json", version=version))
        assert len(whole) == version.size
        assert b"".join(source.stream("config.json", version=version, offset=5)) == whole[5:]
        container.upload_blob("v1/config.json", b"x" * version.size, overwrite=True)
        with pytest.raises(SourceChangedError):
            list(source.stream("config.json", version=version))


def test_large_blobs_come_whole_over_range_after_range(azurite, container):
    content = bytes(range(256)) * (9 * 1024 * 1024 // 256)
    container.upload_blob("v1/large", content)
    with open_source(place(container), settings=settings_for(azurite)) as source:
        version = source.stat("large")
        assert b"".join(source.stream("large", version=version)) == content


def test_a_cut_and_a_busy_answer_are_gone_over_and_nothing_is_fetched_twice(azurite, container, weights, pulled):
    with proxied(azurite) as proxy:
        faults = {1: Cut(100_000), 2: Refuse(503, "ServerBusy")}
        proxy.fault = lambda request: (
            faults.get(request.number) if (request.method, request.name) == ("GET", SHARD) else None
        )
        found = pulled(place(container), settings=settings_for(proxy.endpoint))
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    assert proxy.starts(SHARD) == [0, 0, 0]


def test_what_is_missing_or_too_long_has_a_type(azurite, container):
    with open_source(place(container), settings=settings_for(azurite)) as source:
        with pytest.raises(MissingFileError, match="other"):
            source.stat("other.json")
        with pytest.raises(MissingFileError, match="other"):
            source.read_small("other.json", limit=10)
        with pytest.raises(ForbiddenContentError, match="10 bytes"):
            source.read_small("config.json", limit=10)
        container.upload_blob("v1/empty", b"")
        assert source.read_small("empty", limit=10) == b""
        assert read_bundle(source)
    with open_source(f"az://{container.container_name}/v2", settings=settings_for(azurite)) as source:
        assert read_bundle(source) is None
    with (
        open_source("az://no-such-container/x", settings=settings_for(azurite)) as source,
        pytest.raises(MissingFileError, match="container"),
    ):
        source.stat("config.json")


def test_refusals_say_what_is_wrong_with_the_credentials(azurite, container):
    good = token(container)
    other = token(container, expiry=timedelta(hours=2))
    cases = {
        "expired": token(container, expiry=timedelta(hours=-1)),
        "counts only later": token(container, start=timedelta(minutes=30)),
        "may read this container": good.partition("sig=")[0] + "sig=" + other.partition("sig=")[2],
    }
    for says, wrong in cases.items():
        with (
            open_source(place(container), settings=settings_for(azurite, azure_sas_token=wrong)) as source,
            pytest.raises(AccessDeniedError, match=says),
        ):
            read_bundle(source)
    with (
        open_source(place(container), settings=settings_for(azurite, azure_account_key="AAAA" + KEY[4:])) as source,
        pytest.raises(AccessDeniedError, match="may read this container"),
    ):
        read_bundle(source)


def test_a_pull_of_as_many_files_at_a_time_as_may_be_stays_below_its_bound_of_memory(azurite, container, tmp_path):
    made = larger_than_lanes(tmp_path / "large", files=64)
    digest = made.sign().manifest.digest
    for path in made.folder.iterdir():
        if path.is_file():
            with path.open("rb") as content:
                container.upload_blob(f"large/{path.name}", content)
    shutil.rmtree(made.folder)
    place = f"az://{container.container_name}/large"
    peak = peak_of_pull(place, digest=digest, settings=settings_for(azurite), limits={"parallel_files": 64})
    assert peak <= MOST_MIB
