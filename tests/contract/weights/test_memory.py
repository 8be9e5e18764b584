"""What a pull takes of memory, in a process of its own: bounded, however many files it reads and how large they are.

Azurite's counterpart stands among its own tests.
"""

import shutil
from pathlib import Path

import pytest

from tests.contract.weights.conftest import settings_for
from tests.contract.weights.hub import COMMIT, hub
from tests.contract.weights.measured_pull import MOST_MIB, larger_than_lanes, peak_of_pull

__all__ = ["hub"]

AS_MANY_AS_MAY_BE = {"parallel_files": 64, "ranges_ahead": 16}


@pytest.fixture
def large(tmp_path):
    made = larger_than_lanes(tmp_path / "large", files=64)
    made.digest = made.sign().manifest.digest
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_a_pull_from_s3(large, object_store):
    client = object_store.client()
    for path in files_of(large.folder):
        client.upload_file(str(path), object_store.bucket, f"large/{path.name}")
    peak = peak_of_pull(
        object_store.uri("large"),
        digest=large.digest,
        settings=settings_for(object_store),
        limits=AS_MANY_AS_MAY_BE,
    )
    assert peak <= MOST_MIB


def test_a_pull_from_a_hub(large, hub):
    hub.files = {path.name: path.read_bytes() for path in files_of(large.folder)}
    peak = peak_of_pull(
        hub.uri, revision=COMMIT, digest=large.digest, settings=hub.settings(), limits=AS_MANY_AS_MAY_BE
    )
    assert peak <= MOST_MIB
