"""Old verified copies make room for new ones: the least recently used first, and never one in use."""

import os
import subprocess
import sys
import threading
import time

import pytest

from gptoss_weights.errors import NoSpaceError
from gptoss_weights.limits import PullLimits
from gptoss_weights.location import Location
from gptoss_weights.storage import PrivateCopy
from tests.contract.weights.faults import from_folder
from tests.unit.weights.builders import model

SIZE = 1_000_000


@pytest.fixture
def house(tmp_path, pulled):
    """Several small models and one private folder: `house(name)` pulls the model of that name."""

    class House:
        private = tmp_path / "private"

        def __init__(self):
            self.folders = {}
            self.digests = {}

        def make(self, *names):
            for name in names:
                made = model(tmp_path / name, shards=1, shard_bytes=SIZE, **{"extra.txt": name.encode()})
                self.folders[name] = made.folder
                self.digests[name] = made.sign().manifest.digest

        def copy(self, name):
            place = Location.parse(f"file://{self.folders[name]}")
            return PrivateCopy.of(self.private, manifest_digest=self.digests[name], location=place)

        def there(self):
            return {name for name in self.folders if self.copy(name).ready.is_dir()}

        def used(self, name, *, seconds_ago):
            then = time.time() - seconds_ago
            os.utime(self.private / "locks" / f"{self.copy(name).name}.use", (then, then))

        def __call__(self, name, *, models=2.5, **limits):
            bound = int(models * SIZE)
            return pulled(
                f"file://{self.folders[name]}",
                digest=self.digests[name],
                limits=PullLimits(spare_bytes=0, **{"folder_max_bytes": bound, "keep_seconds": 60.0, **limits}),
            )

    return House()


def test_the_least_recently_used_copy_goes(house):
    house.make("first", "second", "third")
    house("first")
    house("second")
    house.used("first", seconds_ago=100)
    house.used("second", seconds_ago=200)
    found = house("third")
    assert house.there() == {"first", "third"}
    assert [gone.name for gone in found.evicted] == [house.copy("second").name]
    assert found.evicted[0].bytes >= SIZE
    assert not house.copy("second").manifest.exists()


def test_using_a_copy_again_makes_it_young(house):
    house.make("first", "second", "third")
    house("first")
    house("second")
    for name in ("first", "second"):
        house.used(name, seconds_ago=200)
    house("first")
    house("third")
    assert house.there() == {"first", "third"}


def test_a_copy_that_was_just_given_out_stays(house):
    house.make("first", "second", "third")
    house("first")
    house("second")
    with pytest.raises(NoSpaceError, match="GPTOSS_WEIGHTS_MAX_BYTES allows are taken by copies that are in use"):
        house("third")
    assert house.there() == {"first", "second"}


def test_a_model_larger_than_the_bound_removes_nothing(house):
    house.make("first", "second")
    house("first")
    house.used("first", seconds_ago=100)
    with pytest.raises(NoSpaceError, match="GPTOSS_WEIGHTS_MAX_BYTES allows 500000 for all copies; raise it"):
        house("second", models=0.5)
    assert house.there() == {"first"}


_HOLD = """
import sys
from pathlib import Path
from gptoss_weights.storage import PrivateCopy
PrivateCopy(Path(sys.argv[1]), sys.argv[2]).hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_copy_that_a_replica_holds_stays_until_it_ends(house):
    house.make("first", "second")
    house("first")
    command = [sys.executable, "-c", _HOLD, str(house.private), house.copy("first").name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        house.used("first", seconds_ago=100)
        with pytest.raises(NoSpaceError):
            house("second", models=1.5)
        # It may be verified and repaired meanwhile.
        assert house("first", models=1.5).fetched_bytes == 0
        house.used("first", seconds_ago=100)
        holder.kill()
    assert house("second", models=1.5).evicted
    assert house.there() == {"second"}


def test_a_copy_that_is_being_pulled_counts_with_what_it_will_be(house, served_by):
    house.make("first", "second")
    held, go_on = threading.Event(), threading.Event()

    def fault(name, offset, position, attempt):
        if name.endswith(".safetensors"):
            held.set()
            go_on.wait(30)

    served_by(from_folder(house.folders["first"], fault=fault))
    first = threading.Thread(target=house, args=("first",))
    first.start()
    assert held.wait(10)
    try:
        served_by(from_folder(house.folders["second"]))
        with pytest.raises(NoSpaceError, match="taken by copies that are in use"):
            house("second", models=1.5, keep_seconds=0.0)
    finally:
        go_on.set()
        first.join(30)
    assert house.there() == {"first"}


def test_what_a_dead_pull_left_makes_room_too(house, served_by):
    house.make("first", "second")

    def fault(name, offset, position, attempt):
        if position > 500_000:
            raise KeyboardInterrupt

    served_by(from_folder(house.folders["first"], fault=fault))
    with pytest.raises(KeyboardInterrupt):
        house("first")
    assert house.copy("first").staging.is_dir()
    served_by(from_folder(house.folders["second"]))
    assert house("second", models=1.1).evicted
    assert not house.copy("first").staging.exists()


def test_a_full_volume_makes_room_without_any_bound(house, monkeypatch):
    house.make("first", "second")
    house("first")
    house.used("first", seconds_ago=100)
    monkeypatch.setattr(
        "gptoss_weights.eviction.shutil.disk_usage",
        lambda _: type("Usage", (), {"free": 0 if house.copy("first").ready.is_dir() else 2 * SIZE}),
    )
    assert house("second", folder_max_bytes=None).evicted
    assert house.there() == {"second"}


def test_one_folder_for_many_pulls_at_once_keeps_its_bound(house):
    names = [f"model-{number}" for number in range(6)]
    house.make(*names)
    errors = []

    def pull(name):
        try:
            house(name, models=3.5, keep_seconds=0.0)
        except NoSpaceError as error:
            errors.append(error)

    threads = [threading.Thread(target=pull, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 1 <= len(house.there()) <= 3
    assert sum(house.copy(name).size() for name in names) <= 3.5 * SIZE
