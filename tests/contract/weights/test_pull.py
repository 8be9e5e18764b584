"""Pulls: what arrives is what was signed, whatever goes wrong on the way."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss_weights.errors import (
    BusyError,
    DigestMismatchError,
    ForbiddenContentError,
    ManifestChangedError,
    MissingFileError,
    NoSpaceError,
    SourceChangedError,
    SourceNotAllowedError,
    SourceUnavailableError,
    StalledTransferError,
    StorageError,
    SubjectMismatchError,
    UnsignedError,
)
from gptoss_weights.limits import PullLimits
from gptoss_weights.materialise import PullProgress, pull
from gptoss_weights.sources import SourceSettings
from tests.contract.weights.faults import breaks, from_folder
from tests.unit.weights.builders import MODEL, Model, model

SHARD = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
SERVED = {"config.json", "tokenizer.json", "model.safetensors.index.json", SHARD, SECOND}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip(path: Path, position: int = -1) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    path.chmod(mode)


def test_another_user_may_read_a_copy_only_where_that_was_asked_for(weights, tmp_path):
    others = {}
    for readable in (False, True):
        found = pull(
            f"file://{weights.folder}",
            manifest_digest=weights.digest,
            subject=MODEL,
            directory=tmp_path / f"private-{readable}",
            settings=SourceSettings(file_roots=(tmp_path,)),
            limits=PullLimits(spare_bytes=0),
            readable=readable,
        )
        way = [found.path, *list(found.path.parents)[:2]]
        others[readable] = [stat.S_IMODE(folder.stat().st_mode) & 0o027 for folder in way]
    assert others == {False: [0o005, 0, 0], True: [0o005, 0o005, 0o005]}


def test_gives_out_exactly_the_served_files_read_only(weights, pulled):
    (weights.folder / "unsigned.json").write_text("{}")
    found = pulled()
    assert contents(found.path) == {name: weights.files[name] for name in SERVED}
    assert found.bytes == found.fetched_bytes == sum(len(weights.files[name]) for name in SERVED)
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o444 for p in found.path.rglob("*"))
    assert stat.S_IMODE(found.path.stat().st_mode) == 0o555


def test_asks_a_source_for_listed_and_served_files_only(weights, pulled, served_by):
    source = served_by(from_folder(weights.folder))
    source.files["unsigned.json"] = b"{}"
    found = pulled()
    assert source.asked == SERVED | {"model.sig"}
    assert {name: len(starts) for name, starts in source.opened.items()} == dict.fromkeys(SERVED, 1)
    assert sum(source.sent.values()) == found.bytes


def test_a_second_pull_asks_the_source_for_nothing(weights, pulled, served_by):
    first = pulled()
    source = served_by(from_folder(weights.folder))
    again = pulled()
    assert (again.path, again.fetched_bytes, source.asked) == (first.path, 0, set())


def test_a_flipped_byte_at_the_source_is_named_and_its_mending_found(weights, pulled):
    for position in (0, 100, -1):
        flip(weights.folder / SECOND, position)
        with pytest.raises(DigestMismatchError, match=SECOND) as caught:
            pulled()
        assert caught.value.file == SECOND
        flip(weights.folder / SECOND, position)
    found = pulled()
    # The other shard was good all along and is not fetched again.
    assert found.fetched_bytes < found.bytes
    assert contents(found.path)[SECOND] == weights.files[SECOND]


def test_nothing_is_given_out_after_a_failure(weights, pulled, tmp_path):
    flip(weights.folder / SHARD)
    with pytest.raises(DigestMismatchError):
        pulled()
    assert list((tmp_path / "private" / "ready").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "extra", "missing", "link", "folder"])
def test_a_damaged_private_copy_is_repaired_from_the_source(weights, pulled, damage):
    path = pulled().path
    path.chmod(0o755)
    target = path / SHARD
    match damage:
        case "flip":
            flip(target)
        case "truncate":
            target.chmod(0o600)
            os.truncate(target, 10)
        case "extra":
            (path / "planted.json").write_text("{}")
        case "missing":
            target.unlink()
        case "link":
            target.unlink()
            target.symlink_to(weights.folder / SHARD)
        case "folder":
            target.unlink()
            target.mkdir()
    again = pulled()
    assert again.damaged == (("planted.json",) if damage == "extra" else (SHARD,))
    assert json.loads(again.receipt.read_text())["replacedFiles"] == list(again.damaged)
    assert contents(again.path) == {name: weights.files[name] for name in SERVED}
    assert not (again.path / SHARD).is_symlink()
    assert again.fetched_bytes == (0 if damage == "extra" else len(weights.files[SHARD]))


def test_places_do_not_share_copies(weights, pulled, tmp_path):
    pulled()
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", weights.folder, other], check=True)
    flip(other / SHARD)
    with pytest.raises(DigestMismatchError):
        pulled(f"file://{other}")


def test_pins_hold(weights, pulled):
    with pytest.raises(ManifestChangedError):
        pulled(digest="sha256:" + "0" * 64)
    with pytest.raises(SubjectMismatchError):
        pulled(subject="gpt-oss-120b")
    (weights.folder / "model.sig").unlink()
    with pytest.raises(UnsignedError):
        pulled()


def test_pins_hold_for_a_copy_that_is_there(weights, pulled, tmp_path):
    pulled()
    with pytest.raises(SubjectMismatchError):
        pulled(subject="gpt-oss-120b")
    (manifest,) = (tmp_path / "private" / "manifests").iterdir()
    manifest.write_bytes(b"{}")
    assert pulled().fetched_bytes == 0
    assert manifest.read_bytes() != b"{}"


def test_a_listed_file_that_is_missing_is_named_at_once(weights, pulled):
    (weights.folder / SECOND).unlink()
    begun = time.monotonic()
    with pytest.raises(MissingFileError, match=SECOND):
        pulled()
    assert time.monotonic() - begun < 20


def test_code_in_a_signed_config_is_refused_before_tensors_are_fetched(weights, pulled, served_by, monkeypatch):
    monkeypatch.setattr("gptoss_weights.sign.check_folder", lambda *_: None)
    (weights.folder / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    digest = weights.sign().manifest.digest
    source = served_by(from_folder(weights.folder))
    with pytest.raises(ForbiddenContentError, match="auto_map"):
        pulled(digest=digest)
    assert SHARD not in source.opened


def test_signed_tensors_that_can_not_be_parsed_safely_are_refused(weights, pulled, monkeypatch):
    monkeypatch.setattr("gptoss_weights.sign.check_folder", lambda *_: None)
    (weights.folder / SHARD).write_bytes(b"\xff" * 100)
    digest = weights.sign().manifest.digest
    with pytest.raises(ForbiddenContentError, match=SHARD):
        pulled(digest=digest)


def test_broken_and_short_streams_go_on_where_they_broke(weights, pulled, served_by):
    def fault(name, offset, position, attempt):
        if name == SHARD and attempt < 4 and position > offset:
            if attempt == 2:
                return 1000
            raise breaks()
        return None

    source = served_by(from_folder(weights.folder, fault=fault))
    found = pulled()
    assert contents(found.path)[SHARD] == weights.files[SHARD]
    assert source.opened[SHARD] == [0, 65536, 65536 * 2 + 1000, 65536 * 3 + 1000]
    assert found.fetched_bytes == found.bytes


def test_a_source_that_never_answers_is_given_up_on(weights, pulled, served_by):
    def fault(name, offset, position, attempt):
        if name == SHARD:
            raise breaks()

    source = served_by(from_folder(weights.folder, fault=fault))
    with pytest.raises(SourceUnavailableError) as caught:
        pulled()
    assert caught.value.retryable
    assert len(source.opened[SHARD]) == SourceSettings().max_attempts


def test_a_file_that_is_replaced_during_the_pull_is_noticed(weights, pulled, served_by):
    def fault(name, offset, position, attempt):
        if name == SHARD and position > 0 and attempt == 1:
            source.revision = 2
            raise breaks()

    source = served_by(from_folder(weights.folder, fault=fault))
    with pytest.raises(SourceChangedError, match="replaced") as caught:
        pulled()
    assert caught.value.retryable


def test_a_file_that_grows_during_the_pull_is_noticed(weights, pulled, served_by):
    source = served_by(from_folder(weights.folder))
    honest = source.stream

    def longer(name, *, version, offset=0):
        yield b"".join(honest(name, version=version, offset=offset)) + b"more"

    source.stream = longer
    with pytest.raises(SourceChangedError):
        pulled()


def test_a_full_volume_is_typed_and_the_pull_goes_on_later(weights, pulled, monkeypatch):
    from gptoss_weights import transfer

    written = 0
    write = transfer._write_all

    def fills_up(descriptor, chunk):
        nonlocal written
        written += len(chunk)
        if written > 2_000_000:
            raise OSError(28, "No space left on device")
        write(descriptor, chunk)

    monkeypatch.setattr(transfer, "_write_all", fills_up)
    with pytest.raises(NoSpaceError) as caught:
        pulled()
    assert caught.value.retryable
    monkeypatch.setattr(transfer, "_write_all", write)
    found = pulled()
    assert found.fetched_bytes < found.bytes
    assert contents(found.path)[SHARD] == weights.files[SHARD]


def test_space_is_checked_before_bytes(weights, pulled, served_by):
    source = served_by(from_folder(weights.folder))
    with pytest.raises(NoSpaceError, match="larger volume"):
        pulled(limits=PullLimits(spare_bytes=2**60))
    assert source.opened == {}
    with pytest.raises(ForbiddenContentError, match="1000 bytes"):
        pulled(limits=PullLimits(max_bytes=1000))
    assert source.opened == {}


def test_a_file_too_large_for_its_kind_is_refused_before_bytes(weights, pulled, served_by, monkeypatch):
    monkeypatch.setattr("gptoss_weights.content.MAX_JSON_BYTES", 10)
    source = served_by(from_folder(weights.folder))
    with pytest.raises(ForbiddenContentError, match="a file of its kind"):
        pulled()
    assert source.opened == {}


def test_shards_that_contradict_their_signed_index_are_refused(weights, pulled, tmp_path, monkeypatch):
    monkeypatch.setattr("gptoss_weights.sign.check_folder", lambda *_: None)
    (weights.folder / SECOND).write_bytes((weights.folder / SHARD).read_bytes())
    digest = weights.sign().manifest.digest
    with pytest.raises(ForbiddenContentError, match=r"not there"):
        pulled(digest=digest)
    assert list((tmp_path / "private" / "ready").iterdir()) == []


def test_a_source_that_sends_nothing_is_stalled(weights, pulled, served_by):
    released = threading.Event()

    def fault(name, offset, position, attempt):
        if name == SHARD and position > 0:
            released.wait(10)

    served_by(from_folder(weights.folder, fault=fault))
    threading.Timer(1.0, released.set).start()
    begun = time.monotonic()
    with pytest.raises(StalledTransferError, match=SHARD):
        pulled(limits=PullLimits(spare_bytes=0, stall_seconds=0.3))
    assert time.monotonic() - begun < 20


_KILLED = """
import os, signal, sys
from pathlib import Path
from gptoss_weights import transfer
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings
from gptoss_weights.sources.file import FileSource
FileSource.clone = lambda *_, **__: False
folder, private, digest, subject, limit = sys.argv[1:]
written, write = 0, transfer._write_all
def dies(descriptor, chunk):
    global written
    write(descriptor, chunk)
    written += len(chunk)
    if written > int(limit):
        os.kill(os.getpid(), signal.SIGKILL)
transfer._write_all = dies
pull(f"file://{folder}", manifest_digest=digest, subject=subject, directory=Path(private),
     settings=SourceSettings(file_roots=(Path(folder),)))
"""


def kill_a_pull(weights, private, limit):
    command = [sys.executable, "-c", _KILLED, weights.folder, private, weights.digest, MODEL, str(limit)]
    ended = subprocess.run([str(part) for part in command], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("limit", [1000, 1_500_000, 4_000_000])
def test_a_killed_pull_is_resumed(weights, pulled, tmp_path, limit):
    kill_a_pull(weights, tmp_path / "private", limit)
    assert list((tmp_path / "private" / "ready").iterdir()) == []
    found = pulled()
    assert contents(found.path) == {name: weights.files[name] for name in SERVED}
    assert found.fetched_bytes <= found.bytes - limit + 1024 * 1024


def test_a_copy_that_nobody_checked_is_checked_though_its_bytes_are_the_signed_ones(weights, pulled, monkeypatch):
    """Somebody signed a model that loads code, and put a copy where a pull would have refused it."""
    config = weights.folder / "config.json"
    config.write_text('{"architectures": ["GptOssForCausalLM"], "auto_map": {"AutoModel": "x.py"}}')
    with monkeypatch.context() as unchecked:
        unchecked.setattr("gptoss_weights.sign.check_folder", lambda *_: None)
        weights.digest = weights.sign().manifest.digest
    with monkeypatch.context() as unchecked:
        unchecked.setattr("gptoss_weights.content.Contents.check", lambda *_, **__: None)
        unchecked.setattr("gptoss_weights.content.Contents.check_together", lambda *_: None)
        assert (pulled().path / "config.json").read_bytes() == config.read_bytes()
    with pytest.raises(ForbiddenContentError, match="auto_map"):
        pulled()


def test_a_partial_that_a_crash_damaged_costs_one_more_fetch(weights, pulled, tmp_path):
    kill_a_pull(weights, tmp_path / "private", 4_000_000)
    (staging,) = (tmp_path / "private" / "staging").iterdir()
    partials = list(staging.glob("*.partial"))
    assert partials
    for partial in partials:
        partial.write_bytes(bytes(partial.stat().st_size))
    found = pulled()
    assert contents(found.path) == {name: weights.files[name] for name in SERVED}


def test_a_partial_that_became_a_link_is_not_written_through(weights, pulled, tmp_path):
    kill_a_pull(weights, tmp_path / "private", 4_000_000)
    (staging,) = (tmp_path / "private" / "staging").iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    partial = next(iter(staging.glob("*.partial")))
    partial.unlink()
    partial.symlink_to(victim)
    pulled()
    assert victim.read_text() == "precious"


def test_pulls_at_once_share_one_fetch(weights, pulled, served_by):
    source = served_by(from_folder(weights.folder))
    found = []
    threads = [threading.Thread(target=lambda: found.append(pulled())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({item.path for item in found}) == 1
    assert sorted(item.fetched_bytes > 0 for item in found) == [False, False, False, True]
    assert all(len(starts) == 1 for starts in source.opened.values())


def test_waiting_for_another_process_ends(weights, pulled, served_by):
    held, go_on = threading.Event(), threading.Event()

    def fault(name, offset, position, attempt):
        held.set()
        go_on.wait(30)

    served_by(from_folder(weights.folder, fault=fault))
    first = threading.Thread(target=pulled)
    first.start()
    assert held.wait(10)
    try:
        with pytest.raises(BusyError) as caught:
            pulled(limits=PullLimits(spare_bytes=0, lock_seconds=0.2))
        assert caught.value.retryable
    finally:
        go_on.set()
        first.join(30)


def test_a_folder_that_others_may_write_to_is_refused(pulled, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(StorageError, match="0700"):
        pulled(directory=shared)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(StorageError):
        pulled(directory=link)
    (tmp_path / "plain").write_text("")
    with pytest.raises(StorageError):
        pulled(directory=tmp_path / "plain")


def test_files_are_read_below_permitted_roots_only(weights, pulled, tmp_path):
    for roots in ((), (tmp_path / "elsewhere",), (tmp_path / "weigh",)):
        with pytest.raises(SourceNotAllowedError):
            pulled(settings=SourceSettings(file_roots=roots))


def test_a_link_out_of_the_root_is_not_followed(weights, pulled, tmp_path):
    outside = tmp_path / "outside.json"
    (weights.folder / "config.json").rename(outside)
    (weights.folder / "config.json").symlink_to(outside)
    with pytest.raises(SourceNotAllowedError, match="leaves the permitted root"):
        pulled(settings=SourceSettings(file_roots=(weights.folder,)))
    # Within the root a link is only another name, as in Hugging Face's cache.
    assert pulled(settings=SourceSettings(file_roots=(tmp_path,))).bytes


def test_a_pipe_in_place_of_a_file_does_not_hang(weights, pulled):
    (weights.folder / "config.json").unlink()
    os.mkfifo(weights.folder / "config.json")
    with pytest.raises(MissingFileError):
        pulled()


def test_names_in_folders_and_empty_files_arrive(tmp_path, pulled):
    made: Model = model(tmp_path / "deep", **{"a/b/c.txt": b"", "a/extra.json": b"{}"})
    found = pulled(f"file://{made.folder}", digest=made.sign().manifest.digest)
    assert contents(found.path)["a/b/c.txt"] == b""
    assert pulled(f"file://{made.folder}", digest=found.manifest_digest).fetched_bytes == 0


def test_the_receipt_says_what_came_from_where(weights, pulled):
    found = pulled()
    receipt = json.loads(found.receipt.read_text())
    assert receipt["uri"] == f"file://{weights.folder}"
    assert receipt["manifestDigest"] == weights.digest
    assert {entry["name"] for entry in receipt["files"]} == SERVED
    assert sum(entry["bytes"] for entry in receipt["files"]) == found.bytes


def test_progress_ends_complete(pulled):
    seen: list[PullProgress] = []
    found = pulled(progress=seen.append)
    assert (seen[-1].bytes_done, seen[-1].files_done) == (found.bytes, len(SERVED))
    assert seen[-1].bytes_total == found.bytes
