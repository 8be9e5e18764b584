"""Files are fetched and hashed several at a time, and never more than were allowed."""

import threading

import pytest

from gptoss_weights import materialise
from gptoss_weights.limits import PullLimits
from tests.contract.weights.faults import from_folder
from tests.unit.weights.builders import model

SHARDS = 6
SECONDS = 60


@pytest.fixture
def sharded(tmp_path):
    made = model(tmp_path / "sharded", shards=SHARDS, shard_bytes=300_000)
    made.digest = made.sign().manifest.digest
    return made


def is_shard(name) -> bool:
    return name.endswith(".safetensors")


@pytest.mark.parametrize("allowed", [2, 3])
def test_so_many_files_are_fetched_at_a_time_as_are_allowed(sharded, pulled, served_by, allowed):
    together, workers = threading.Barrier(allowed), set()

    def fault(name, offset, position, attempt):
        if is_shard(name) and position == 0:
            workers.add(threading.get_ident())
            together.wait(SECONDS)  # none goes on before so many have begun

    served_by(from_folder(sharded.folder, fault=fault))
    found = pulled(
        f"file://{sharded.folder}", digest=sharded.digest, limits=PullLimits(parallel_files=allowed, spare_bytes=0)
    )
    assert found.fetched_bytes == found.bytes
    assert len(workers) == allowed


def test_a_copy_is_verified_again_several_files_at_a_time(sharded, pulled, monkeypatch):
    first = pulled(f"file://{sharded.folder}", digest=sharded.digest)
    together, hash_file = threading.Barrier(3), materialise.hash_file

    def met(path, **options):
        if is_shard(path.name):
            together.wait(SECONDS)
        return hash_file(path, **options)

    monkeypatch.setattr(materialise, "hash_file", met)
    again = pulled(
        f"file://{sharded.folder}", digest=sharded.digest, limits=PullLimits(parallel_files=3, spare_bytes=0)
    )
    assert (again.path, again.fetched_bytes, again.damaged) == (first.path, 0, ())
