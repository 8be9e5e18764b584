"""A cache on a volume that others may write to: it saves fetches, and no byte of it is believed."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_weights.cache import Cache, pull_through
from gptoss_weights.errors import DigestMismatchError, SourceUnavailableError, UnsignedError
from gptoss_weights.limits import PullLimits
from gptoss_weights.location import Location
from gptoss_weights.sources import SourceSettings
from gptoss_weights.sources.file import FileSource
from gptoss_weights.storage import PrivateCopy
from tests.contract.weights.conftest import SERVED, SHARD
from tests.contract.weights.faults import from_folder
from tests.unit.operator.rayservices import site, workload
from tests.unit.weights.builders import MODEL, model

SIZE = 1_000_000


class Pod:
    """The fetching container of one pod: an empty volume of its own, and the claim that all share."""

    def __init__(self, claim: Path, volume: Path, weights):
        self.claim, self.volume, self.weights = claim, volume, weights

    @property
    def cached(self) -> PrivateCopy:
        return PrivateCopy.of(
            self.claim / "gptoss-weights",
            manifest_digest=self.weights.digest,
            location=Location.parse(f"file://{self.weights.folder}"),
        )

    def __call__(self, *, max_bytes=None, limits=None):
        return pull_through(
            Cache(directory=self.claim / "gptoss-weights", max_bytes=max_bytes),
            f"file://{self.weights.folder}",
            manifest_digest=self.weights.digest,
            subject=MODEL,
            directory=self.volume / "copies",
            settings=SourceSettings(file_roots=(self.weights.folder,)),
            limits=limits or PullLimits(spare_bytes=0),
            readable=True,
        )


@pytest.fixture
def claim(tmp_path):
    folder = tmp_path / "claim"
    folder.mkdir()
    return folder


@pytest.fixture
def new_pod(tmp_path, claim, weights):
    """Another pod with the same claim: `new_pod()`."""
    volumes = iter(range(100))

    def make(of=None):
        volume = tmp_path / f"volume-{next(volumes)}"
        volume.mkdir()
        return Pod(claim, volume, of or weights)

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def signed(weights) -> dict[str, bytes]:
    return {name: weights.files[name] for name in SERVED}


def test_the_second_pod_fetches_nothing_and_neither_opens_the_cache(weights, new_pod, served_by, claim):
    source = served_by(from_folder(weights.folder))
    first = new_pod()()
    assert sum(source.sent.values()) == first.copy.fetched_bytes == first.copy.bytes
    source = served_by(from_folder(weights.folder))
    second = new_pod()()
    assert (source.asked, second.copy.fetched_bytes) == (set(), 0)
    for found in (first, second):
        assert (found.problem, found.damaged, found.evicted) == (None, (), ())
        assert contents(found.copy.path) == signed(weights)
        assert not found.copy.path.is_relative_to(claim)
        assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in found.copy.path.rglob("*"))
        assert json.loads(found.copy.receipt.read_text())["fromCache"] is True


def test_a_cache_with_everything_in_it_needs_no_source(weights, new_pod):
    new_pod()()
    shutil.move(weights.folder, weights.folder.with_name("away"))
    assert contents(new_pod()().copy.path) == signed(weights)


def poison(cached: PrivateCopy, how: str, elsewhere: Path) -> None:
    cached.ready.chmod(0o755)
    shard = cached.ready / SHARD
    raw = shard.read_bytes()
    match how:
        case "a flipped byte":
            shard.chmod(0o600)
            shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
            return
        case "half a file":
            shard.chmod(0o600)
            os.truncate(shard, 10)
            return
        case "larger than any file may be":
            shard.chmod(0o600)
            os.truncate(shard, 300 * 1024**3)
            return
        case "another manifest":
            cached.manifest.write_bytes(b"{}")
            return
        case "no manifest":
            cached.manifest.unlink()
            return
        case "a pipe for a manifest":
            cached.manifest.unlink()
            os.mkfifo(cached.manifest)
            return
        case "a link for the copy":
            cached.ready.rename(elsewhere)
            (elsewhere / "somebody-elses.db").write_text("kept")
            (elsewhere / SHARD).unlink()
            cached.ready.symlink_to(elsewhere)
            return
        case "words for a lock":
            cached._lock.write_bytes(b"\xff" * 100)
            shard.unlink()
            return
    shard.unlink()
    match how:
        case "a link out of the copy":
            elsewhere.write_bytes(raw[:-1] + b"!")
            shard.symlink_to(elsewhere)
        case "a folder":
            shard.mkdir()
        case "a pipe":
            os.mkfifo(shard)


@pytest.mark.parametrize(
    "how",
    [
        "a flipped byte",
        "half a file",
        "larger than any file may be",
        "nothing",
        "a link out of the copy",
        "a folder",
        "a pipe",
        "another manifest",
        "no manifest",
        "a pipe for a manifest",
        "a link for the copy",
        "words for a lock",
    ],
)
def test_a_poisoned_cache_is_found_mended_and_told(weights, new_pod, tmp_path, how):
    before = new_pod()
    before()
    elsewhere = tmp_path / "elsewhere"
    poison(before.cached, how, elsewhere)
    kept = contents(elsewhere) if elsewhere.is_dir() else None
    found = new_pod()()
    assert contents(found.copy.path) == signed(weights)
    assert found.problem is None
    if "manifest" not in how and "for the copy" not in how:
        assert found.damaged == (SHARD,)
        # The other files are good, and not fetched again.
        assert found.copy.fetched_bytes == len(weights.files[SHARD])
    assert contents(before.cached.ready) == signed(weights)
    assert kept is None or contents(elsewhere) == kept, "what a link led to was touched"
    assert new_pod()().copy.fetched_bytes == 0


PLANTABLE = {
    "the manifest being written": lambda copy: copy.manifest.with_name(f"{copy.manifest.name}.partial"),
    "the receipt being written": lambda copy: copy.receipt.with_name(f"{copy.receipt.name}.partial"),
    "the receipt": lambda copy: copy.receipt,
    "the copy's lock": lambda copy: copy._lock,
    "the time of its last use": lambda copy: copy._use,
    "the lock of who makes room": lambda copy: copy._lock.with_name("room.lock"),
}


def plant(path: Path, what: str, elsewhere: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    match what:
        case "a pipe":
            os.mkfifo(path)
        case "a link to a file":
            elsewhere.write_text("kept")
            os.utime(elsewhere, (1, 1))
            path.symlink_to(elsewhere)
        case "a link to nothing":
            path.symlink_to(elsewhere)
        case "a folder":
            path.mkdir()


def ends(pod: Pod, *, pipe: Path):
    """Pull, and fail instead of waiting for good where that opens a pipe."""
    found = []
    thread = threading.Thread(target=lambda: found.append(pod()), daemon=True)
    thread.start()
    thread.join(30)
    if thread.is_alive():
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    assert not thread.is_alive(), f"the pull waits for {pipe}"
    return found[0]


@pytest.mark.parametrize("there_already", [False, True])
@pytest.mark.parametrize("what", ["a pipe", "a link to a file", "a link to nothing", "a folder"])
@pytest.mark.parametrize("place", PLANTABLE)
def test_what_is_planted_where_the_cache_is_written_is_neither_waited_for_nor_followed(
    weights, new_pod, tmp_path, place, what, there_already
):
    pod = new_pod()
    if there_already:
        pod()
        # Something to mend, so that manifest and receipt are written again.
        (pod.cached.ready / "config.json").chmod(0o600)
        (pod.cached.ready / "config.json").write_text("{}")
        pod = new_pod()
    planted, elsewhere = PLANTABLE[place](pod.cached), tmp_path / "elsewhere"
    plant(planted, what, elsewhere)
    found = ends(pod, pipe=planted)
    assert contents(found.copy.path) == signed(weights)
    if what == "a link to a file":
        assert (elsewhere.read_text(), elsewhere.stat().st_mtime) == ("kept", 1)
    assert what != "a link to nothing" or not elsewhere.exists()
    written = place.endswith(("written", "receipt")) and what != "a folder"
    assert written == (found.problem is None)
    assert written or found.problem.startswith("StorageFailed: ")
    if what == "a folder" and place != "the receipt":
        assert f"{planted.parent.name}/{planted.name}" in found.problem, "what is to be deleted"


@pytest.mark.parametrize("folder", ["ready", "staging"])
@pytest.mark.parametrize("what", ["a pipe", "a link to a file", "a link to nothing"])
def test_what_is_planted_in_the_place_of_a_copy_goes(weights, new_pod, tmp_path, folder, what):
    pod = new_pod()
    planted = getattr(pod.cached, folder)
    plant(planted, what, tmp_path / "elsewhere")
    found = ends(pod, pipe=planted)
    assert (found.problem, contents(found.copy.path)) == (None, signed(weights))
    assert new_pod()().copy.fetched_bytes == 0


@pytest.mark.parametrize("folder", ["ready", "staging"])
def test_a_link_in_the_place_of_another_copy_is_removed_and_what_it_leads_to_left_alone(
    new_pod, others, tmp_path, folder
):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "inner").mkdir(parents=True)
    (elsewhere / "inner" / "large").write_bytes(bytes(2 * SIZE))
    for each in (elsewhere / "inner", elsewhere):
        each.chmod(0o555)
    pod = new_pod(others("first"))
    planted = pod.claim / "gptoss-weights" / folder / "planted"
    plant(planted, "a pipe", tmp_path)
    planted.unlink()
    planted.symlink_to(elsewhere)
    found = pod(max_bytes=int(2.5 * SIZE))
    assert found.problem is None, "what a link leads to takes no room here"
    used(pod, seconds_ago=100)
    second = new_pod(others("second"))(max_bytes=int(1.5 * SIZE))
    assert [each.stat().st_mode & 0o777 for each in (elsewhere, elsewhere / "inner")] == [0o555, 0o555]
    assert (elsewhere / "inner" / "large").stat().st_size == 2 * SIZE
    assert "planted" in second.evicted
    assert not planted.is_symlink()


def test_what_changes_whenever_it_is_read_is_left_aside(weights, new_pod, monkeypatch):
    new_pod()()

    class Changing(FileSource):
        def stream(self, name, *, version, offset=0):
            for chunk in super().stream(name, version=version, offset=offset):
                yield bytes(len(chunk))

    monkeypatch.setattr("gptoss_weights.materialise.FileSource", Changing)
    found = new_pod()()
    assert contents(found.copy.path) == signed(weights)
    assert found.problem is not None
    assert "changed while it was read" in found.problem
    assert found.copy.fetched_bytes == found.copy.bytes


def test_an_untrusted_source_is_no_better_through_a_cache(weights, new_pod):
    pod = new_pod()
    shard = weights.folder / SHARD
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(DigestMismatchError, match=SHARD):
        pod()
    (weights.folder / "model.sig").unlink()
    with pytest.raises(UnsignedError):
        pod()
    assert list((pod.claim / "gptoss-weights" / "ready").iterdir()) == []


def test_a_source_that_fails_is_the_sources_fault(weights, new_pod, served_by):
    def fault(*_):
        raise SourceUnavailableError("the connection broke")

    served_by(from_folder(weights.folder, fault=fault))
    with pytest.raises(SourceUnavailableError):
        new_pod()()


@pytest.mark.parametrize("trouble", ["too small", "a file", "a link", "a link inside", "somebody else's"])
def test_a_cache_that_can_not_be_used_is_told_and_done_without(weights, new_pod, claim, tmp_path, monkeypatch, trouble):
    folder, most = claim / "gptoss-weights", None
    match trouble:
        case "too small":
            most = 1000
        case "a file":
            folder.write_text("")
        case "a link":
            folder.symlink_to(tmp_path)
        case "a link inside":
            folder.mkdir()
            (folder / "ready").symlink_to(tmp_path)
        case "somebody else's":
            folder.mkdir()
            monkeypatch.setattr("gptoss_weights.storage.os.geteuid", lambda: folder.stat().st_uid + 1)
            monkeypatch.setattr("gptoss_weights.cache.pull", _whoever_owns(monkeypatch, owner=folder.stat().st_uid))
    found = new_pod()(max_bytes=most)
    assert contents(found.copy.path) == signed(weights)
    assert found.problem is not None
    assert found.problem.startswith("NoSpace: " if trouble == "too small" else "StorageFailed: ")
    assert found.copy.fetched_bytes == found.copy.bytes
    assert json.loads(found.copy.receipt.read_text())["fromCache"] is False


def _whoever_owns(monkeypatch, *, owner):
    from gptoss_weights.materialise import pull

    def at_home(*arguments, **named):
        monkeypatch.setattr("gptoss_weights.storage.os.geteuid", lambda: owner)
        return pull(*arguments, **named)

    return at_home


def test_what_a_pods_group_was_given_is_taken_back(weights, new_pod, claim):
    new_pod()()
    folder = claim / "gptoss-weights"
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o2770 if path.is_dir() else 0o660)
    found = new_pod()()
    assert (found.problem, found.copy.fetched_bytes) == (None, 0)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_lock_that_nobody_lets_go_of_is_waited_for_in_vain_but_not_for_ever(weights, new_pod, monkeypatch):
    monkeypatch.setattr("gptoss_weights.cache._PATIENCE_SECONDS", 0.2)
    for there_already in (False, True):
        pod = new_pod()
        if there_already:
            pod()
            pod = new_pod()
        pod.cached._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(pod.cached._lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            found = pod()
        finally:
            os.close(descriptor)
        assert contents(found.copy.path) == signed(weights)
        assert found.problem is not None
        assert "another process" in found.problem


def test_who_fills_the_cache_is_waited_for_as_long_as_it_grows(weights, new_pod, served_by, monkeypatch):
    """The first brings one chunk whenever the second has lost patience once more."""
    monkeypatch.setattr("gptoss_weights.cache._PATIENCE_SECONDS", 0.05)
    # Below, the two are told apart by their threads.
    monkeypatch.setattr("gptoss_weights.cache.within", lambda step, **_: step())
    step, waiting = threading.Semaphore(0), threading.Event()
    real = PrivateCopy.size

    def size(copy):
        if threading.current_thread().name == "second":
            waiting.set()
            # What the second sees is more than the last time, by construction.
            step.release()
            seen.append(len(seen))
            return len(seen)
        return real(copy)

    seen: list[int] = []
    monkeypatch.setattr(PrivateCopy, "size", size)
    source = served_by(from_folder(weights.folder, chunk=512 * 1024))
    source.fault = lambda name, *_: None if not name.endswith(".safetensors") or step.acquire(timeout=30) else 0
    found = {}
    pods = {name: new_pod() for name in ("first", "second")}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: pods[name]()}), name=name, daemon=True)
        for name in pods
    ]
    threads[0].start()
    while SHARD not in source.opened:
        assert threads[0].is_alive()
        time.sleep(0.01)
    threads[1].start()
    assert waiting.wait(30)
    for thread in threads:
        thread.join(60)
    assert len(seen) > 2, "the second waited once only"
    assert found["second"].problem is None
    assert sorted(each.copy.fetched_bytes for each in found.values()) == [0, found["first"].copy.bytes]
    assert contents(found["second"].copy.path) == signed(weights)


@pytest.fixture
def others(tmp_path):
    """Small models of one shard: `others(name)`."""

    def make(name):
        made = model(tmp_path / name, shards=1, shard_bytes=SIZE, **{"extra.txt": name.encode()})
        made.digest = made.sign().manifest.digest
        return made

    return make


def used(pod: Pod, *, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(pod.cached._use, (then, then))


def test_the_least_recently_used_weights_make_room(new_pod, others):
    first, second, third = (new_pod(others(name)) for name in ("first", "second", "third"))
    first()
    second()
    used(first, seconds_ago=100)
    used(second, seconds_ago=200)
    found = third(max_bytes=int(2.5 * SIZE))
    assert found.evicted == (second.cached.name,)
    assert first.cached.ready.is_dir()
    assert not second.cached.ready.exists()
    # The engine's copy of what went is its own.
    assert (second.volume / "copies" / "ready" / second.cached.name / "config.json").exists()


def test_what_a_pod_reads_from_the_cache_is_not_removed_under_it(new_pod, others, monkeypatch):
    first, second = new_pod(others("first")), new_pod(others("second"))
    first()
    removed, refused = [], []

    class Watched(FileSource):
        def stat(self, name):
            if self._folder == first.cached.ready and name == "config.json":
                removed.append(first.cached.remove_unless_used())
                used(first, seconds_ago=100)
                refused.append(second(max_bytes=int(1.5 * SIZE)).problem)
            return super().stat(name)

    monkeypatch.setattr("gptoss_weights.materialise.FileSource", Watched)
    again = new_pod(first.weights)()
    assert removed == [False]
    assert refused[0].startswith("NoSpace: ")
    assert "spec.cache.maxBytes" in refused[0]
    assert (again.problem, again.copy.fetched_bytes) == (None, 0)


def test_words_in_a_lock_are_no_number_of_bytes(new_pod, others):
    first, second = new_pod(others("first")), new_pod(others("second"))
    first()
    for words in (b"\xff" * 10, b"9" * 10_000, b""):
        with first.cached.locked(exclusive=True, timeout_seconds=1):
            first.cached._lock.write_bytes(words)
            assert first.cached.reserved() == 0
            assert second().problem is None


class Container:
    """The fetching container as it is rendered, with folders for its volumes and a folder for its source."""

    def __init__(self, claim: Path, volume: Path, weights, *, max_bytes: str):
        from gptoss_operator.plan.rayservice.render import render

        made = workload(subject=MODEL, manifest_digest=weights.digest, cache_claim="claim", cache_max_bytes=max_bytes)
        cluster = render(made, site()).rayservice["spec"]["rayClusterConfig"]
        (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
        there = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        here = {
            there["claim"]: str(claim),
            there["weights"]: str(volume),
            "/dev/termination-log": str(volume / "termination-log"),
            "s3://models/gpt-oss-120b": f"file://{weights.folder}",
        }
        self._log = volume / "termination-log"
        self._command = [_moved(word, here) for word in container["command"]]
        self._environment = {**os.environ, "GPTOSS_WEIGHTS_FILE_ROOTS": str(weights.folder)}

    def start(self) -> subprocess.Popen[str]:
        assert self._command[0] == "gptoss"
        command = [sys.executable, "-c", "from gptoss_cli.main import main; main()", *self._command[1:]]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ended(self, process: subprocess.Popen[str]) -> dict[str, object]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert self._log.stat().st_size < 4096
        return {"log": errors, **json.loads(self._log.read_text())["receipt"]}

    def run(self) -> dict[str, object]:
        return self.ended(self.start())

    def told(self) -> tuple[str, str] | None:
        """Return what the operator makes of what the container left."""
        from gptoss_operator.substrates.kuberay.pods import cache_flaw_of

        ended = {"exitCode": 0, "message": self._log.read_text()}
        status = {"initContainerStatuses": [{"name": "weights", "state": {"terminated": ended}}]}
        return cache_flaw_of([{"metadata": {"name": "worker"}, "status": status}])


def _moved(word: str, places: dict[str, str]) -> str:
    for there, here in places.items():
        if word == there or word.startswith(there + "/"):
            return here + word[len(there) :]
    return word


@pytest.fixture
def container(tmp_path, claim):
    """A pod's fetching container: `container(weights)`."""
    volumes = iter(range(100))

    def make(of, max_bytes="20Mi"):
        volume = tmp_path / f"pod-{next(volumes)}"
        volume.mkdir()
        return Container(claim, volume, of, max_bytes=max_bytes)

    return make


def test_the_rendered_command_shares_a_claim_with_other_pods(weights, others, container, claim):
    both = [container(weights), container(weights)]
    started = [each.start() for each in both]
    found = [each.ended(process) for each, process in zip(both, started, strict=True)]
    assert sorted(each["fetchedBytes"] for each in found) == [0, found[0]["bytes"]], "two pulls at once fetch once"
    assert all(each["cacheUsed"] and not each["cacheReplaced"] for each in found)
    assert [each.told() for each in both] == [None, None]

    (cached,) = (claim / "gptoss-weights" / "ready").iterdir()
    shard = cached / SHARD
    shard.chmod(0o600)
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    cached.chmod(0o700)
    for number in range(50):
        (cached / f"{number:0200}\x1b.json").write_text("{}")
    mending = container(weights)
    mended = mending.run()
    assert (mended["cacheUsed"], mended["cacheReplaced"], len(mended["cacheReplacedFiles"])) == (True, 51, 5)
    assert mended["fetchedBytes"] == len(weights.files[SHARD])
    assert "51 files of the verified copy" in mended["log"]
    reason, message = mending.told()
    assert reason == "CacheDamaged"
    assert message.startswith("51 files on the claim of spec.cache")
    assert contents(Path(mended["path"])) == signed(weights)

    (use,) = (claim / "gptoss-weights" / "locks").glob("*.use")
    os.utime(use, (1, 1))
    other = container(others("other"), max_bytes="2Mi").run()
    assert other["cacheRemovedCopies"] == [cached.name]
    assert not cached.exists()
