"""Sigstore instances that the operator's settings name are read anew at each check, and only if a policy asks."""

import json
from pathlib import Path

import pytest

from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator.cache import Cache
from gptoss_operator.signature_check import SignatureCheck
from gptoss_weights.errors import InvalidPolicyError
from gptoss_weights.sources.settings import SourceSettings
from tests.builders import deployment
from tests.unit.weights.builders import statement
from tests.unit.weights.instance import WORKFLOW, Instance

WALL = "2026-06-01T00:00:00Z"


def test_named_roots_are_read_at_each_check(tmp_path: Path) -> None:
    ours, theirs = Instance(), Instance()
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.sig").write_text(json.dumps(ours.sign(statement(subject="gpt-oss-20b"))))
    spec = {
        "default": True,
        "sources": [{"prefix": f"file://{tmp_path}"}],
        "authorities": [ours.authority(trustedRoot={"name": "acme"})],
    }
    policy = WeightTrustPolicy(name="default", spec=WeightTrustPolicySpec.model_validate(spec))
    root = tmp_path / "trusted_root.json"
    check = SignatureCheck(
        cache=Cache(),
        sources=SourceSettings(file_roots=(tmp_path,)),
        trusted_roots={"acme": root, "never-read": tmp_path / "missing"},
    )
    asked = deployment(model={"name": "gpt-oss-20b", "uri": f"file://{folder}"})
    with pytest.raises(InvalidPolicyError, match="can't be read"):
        check(asked, [policy], WALL, {})
    root.write_text(json.dumps(ours.trusted_root()))
    assert check(asked, [policy], WALL, {}).identity == WORKFLOW
    root.write_bytes(b"\xff")
    with pytest.raises(InvalidPolicyError, match="can't be read"):
        check(asked, [policy], WALL, {})
    root.write_text(json.dumps(theirs.trusted_root()))
    with pytest.raises(Exception, match="no certificate authority"):
        check(asked, [policy], WALL, {})
