"""The check of a signature also learns how large the weights are."""

from pathlib import Path

import pytest

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator.cache import Cache
from gptoss_operator.trust import SignatureCheck
from gptoss_weights.errors import SourceUnavailableError
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
