"""What people see of signatures, keys and policies while deployments live."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from gptoss_api.deployment import GptOssDeployment
from gptoss_kube.errors import Forbidden, ServerFailed
from gptoss_operator import trust
from gptoss_operator.cache import Kind
from gptoss_operator.keys import DeploymentKey
from gptoss_operator.plan.observation import Trusted
from gptoss_weights.errors import (
    DeniedDigestError,
    DeniedIdentityError,
    NoPolicyError,
    SourceUnavailableError,
    UntrustedSignerError,
)
from tests.builders import DIGEST
from tests.contract.operator.house import House, house


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path) as built:
        yield built


def vouching(home: House) -> list[str]:
    """The series that say who vouches for which deployment."""
    metrics = generate_latest(home.operator.metrics.registry).decode()
    return [line for line in metrics.splitlines() if line.startswith("gptoss_deployment_weights{")]


async def test_status_and_metric_say_which_authority_matched(home: House) -> None:
    home.apply()
    await home.ready()
    assert home.status()["weights"]["authority"] == "release"
    (series,) = vouching(home)
    assert 'authority="release"' in series
    assert 'policy="default"' in series
    home.trust.authority = "next-release"
    home.pass_time(601)
    await home.until(lambda: home.status()["weights"]["authority"] == "next-release")
    await home.settled()
    (series,) = vouching(home)
    assert 'authority="next-release"' in series
    home.delete()
    await home.until(lambda: vouching(home) == [])


async def test_status_and_metric_say_which_identity_signed(home: House) -> None:
    home.trust.identity = "release@acme.example"
    home.apply()
    await home.ready()
    assert home.status()["weights"]["identity"] == "release@acme.example"
    (series,) = vouching(home)
    assert 'identity="release@acme.example"' in series


async def test_sources_that_hang_are_told_alone_and_hold_up_nobody_elses(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(9)]

    def told(reason: str) -> list[str]:
        return [name for name in names if home.condition("WeightsVerified", name) == ("Unknown", reason)]

    home.trust.silent = "ml"
    home.trust.may_answer.clear()
    with monkeypatch.context() as patch:
        patch.setattr(trust, "_CHECK_SECONDS", 0.2)
        for name in names:
            home.apply(name)
        await home.until(lambda: len(told("SourceUnavailable")) == 4)
    home.apply("quick", "lab")
    await home.until(lambda: home.condition("WeightsVerified", "quick", "lab")[0] == "True")
    assert home.trust.asked == 5, "none of the others has ended"
    assert len(told("SourceUnavailable")) == 4
    assert len(told("NotChecked")) == 5, "they wait for the other four, and that is no fault of their sources"

    home.trust.may_answer.set()
    await home.until(lambda: len(told("SourceUnavailable")) == 4 and not told("NotChecked"))
    home.pass_time(31)
    for name in names:
        await home.ready(name)


async def test_sources_that_hang_in_many_namespaces_hold_up_no_other(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = [(f"model-{number}", f"team-{number % 3}") for number in range(12)]
    home.trust.may_answer.clear()
    with monkeypatch.context() as patch:
        patch.setattr(trust, "_CHECK_SECONDS", 0.2)
        for name, namespace in hanging:
            home.apply(name, namespace)
        unavailable = ("Unknown", "SourceUnavailable")
        await home.until(lambda: all(home.condition("WeightsVerified", *each) == unavailable for each in hanging))
    home.trust.silent = "nobody"
    home.apply("quick", "lab")
    await home.until(lambda: home.condition("WeightsVerified", "quick", "lab")[0] == "True")
    assert home.trust.asked == 13


async def test_a_source_that_hangs_is_asked_once_however_often_it_is_looked_at(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.trust.may_answer.clear()
    monkeypatch.setattr(trust, "_CHECK_SECONDS", 0.2)
    told = home.operator.metrics.trust_checks.labels("SourceUnavailable")._value
    for retry in range(6):
        home.apply(annotations={"serving.gptoss.dev/retry": str(retry)})
        await home.until(partial(lambda looks: told.get() == looks, retry + 1))
    assert home.trust.asked == 1
    home.trust.silent = "nobody"
    home.apply(model={"name": "gpt-oss-20b", "uri": "s3://models/elsewhere"})
    await home.until(lambda: home.condition("WeightsVerified")[0] == "True")
    assert home.trust.asked == 2, "another place is asked, though the first still hangs"


async def test_an_identity_that_is_denied_later_drains_what_it_signed(home: House) -> None:
    home.trust.identity = "release@acme.example"
    home.policy()
    home.apply()
    await home.ready()
    home.trust.error = DeniedIdentityError("the identity that signed is on the WeightTrustPolicy's denied.identities")
    home.policy(denied={"identities": ["release@acme.example"]})
    await home.until(lambda: APP not in home.ray.applications)
    await home.until(lambda: home.condition("Revoked") == ("True", "DeniedIdentity"))


async def test_nothing_starts_by_the_word_of_an_authority_whose_time_is_over(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    home.apply(scaling={"initial": "Idle"})
    await home.ready(reason="Idle")
    home.trust.error = UntrustedSignerError("authority release signed, but its notAfter has passed")
    home.trust.may_answer.clear()
    home.clock.time += 91
    home.apply(scaling={"initial": "Idle"}, annotations={"serving.gptoss.dev/wake": "now"})
    await home.settled()
    assert home.condition("ScaledToZero") == ("True", "Idle")
    home.trust.may_answer.set()
    await home.until(lambda: home.condition("Ready") == ("False", "UntrustedSigner"))
    await home.settled()
    assert home.ray.puts == []


async def test_a_look_is_due_when_an_authority_ends(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    raw = home.apply()
    await home.ready()
    await home.settled()
    trust, look_in = home.operator.trust.answer(
        DeploymentKey("ml", "assistant"), GptOssDeployment.parse(raw), eager=False
    )
    assert isinstance(trust, Trusted)
    assert look_in <= 90


async def test_the_end_of_an_authority_stops_nothing_that_runs(home: House) -> None:
    home.trust.valid_until = datetime.fromisoformat(home.clock.wall()) + timedelta(seconds=90)
    home.apply()
    await home.ready()
    home.trust.error = UntrustedSignerError("authority release signed, but its notAfter has passed")
    home.pass_time(91)
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "UntrustedSigner"))
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert home.ray.starts["gptoss-test-ml-assistant"] == 1


APP = "gptoss-test-ml-assistant"
DENIED = DeniedDigestError(f"manifest {DIGEST} is on the WeightTrustPolicy's denied.manifestDigests")


async def test_denied_weights_that_run_are_drained_by_default(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    home.trust.error = DENIED
    home.policy(denied={"manifestDigests": [DIGEST]})
    await home.until(lambda: APP not in home.ray.applications)
    await home.settled()
    assert home.condition("Ready") == ("False", "DeniedDigest")
    assert home.condition("Revoked") == ("True", "DeniedDigest")
    assert [reason for _, reason, _ in home.kubernetes.events].count("DeniedDigest") == 1
    home.trust.error, home.trust.digest = None, "sha256:" + "cd" * 32
    home.apply(annotations={"serving.gptoss.dev/retry": "other weights"})
    await home.ready()
    assert home.condition("Revoked") == ("False", "NotRevoked")


async def test_a_source_that_is_away_hides_no_revocation(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    home.trust.error = SourceUnavailableError("the store does not answer")
    home.policy(denied={"keyFingerprints": [home.trust.signer]})
    await home.until(lambda: APP not in home.ray.applications)
    await home.until(lambda: home.condition("Revoked") == ("True", "DeniedKey"))


async def test_a_source_that_hangs_hides_no_denied_manifest(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    home.trust.may_answer.clear()
    home.policy(denied={"manifestDigests": [DIGEST]})
    await home.until(lambda: APP not in home.ray.applications)
    assert home.condition("Revoked") == ("True", "DeniedDigest")


async def test_sources_that_hang_whatever_they_were_asked_hide_no_denied_key(
    home: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(5)]
    home.policy()
    for name in names:
        home.apply(name)
    for name in names:
        await home.ready(name)
    home.trust.may_answer.clear()
    with monkeypatch.context() as patch:
        patch.setattr(trust, "_CHECK_SECONDS", 0.2)
        home.policy(denied={"identities": ["somebody@acme.example"]})
        unavailable = ("Unknown", "SourceUnavailable")
        await home.until(lambda: sum(home.condition("WeightsVerified", name) == unavailable for name in names) == 4)
    home.policy(denied={"keyFingerprints": [home.trust.signer]})
    await home.settled()
    home.pass_time(31)
    await home.until(lambda: not home.ray.applications)
    await home.until(lambda: all(home.condition("Revoked", name) == ("True", "DeniedKey") for name in names))


async def test_a_check_has_time_to_find_the_same_manifest_signed_anew(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    denied, home.trust.signer = home.trust.signer, "sha256:" + "cd" * 32
    home.trust.may_answer.clear()
    asked = home.trust.asked
    home.policy(denied={"keyFingerprints": [denied]})
    await home.until(lambda: home.trust.asked > asked)
    home.pass_time(29)
    await home.settled()
    assert home.condition("Revoked") == ("False", "NotRevoked")
    home.trust.may_answer.set()
    await home.until(lambda: home.status()["weights"]["signer"] == home.trust.signer)
    home.pass_time(31)
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert home.ray.starts[APP] == 1


async def test_changes_of_a_deployment_put_off_no_denied_key(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    home.trust.may_answer.clear()
    home.policy(denied={"keyFingerprints": [home.trust.signer]})
    for retry in range(4):
        await home.settled()
        home.clock.time += 10
        home.apply(annotations={"serving.gptoss.dev/retry": str(retry)})
    await home.until(lambda: APP not in home.ray.applications)
    assert home.condition("Revoked") == ("True", "DeniedKey")


async def test_kept_weights_run_on_capped_and_a_restart_changes_nothing(home: House) -> None:
    home.policy(onRevoked="KeepRunning")
    home.apply(scaling={"maxReplicas": 4})
    await home.ready()
    home.trust.error = DENIED
    home.policy(onRevoked="KeepRunning", denied={"manifestDigests": [DIGEST]})

    def most() -> int:
        (each,) = home.ray.applications[APP]["deployed_app_config"]["deployments"]
        return int(each["autoscaling_config"]["max_replicas"])

    await home.until(lambda: most() == 1)
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    assert home.condition("Revoked") == ("True", "DeniedDigest")
    assert "KeepRunning" in home.message("Revoked")
    assert [reason for _, reason, _ in home.kubernetes.events].count("DeniedDigest") == 1
    await home.restart()
    await home.until(lambda: home.operator.reconciler.complete)
    await home.settled()
    assert most() == 1
    assert home.ray.starts[APP] == 1
    home.ray.applications.pop(APP)
    home.pass_time(31)
    await home.until(lambda: home.condition("Ready") == ("False", "DeniedDigest"))
    await home.settled()
    assert home.ray.starts[APP] == 1


async def test_without_a_readable_policy_nothing_that_runs_is_touched(home: House) -> None:
    home.policy()
    home.apply()
    await home.ready()
    home.trust.error = NoPolicyError("no default WeightTrustPolicy selects namespace ml")
    home.kubernetes.objects[Kind.POLICY].clear()
    home.operator.intake.gone(Kind.POLICY, "", "default")
    await home.until(lambda: home.condition("WeightsVerified") == ("False", "NoPolicy"))
    await home.settled()
    assert home.condition("Ready") == ("True", "Serving")
    home.policy(authorities=[{"name": "unreadable"}], sources="none", denied={"manifestDigests": [DIGEST]})
    await home.settled()
    assert home.ray.starts[APP] == 1
    assert APP in home.ray.applications


async def test_a_waived_signer_shows_in_status_event_and_metrics(home: House) -> None:
    home.trust.waived, home.trust.authority, home.trust.signer = "no authority holds the key", "", ""
    home.apply(verification={"mode": "Audit"})
    await home.ready()
    assert home.condition("WeightsVerified") == ("False", "SignerWaived")
    assert home.status()["weights"]["signerWaived"] == "no authority holds the key"
    assert [reason for _, reason, _ in home.kubernetes.events].count("SignerWaived") == 1
    (series,) = vouching(home)
    assert 'mode="Audit"' in series
    assert home.operator.metrics.trust_checks.labels("SignerWaived")._value.get() == 1


OTHER = "sha256:" + "cd" * 32
RELEASES = [{"model": "gpt-oss-20b", "manifestDigests": [DIGEST, OTHER]}]


def recorded(home: House) -> dict[str, str]:
    status = home.kubernetes.objects[Kind.POLICY]["", "default"].get("status") or {}
    return {each["model"]: each["manifestDigest"] for each in status.get("releases", ())}


async def test_a_release_is_recorded_before_anything_starts_with_it(home: House) -> None:
    home.policy(releases=RELEASES)
    home.trust.raises_release = True
    home.kubernetes.failing_writes = 10_000
    home.apply()
    await home.until(lambda: home.trust.asked > 0)
    await home.settled()
    assert home.ray.puts == []
    home.kubernetes.failing_writes = 0
    home.pass_time(31)
    await home.ready()
    assert recorded(home) == {"gpt-oss-20b": DIGEST}


async def test_a_release_that_can_not_be_recorded_says_so_and_starts_nothing(home: House) -> None:
    home.policy(releases=RELEASES)
    home.trust.raises_release = True

    async def refuse(*_: object) -> None:
        raise ServerFailed("injected")

    home.kubernetes.write_policy_status = refuse  # type: ignore[assignment,method-assign]
    home.apply()
    await home.until(lambda: home.condition("Ready") == ("False", "ReleaseNotRecorded"))
    assert home.ray.puts == []


async def test_a_higher_release_of_one_deployment_lowers_none_of_another(home: House) -> None:
    home.policy(releases=RELEASES)
    home.trust.raises_release = True
    home.trust.digest = OTHER
    home.apply("new")
    await home.ready("new")
    assert recorded(home) == {"gpt-oss-20b": OTHER}
    home.trust.digest = DIGEST
    home.apply("old")
    await home.until(lambda: home.condition("Ready", "old") == ("False", "Rollback"))
    await home.settled()
    assert recorded(home) == {"gpt-oss-20b": OTHER}
    assert home.condition("Ready", "new") == ("True", "Serving")


async def test_a_recorded_release_has_every_other_deployment_looked_at_at_once(home: House) -> None:
    home.policy(releases=RELEASES)
    home.apply("old", scaling={"initial": "Idle"})
    await home.ready("old", reason="Idle")
    await home.settled()
    asked = home.trust.asked
    home.trust.raises_release = True
    home.apply("new")
    await home.ready("new")
    await home.until(lambda: home.trust.asked >= asked + 3)


HUB = {"name": "gpt-oss-20b", "uri": "hf://acme/gpt-oss-20b", "revision": "0123456789" * 4}


async def test_a_namespaces_own_credentials_are_read_for_azure_too(home: House) -> None:
    home.kubernetes.secrets["ml"] = {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"}
    home.apply(scaling={"initial": "Idle"}, model={"name": "gpt-oss-20b", "uri": "az://models/gpt-oss-20b"})
    await home.until(lambda: home.trust.credentials == {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"})
    assert "sig=x" not in str(home.status())


async def test_a_namespaces_own_keys_are_read_for_s3_and_never_shown(home: House) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "hunter2"}
    home.kubernetes.secrets["ml"] = keys
    home.apply(scaling={"initial": "Idle"}, model={"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"})
    await home.until(lambda: home.trust.credentials == keys)
    assert "hunter2" not in str(home.status())


async def test_a_namespaces_own_token_is_read_for_a_hub_and_not_for_a_folder(home: House) -> None:
    home.kubernetes.secrets["ml"] = {"HF_TOKEN": "hf_x"}
    home.apply(scaling={"initial": "Idle"}, model={"name": "gpt-oss-20b", "uri": "file:///models/gpt-oss-20b"})
    await home.ready(reason="Idle")
    assert home.trust.credentials == {}
    home.apply(scaling={"initial": "Idle"}, model=HUB)
    await home.until(lambda: home.trust.credentials == {"HF_TOKEN": "hf_x"})
    assert "hf_x" not in str(home.status())


async def test_a_token_that_may_not_be_read_is_said_and_looked_at_again(home: House) -> None:
    home.kubernetes.secrets["ml"] = Forbidden("no", status=403)
    home.apply(scaling={"initial": "Idle"}, model=HUB)
    await home.until(lambda: home.condition("WeightsVerified") == ("Unknown", "AccessDenied"))
    assert "the right to get it by this name" in str(home.status()["conditions"])
    assert home.trust.asked == 0
    home.kubernetes.secrets.clear()
    home.pass_time(31)
    await home.ready(reason="Idle")
