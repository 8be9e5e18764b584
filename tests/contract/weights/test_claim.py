"""Weights on a claim: what the rendered fetching container does with them, in the environment that it is given."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator.cache import Cache
from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.signature_check import SignatureCheck
from gptoss_weights.errors import SourceNotAllowedError
from gptoss_weights.sources import SourceSettings
from tests.builders import deployment
from tests.contract.weights.conftest import SERVED, SHARD
from tests.unit.operator import rayservices
from tests.unit.weights.builders import MODEL, policy

ROOT = "/models"
URI = f"{ROOT}/releases/1"


class Container:
    """The fetching container as it is rendered: its command, all of its environment, and folders for its volumes."""

    def __init__(self, claim: Path, volume: Path, digest: str) -> None:
        at = rayservices.site(settings=rayservices.settings(fileRoots=[{"path": ROOT, "claimName": "models"}]))
        of = rayservices.workload(weights_uri=f"file://{URI}", subject=MODEL, manifest_digest=digest)
        cluster = render(of, at).rayservice["spec"]["rayClusterConfig"]
        (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
        places = {"source": claim, "weights": volume}
        self._here = {mount["mountPath"]: str(places[mount["name"]]) for mount in container["volumeMounts"]}
        self._log = volume / "termination-log"
        self._here["/dev/termination-log"] = str(self._log)
        self._command = [self._moved(word) for word in container["command"]]
        self._environment = {each["name"]: self._moved(each["value"]) for each in container["env"]}

    def run(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and what it leaves for Kubernetes."""
        program, *arguments = self._command
        assert program == "gptoss"
        command = [sys.executable, "-c", "from gptoss_cli.main import main; main()", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, json.loads(self._log.read_text())

    def _moved(self, word: str) -> str:
        for there, here in self._here.items():
            for prefix in ("", "file://"):
                if word == prefix + there or word.startswith(f"{prefix}{there}/"):
                    return prefix + here + word[len(prefix + there) :]
        return word


@pytest.fixture
def claim(tmp_path, weights) -> Path:
    """A claim with the signed weights in a folder of it."""
    folder = tmp_path / "claim"
    shutil.copytree(weights.folder, folder / "releases" / "1")
    return folder


@pytest.fixture
def container(claim, weights, tmp_path) -> Container:
    volume = tmp_path / "pod"
    volume.mkdir()
    return Container(claim, volume, weights.digest)


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything that a pull could have changed there."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_is_pulled_verified_and_left_as_it_was(container, claim):
    before = state(claim)
    code, left = container.run()
    assert code == 0
    copy = Path(left["receipt"]["path"])
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == SERVED
    assert left["receipt"]["fetchedBytes"] == left["receipt"]["bytes"] > 0
    assert state(claim) == before
    # What becomes of the claim later is nothing to the engine.
    shard = claim / "releases" / "1" / SHARD
    was = shard.read_bytes()
    shard.write_bytes(bytes(len(was)))
    assert (copy / SHARD).read_bytes() == was


def spoil(claim: Path) -> None:
    shard = claim / "releases" / "1" / SHARD
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")


def lead_out(claim: Path) -> None:
    outside = claim.parent / "outside.json"
    (claim / "releases" / "1" / "config.json").rename(outside)
    (claim / "releases" / "1" / "config.json").symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "reason", "said", "retryable"),
    [
        (spoil, "DigestMismatch", SHARD, False),
        (lead_out, "SourceNotAllowed", "leaves the permitted root", False),
        (lambda claim: shutil.rmtree(claim / "releases"), "Unsigned", "there is no model.sig", False),
        (lambda claim: claim.rename(claim.with_name("away")), "SourceUnavailable", "is not there; mount it", True),
    ],
)
def test_what_is_wrong_on_the_claim_is_told_and_gives_nothing_out(container, claim, change, reason, said, retryable):
    change(claim)
    code, left = container.run()
    assert code != 0
    assert (left["error"]["reason"], left["error"]["retryable"]) == (reason, retryable)
    assert said in left["error"]["message"]
    assert list((claim.parent / "pod" / "copies" / "ready").iterdir()) == []


def test_the_operator_trusts_there_what_its_policy_allows_and_pins_what_pods_pull(claim, weights):
    folder = claim / "releases" / "1"
    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(claim,)))
    asked = deployment(model={"name": "custom", "uri": f"file://{folder}"}, verification={"subject": MODEL})

    def judged(*sources: str) -> str:
        spec = policy(sources=sources).model_dump(mode="json", by_alias=True)
        found = WeightTrustPolicy(name="p", spec=WeightTrustPolicySpec.model_validate({**spec, "default": True}))
        return check(asked, [found], "2026-06-01T00:00:00Z", {}).manifest_digest

    assert judged(f"file://{claim}/releases") == weights.digest
    with pytest.raises(SourceNotAllowedError, match=r"no sources\[\].prefix"):
        judged("s3://models", f"file://{claim}/release")
