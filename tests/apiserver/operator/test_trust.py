"""Policies as administrators change them, on a real API server, with really signed weights."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_weights.sign import generate_key
from gptoss_weights.signature import parse_bundle
from tests.apiserver.operator.house import Stack, signed_weights, stack

LONG_AGO = "2020-01-01T00:00:00Z"


@pytest.fixture
async def home(
    control_plane: ControlPlane, crds: list[str], namespace: str, tmp_path: Path, free_port: int
) -> AsyncIterator[Stack]:
    async with stack(control_plane, namespace, tmp_path, free_port) as built:
        yield built


@pytest.fixture
async def waiting(
    control_plane: ControlPlane, crds: list[str], namespace: str, tmp_path: Path, free_port: int
) -> AsyncIterator[Stack]:
    """Without an operator yet: what is applied before it starts is what it knows from the first."""
    async with stack(control_plane, namespace, tmp_path, free_port, start=False) as built:
        yield built


def authority(home: Stack, name: str, key: Path, **more: Any) -> dict[str, Any]:
    return {"name": name, "models": ["gpt-oss-*"], "key": {"publicKeyPEM": home.public_pem(key)}, **more}


async def test_keys_rotate_without_a_restart_and_status_says_who_depends_on_the_old_one(home: Stack) -> None:
    new = home.folder / "new-key"
    generate_key(new)
    await home.apply()
    await home.wait_for("Ready", "True", "Serving")
    await home.policy(authorities=[authority(home, "old", home.key), authority(home, "new", new)])
    await home.wait_for("WeightsVerified", "True", "Verified")
    await home.wait_for_weights(authority="old")
    signed_weights(home.weights, new)
    await home.apply(annotations={"serving.gptoss.dev/retry": "1"})
    await home.wait_for_weights(authority="new")
    await home.policy(authorities=[authority(home, "old", home.key, notAfter=LONG_AGO), authority(home, "new", new)])
    await home.apply("second")
    found = await home.wait_for("Ready", "True", "Serving", "second")
    assert found["status"]["weights"]["authority"] == "new"
    assert home.ray.starts[home.app("assistant")] == 1

    async def depends_on_the_new_one_alone() -> bool:
        lines = (await home.metrics()).splitlines()
        told = [line for line in lines if line.startswith("gptoss_deployment_weights{") and '"assistant"' in line]
        return len(told) == 1 and 'authority="new"' in told[0]

    await home.eventually(depends_on_the_new_one_alone, "it is told to depend on the new key alone")


async def test_an_authority_whose_time_is_over_starts_nothing(waiting: Stack) -> None:
    home = waiting
    await home.policy(authorities=[authority(home, "release", home.key, notAfter=LONG_AGO)])
    await home.start_operator()
    await home.apply()
    found = await home.wait_for("WeightsVerified", "False", "UntrustedSigner")
    (message,) = [each["message"] for each in found["status"]["conditions"] if each["type"] == "WeightsVerified"]
    assert "notAfter has passed" in message
    assert home.ray.puts == []


async def test_a_deployment_narrows_to_one_authority(home: Stack) -> None:
    other = home.folder / "other-key"
    generate_key(other)
    await home.policy(authorities=[authority(home, "release", home.key), authority(home, "nightly", other)])
    await home.apply(verification={"authority": "nightly"})
    await home.wait_for("WeightsVerified", "False", "UntrustedSigner")
    assert home.ray.puts == []
    await home.apply(verification={"authority": "release"})
    await home.wait_for("Ready", "True", "Serving")


async def test_denying_a_key_drains_what_runs_with_it_and_another_signature_brings_it_back(home: Stack) -> None:
    new = home.folder / "new-key"
    generate_key(new)
    authorities = [authority(home, "old", home.key), authority(home, "new", new)]
    await home.policy(authorities=authorities)
    await home.apply()
    found = await home.wait_for("Ready", "True", "Serving")
    stolen = found["status"]["weights"]["signer"]
    await home.policy(authorities=authorities, denied={"keyFingerprints": [stolen]})
    await home.wait_for("Ready", "False", "DeniedKey")
    await home.until(lambda: home.app("assistant") not in home.ray.applications)
    await home.wait_for("Revoked", "True", "DeniedKey")
    await home.wait_for_events("DeniedKey")
    signed_weights(home.weights, new)
    await home.apply(annotations={"serving.gptoss.dev/retry": "1"})
    await home.wait_for("Ready", "True", "Serving")
    await home.wait_for("Revoked", "False", "NotRevoked")
    await home.wait_for_weights(authority="new")


async def test_kept_weights_go_on_after_they_were_denied(home: Stack) -> None:
    await home.apply(scaling={"maxReplicas": 3})
    found = await home.wait_for("Ready", "True", "Serving")
    denied = {"manifestDigests": [found["status"]["weights"]["manifestDigest"]]}
    await home.policy(onRevoked="KeepRunning", denied=denied)
    await home.wait_for("Revoked", "True", "DeniedDigest")
    await home.wait_for("Ready", "True", "Serving")
    config = home.ray.applications[home.app("assistant")]["deployed_app_config"]
    await home.until(lambda: _most(home) == 1)
    assert home.ray.starts[home.app("assistant")] == 1
    assert config["args"]["weights"]["manifestDigest"] in denied["manifestDigests"]
    await home.policy()
    await home.wait_for("Revoked", "False", "NotRevoked")
    await home.until(lambda: _most(home) == 3)


async def test_audit_runs_a_strangers_weights_only_where_the_policy_permits_it(home: Stack) -> None:
    stranger = home.folder / "stranger"
    generate_key(stranger)
    signed_weights(home.weights, stranger)
    await home.apply(verification={"mode": "Audit"})
    await home.wait_for("WeightsVerified", "False", "AuditNotAllowed")
    assert home.ray.puts == []
    await home.policy(allowAudit=True)
    await home.wait_for("Ready", "True", "Serving")
    found = await home.wait_for("WeightsVerified", "False", "SignerWaived")
    assert "no authority of the policy holds" in found["status"]["weights"]["signerWaived"]
    (home.weights / "model.sig").unlink()
    await home.apply("unsigned", verification={"mode": "Audit"})
    await home.wait_for("WeightsVerified", "False", "Unsigned", "unsigned")
    await home.wait_for_metric('mode="Audit"')


async def test_no_older_release_starts_once_a_newer_one_was_accepted(waiting: Stack) -> None:
    home = waiting
    old = (home.weights / "model.sig").read_bytes()
    before = parse_bundle(old).manifest_digest
    signed_weights(home.weights, home.key, content=b"newer123")
    after = parse_bundle((home.weights / "model.sig").read_bytes()).manifest_digest
    releases = {"model": "gpt-oss-20b", "manifestDigests": [before, after]}
    await home.policy(releases=[releases])
    await home.start_operator()
    await home.apply()
    await home.wait_for("Ready", "True", "Serving")
    policy = json.loads(await home.kubectl("get", "wtp", f"policy-{home.namespace}", "-o", "json"))
    (accepted,) = policy["status"]["releases"]
    assert (accepted["model"], accepted["manifestDigest"]) == ("gpt-oss-20b", after)
    (home.weights / "model.sig").write_bytes(old)
    await home.apply("second")
    await home.wait_for("Ready", "False", "Rollback", "second")
    await home.wait_for("Ready", "True", "Serving")
    await home.policy(releases=[{**releases, "manifestDigests": [before, after, before]}])
    await home.wait_for("WeightsVerified", "True", "SignatureVerified", "second")
    signed_weights(home.weights, home.key, content=b"unlisted")
    await home.apply("third")
    await home.wait_for("Ready", "False", "UnlistedRelease", "third")


def _most(home: Stack) -> int:
    (each,) = home.ray.applications[home.app("assistant")]["deployed_app_config"]["deployments"]
    return int(each["autoscaling_config"]["max_replicas"])
