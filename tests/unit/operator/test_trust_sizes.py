"""The check of a signature also learns how large the weights are, and whether the source has changed."""

import threading
from pathlib import Path

import pytest

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator.cache import Cache
from gptoss_operator.plan.sources import has_changed
from gptoss_operator.signature_check import SignatureCheck
from gptoss_weights.errors import AccessDeniedError, SourceError, SourceUnavailableError
from gptoss_weights.sign import generate_key
from gptoss_weights.sources import ObjectVersion
from gptoss_weights.sources.file import FileSource
from gptoss_weights.sources.settings import SourceSettings
from tests.apiserver.operator.house import signed_weights
from tests.builders import deployment

WALL = "2026-06-01T00:00:00Z"


def signed(tmp_path: Path) -> tuple[Path, WeightTrustPolicy, GptOssDeployment]:
    key = tmp_path / "key"
    generate_key(key)
    folder = signed_weights(tmp_path / "weights" / "gpt-oss-20b", key)
    spec = {
        "default": True,
        "namespaceSelector": {},
        "sources": [{"prefix": f"file://{tmp_path}"}],
        "authorities": [
            {"name": "release", "models": ["*"], "key": {"publicKeyPEM": (tmp_path / "key.pub").read_text()}}
        ],
    }
    policy = WeightTrustPolicy(name="default", spec=WeightTrustPolicySpec.model_validate(spec))
    return folder, policy, deployment(model={"name": "gpt-oss-20b", "uri": f"file://{folder}"})


def test_the_sizes_of_the_signed_safetensors_are_summed(tmp_path: Path) -> None:
    folder, policy, asked = signed(tmp_path)
    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(tmp_path,)))
    assert check(asked, [policy], WALL, {}).weight_bytes == (folder / "model.safetensors").stat().st_size

    (folder / "model.safetensors").unlink()
    assert check(asked, [policy], WALL, {}).weight_bytes is None


def test_files_that_are_signed_and_never_fetched_count_for_nothing_and_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, policy, asked = signed(tmp_path)
    (folder / "original").mkdir()
    for other in (folder / "original" / "model.safetensors", folder / "README.md"):
        other.write_bytes(bytes(100_000))
    signed_weights(folder, tmp_path / "key")
    asked_for: list[str] = []
    stat = FileSource.stat

    def seen(source: FileSource, name: str) -> ObjectVersion:
        asked_for.append(name)
        return stat(source, name)

    monkeypatch.setattr(FileSource, "stat", seen)
    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(tmp_path,)))
    found = check(asked, [policy], WALL, {})
    assert found.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert sorted(asked_for) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]

    (folder / "original" / "model.safetensors").unlink()
    (folder / "README.md").write_text("another")
    without = check(asked, [policy], WALL, {})
    assert without.weight_bytes == found.weight_bytes, "a mirror need not have what nobody fetches"
    assert not has_changed(found.source, without.source)


def test_a_source_that_is_away_tells_of_no_change_and_is_not_asked_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[str] = []

    def away(_: FileSource, name: str) -> ObjectVersion:
        asked_for.append(name)
        raise SourceUnavailableError("after minutes", file=name)

    monkeypatch.setattr(FileSource, "stat", away)
    _, policy, asked = signed(tmp_path)
    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(tmp_path,)))
    with pytest.raises(SourceUnavailableError):
        check(asked, [policy], WALL, {})
    assert len(asked_for) == 1


def test_files_are_looked_at_together_once_the_first_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, policy, asked = signed(tmp_path)
    stat, together, asked_for = FileSource.stat, threading.Barrier(3, timeout=60), []

    def seen(source: FileSource, name: str) -> ObjectVersion:
        asked_for.append(name)
        if len(asked_for) > 1:
            together.wait()  # none is answered before the others are asked for
        return stat(source, name)

    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(tmp_path,)))
    before = check(asked, [policy], WALL, {})
    monkeypatch.setattr(FileSource, "stat", seen)
    found = check(asked, [policy], WALL, {})
    assert found.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert found.source == before.source
    assert len(asked_for) == 4


@pytest.mark.parametrize("error", [AccessDeniedError("no right to stat it"), SourceError("no size, no ETag")])
def test_files_that_can_not_be_seen_tell_of_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: SourceError
) -> None:
    def refused(_: FileSource, name: str) -> ObjectVersion:
        raise error

    folder, policy, asked = signed(tmp_path)
    check = SignatureCheck(cache=Cache(), sources=SourceSettings(file_roots=(tmp_path,)))
    seen = check(asked, [policy], WALL, {})
    with monkeypatch.context() as patched:
        patched.setattr(FileSource, "stat", refused)
        unseen = check(asked, [policy], WALL, {})
    assert unseen.manifest_digest == seen.manifest_digest
    assert unseen.weight_bytes is None
    assert not has_changed(seen.source, unseen.source)
    assert not has_changed(unseen.source, check(asked, [policy], WALL, {}).source)

    (folder / "model.safetensors").unlink()
    assert has_changed(seen.source, check(asked, [policy], WALL, {}).source), "what is missing is a change"
