"""The look at a signature: what it opens, and with whose files."""

import json
from pathlib import Path

import pytest

from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator import signature_check
from gptoss_operator.cache import Cache
from gptoss_operator.plan.observation import Trusted
from gptoss_operator.signature_check import SignatureCheck
from gptoss_weights.errors import InvalidPolicyError, SourceNotAllowedError
from gptoss_weights.sources.settings import SourceSettings
from tests.builders import deployment
from tests.unit.weights.builders import MODEL, model
from tests.unit.weights.builders import policy as policy_spec
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import WORKFLOW, Instance
from tests.unit.weights.pki import NOW
from tests.unit.weights.place import Place

COMMIT = "0123456789" * 4


def named(spec: WeightTrustPolicySpec) -> WeightTrustPolicy:
    return WeightTrustPolicy(name="default", spec=spec.model_copy(update={"default": True}))


@pytest.mark.parametrize(
    "uri", ["s3://others/gpt-oss-tiny", "az://others/gpt-oss-tiny", "hf://others/gpt-oss-tiny", "file:///others/tiny"]
)
def test_a_place_that_no_source_of_the_policy_holds_is_not_asked_whoever_has_credentials(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the operator's identity was used there")

    monkeypatch.setattr(signature_check, "open_source", opened)
    ours = SourceSettings(file_roots=(Path("/others"),), s3_access_key_id="ours", s3_secret_access_key="ours")
    revision = {"revision": COMMIT} if uri.startswith("hf:") else {}
    asked = deployment(model={"name": "custom", "uri": uri, **revision}, verification={"subject": MODEL})
    allowed = named(policy_spec(sources=("s3://models", "az://models", "hf://acme", "file:///models")))
    check = SignatureCheck(cache=Cache(), sources=ours)
    for credentials in ({}, {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs", "HF_TOKEN": "theirs"}):
        with pytest.raises(SourceNotAllowedError, match=r"no sources\[\].prefix"):
            check(asked, [allowed], NOW.isoformat(), credentials)


class Named:
    """Weights that an identity signed, under a policy that names its instance by a file of the settings."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "acme.json"
        instance = Instance()
        self.file.write_text(json.dumps(instance.trusted_root()))
        place = Place(model(folder / MODEL, shard_bytes=1000), folder / "key")
        place.put(instance.sign(signed_statement(files=place.files())))
        spec = policy_spec(
            sources=(f"file://{folder}",), authorities=[instance.authority(trustedRoot={"name": "acme"})]
        )
        self._policy = named(spec)
        self._asked = deployment(
            model={"name": "custom", "uri": f"file://{place.folder}"}, verification={"subject": MODEL}
        )
        sources = SourceSettings(file_roots=(folder,))
        self._check = SignatureCheck(cache=Cache(), sources=sources, trusted_roots={"acme": self.file})

    def check(self) -> Trusted:
        return self._check(self._asked, [self._policy], NOW.isoformat(), {})


def test_a_trusted_root_of_the_settings_is_read_at_each_look(tmp_path: Path) -> None:
    given = Named(tmp_path)
    assert given.check().identity == WORKFLOW
    text = given.file.read_bytes()
    given.file.unlink()
    with pytest.raises(InvalidPolicyError, match="sigstoreTrustedRoots"):
        given.check()
    given.file.write_bytes(text)
    assert given.check().identity == WORKFLOW


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b" " * (256 * 1024 + 1)])
def test_a_trusted_root_that_is_none_closes_the_policy(tmp_path: Path, content: bytes) -> None:
    given = Named(tmp_path)
    given.file.write_bytes(content)
    with pytest.raises(InvalidPolicyError):
        given.check()
