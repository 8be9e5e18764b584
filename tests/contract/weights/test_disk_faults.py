"""Real disks that are full or read-only, in a mount namespace of their own."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.contract.weights.hub import COMMIT, hub
from tests.unit.weights.builders import MODEL

__all__ = ["hub"]

_PULL = """
import sys
from pathlib import Path
from gptoss_weights.errors import WeightsError
from gptoss_weights.limits import PullLimits
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings
uri, revision, private, digest, subject = sys.argv[1:]
try:
    pull(uri, revision=revision or None, manifest_digest=digest, subject=subject, directory=Path(private),
         settings=SourceSettings.from_environment(), limits=PullLimits(spare_bytes=int(sys.stdin.read())))
except WeightsError as error:
    print(error.retryable, error)
    print(sorted(path.name for path in Path(private).glob("ready/*")))
"""


def namespaces() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    return subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not namespaces(), reason="user namespaces are not permitted here")


def pull_with(mount, weights, private, *, spare=0, hub=None):
    """Pull in a mount namespace in which ``mount`` was run first."""
    place = [f"file://{weights.folder}", ""] if hub is None else [hub.uri, COMMIT]
    command = [sys.executable, "-c", _PULL, *place, str(private), weights.digest, MODEL]
    variables = {"GPTOSS_WEIGHTS_FILE_ROOTS": str(weights.folder)}
    if hub is not None:
        variables = {"HF_ENDPOINT": hub.endpoint, "GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS": hub.download[len("https://") :]}
    script = f'{mount} && exec "$@"'
    found = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        input=str(spare), capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


def test_a_disk_that_is_too_small_is_found_before_bytes(weights, tmp_path):
    private = tmp_path / "small"
    private.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o size=4m,mode=700 none {private}"
    error, visible = pull_with(mount, weights, private)
    assert error.startswith("True NoSpace: the weights need")
    assert visible == "[]"


def test_a_disk_that_fills_up_during_the_pull_shows_nothing(weights, tmp_path):
    private = tmp_path / "small"
    private.mkdir(mode=0o700)
    # What was free when it was checked is gone when it is written: here because the check is told to expect less.
    mount = f"mount -t tmpfs -o size=4m,mode=700 none {private}"
    error, visible = pull_with(mount, weights, private, spare=-(2**40))
    assert error == "True NoSpace: the node's folder for weights is full; give it a larger volume"
    assert visible == "[]"


def test_a_disk_that_fills_up_while_a_hub_sends_shows_nothing(weights, tmp_path, hub):
    private = tmp_path / "small"
    private.mkdir(mode=0o700)
    mount = f"mount -t tmpfs -o size=4m,mode=700 none {private}"
    error, visible = pull_with(mount, weights, private, hub=hub)
    assert error.startswith("True NoSpace: the weights need")
    assert not any(each.host == "files" for each in hub.requests), "sizes come before bytes"
    error, visible = pull_with(mount, weights, private, spare=-(2**40), hub=hub)
    assert error == "True NoSpace: the node's folder for weights is full; give it a larger volume"
    assert visible == "[]"


def test_a_read_only_disk_says_so(weights, tmp_path):
    private = tmp_path / "read-only"
    for name in ("ready", "staging", "manifests", "receipts", "locks"):
        (private / name).mkdir(parents=True, mode=0o700)
    private.chmod(0o700)
    mount = f"mount --bind {private} {private} && mount -o remount,bind,ro {private}"
    error, visible = pull_with(mount, weights, private)
    assert error.startswith("False StorageFailed: the node's folder for weights is read-only; mount its volume")
    assert visible == "[]"
