"""File systems that do not answer: who pulls is told in time, and no thread that hangs keeps a process from ending."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss_weights.cache import Cache, pull_through
from gptoss_weights.errors import HungStorageError, StalledTransferError
from gptoss_weights.limits import PullLimits
from gptoss_weights.sources import SourceSettings
from tests.contract.weights.conftest import SHARD
from tests.contract.weights.hangs import Hangs, hangs
from tests.unit.weights.builders import MODEL

__all__ = ["hangs"]

IMPATIENT = PullLimits(spare_bytes=0, stall_seconds=2.0)


@pytest.fixture(autouse=True)
def _short_farewell(monkeypatch):
    """Those who hang here never come to notice that they may go."""
    for module in ("watch", "materialise"):
        monkeypatch.setattr(f"gptoss_weights.{module}.FAREWELL_SECONDS", 0.1)


def test_a_copy_whose_disk_hangs_while_it_is_verified_again(hangs: Hangs, pulled):
    copy = pulled()
    hangs.mark(copy.path / SHARD)
    with pytest.raises(HungStorageError, match="has not answered for 2 s; look at its disk") as caught:
        pulled(limits=IMPATIENT)
    assert hangs.asked.is_set()
    assert caught.value.retryable


def test_the_same_wherever_a_read_only_waits_for_a_writer(pulled, monkeypatch):
    """Without a kernel's help, where that is not permitted: the copy's file is a pipe that nobody writes to."""
    pulled()
    reader, writer = os.pipe()
    real = os.open

    def opened(path, *arguments, **options):
        if Path(path).name == SHARD and "ready" in Path(path).parts:
            return os.dup(reader)
        return real(path, *arguments, **options)

    monkeypatch.setattr("gptoss_weights.hashing.os.open", opened)
    try:
        with pytest.raises(HungStorageError):
            pulled(limits=IMPATIENT)
    finally:
        os.close(writer)
        for thread in threading.enumerate():
            if thread.name == "gptoss-weights":
                thread.join(30)
        os.close(reader)


@pytest.mark.parametrize("name", ["model.sig", "config.json", SHARD])
def test_a_share_that_hangs_when_a_file_is_opened_there(hangs: Hangs, pulled, weights, name):
    hangs.mark(weights.folder / name, opening=True)
    with pytest.raises(StalledTransferError, match=f"no byte of {name} came") as caught:
        pulled(limits=IMPATIENT)
    assert hangs.asked.is_set()
    assert caught.value.file == name


def test_a_cache_that_hangs_is_left_aside(hangs: Hangs, weights, tmp_path):
    def through(directory):
        return pull_through(
            Cache(directory=tmp_path / "cache"),
            f"file://{weights.folder}",
            manifest_digest=weights.digest,
            subject=MODEL,
            directory=tmp_path / directory,
            settings=SourceSettings(file_roots=(tmp_path,)),
            limits=IMPATIENT,
        )

    assert through("first").problem is None
    (held,) = (tmp_path / "cache" / "ready").glob(f"*/{SHARD}")
    hangs.mark(held)
    found = through("second")
    assert hangs.asked.is_set()
    assert found.problem == "StorageFailed: the cache has not answered for 2 s; look at the file server it lies on"
    assert found.copy.fetched_bytes >= len(weights.files[SHARD]), "the others may have been read before"
    assert (found.copy.path / SHARD).read_bytes() == weights.files[SHARD]


_IMPATIENTLY = """
import sys
from gptoss_cli import weights
from gptoss_cli.main import main
from gptoss_weights.limits import PullLimits
from gptoss_weights import materialise, watch
watch.FAREWELL_SECONDS = materialise.FAREWELL_SECONDS = 0.1
weights._PATIENCE_SECONDS = 2.0
PullLimits.from_environment = classmethod(lambda cls: cls(spare_bytes=0, stall_seconds=2.0))
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("name", "pinned", "reason"),
    [
        (SHARD, True, "StalledTransfer"),
        ("model.sig", True, "StalledTransfer"),
        ("model.sig", False, "SourceUnavailable"),
    ],
)
def test_a_process_ends_with_its_reason_while_a_thread_of_it_hangs(
    hangs: Hangs, weights, tmp_path, name, pinned, reason
):
    hangs.mark(weights.folder / name)
    key = tmp_path / "signing-key.pub"
    trust = ["--manifest-digest", weights.digest] if pinned else ["--key", str(key)]
    log = tmp_path / "termination-log"
    command = ["weights", "pull", f"file://{weights.folder}", "--to", str(tmp_path / "to"), "--model", MODEL, *trust]
    found = subprocess.run(
        [sys.executable, "-c", _IMPATIENTLY, *command, "--json", "--termination-log", str(log)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert hangs.asked.is_set()
    assert found.returncode == 1, found.stderr
    assert json.loads(found.stdout)["error"]["reason"] == reason
    assert json.loads(log.read_text())["error"]["retryable"] is True
