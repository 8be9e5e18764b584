"""Hostile inputs, each refused for the reason that stands beside it in ``hostile/``, in no time, unquoted."""

import hashlib
import json
from functools import cache

import pytest
import sigstore.verify  # noqa: F401 - takes seconds, which no time limit of a test may count

from gptoss_api.policy import WeightTrustPolicySpec
from gptoss_weights.content import Contents
from gptoss_weights.errors import WeightsError
from gptoss_weights.location import Location
from gptoss_weights.manifest import parse_manifest
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.signature import TrustedKey, parse_bundle, verify_bundle
from tests.unit.weights.builders import (
    FILES,
    MODEL,
    bundle,
    policy,
    private_key,
    public_pem,
    safetensors,
    statement,
    text,
)
from tests.unit.weights.hostile.corpus import Case, cases, changed, long
from tests.unit.weights.instance import Instance
from tests.unit.weights.pki import NOW

KINDS = ("names", "manifests", "bundles", "logged", "tensors", "indexes", "configs", "places")

pytestmark = pytest.mark.timeout(60)


def each(kind):
    return pytest.mark.parametrize("case", cases(kind), ids=str)


def refused(case: Case, act) -> None:
    with pytest.raises(WeightsError) as caught:
        act()
    message = str(caught.value)
    assert (caught.value.reason, case.says in message) == (case.reason, True), message
    assert len(message) < 600
    assert message.isprintable()


def test_the_corpus_is_large_and_its_names_are_unique():
    found = [str(case) for kind in KINDS for case in cases(kind)]
    assert len(found) == len(set(found)) > 310


@each("names")
def test_names(case):
    names = [long(name) for name in case.fields["names"]]
    listed = [*FILES.items(), *((name, "d" * 64) for name in names)]
    payload = statement()
    payload["predicate"]["resources"] = [{"name": n, "algorithm": "sha256", "digest": d} for n, d in listed]
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in listed)).hexdigest()
    payload["subject"][0]["digest"]["sha256"] = root
    refused(case, lambda: parse_manifest(text(payload)))


@each("manifests")
def test_manifests(case):
    payload = long(case.fields["raw"]).encode() if "raw" in case.fields else text(changed(statement(), case))
    refused(case, lambda: parse_manifest(payload))


@each("bundles")
def test_bundles(case):
    raw = long(case.fields["raw"]).encode() if "raw" in case.fields else text(changed(bundle(), case))
    trusted = [TrustedKey.from_pem("release-team", public_pem(private_key()))]
    refused(case, lambda: verify_bundle(parse_bundle(raw), trusted))


@cache
def logged() -> tuple[dict, WeightTrustPolicySpec]:
    """A good bundle of an identity, and the policy that trusts it."""
    instance = Instance()
    return instance.sign(), policy(authorities=[instance.authority()])


@each("logged")
def test_logged_bundles(case):
    good, trusting = logged()
    place, asked = f"s3://models/{MODEL}", Narrowing(subject=MODEL)
    raw = text(changed(good, case))
    assert evaluate(text(good), trusting, uri=place, narrowing=asked, now=NOW).identity
    refused(case, lambda: evaluate(raw, trusting, uri=place, narrowing=asked, now=NOW))


@each("tensors")
def test_tensors(case, tmp_path):
    path = tmp_path / "model.safetensors"
    if "file" in case.fields:
        path.write_bytes(case.fields["file"].encode())
    else:
        header = case.fields.get("header") or long(case.fields["raw"]).encode()
        content = safetensors(header=header, tail=bytes(case.fields.get("tail", 0)))
        if "length" in case.fields:
            content = case.fields["length"].to_bytes(8, "little") + content[8:]
        path.write_bytes(content)
    refused(case, lambda: Contents([path.name]).check(path, name=path.name))


@each("indexes")
def test_indexes(case, tmp_path):
    files = case.fields.get("files", {"one.safetensors": ["a"], "two.safetensors": ["b"]})
    for name, tensors in files.items():
        (tmp_path / name).write_bytes(safetensors(dict.fromkeys(tensors, 4)))
    index = "model.safetensors.index.json"
    raw = long(case.fields["raw"]) if "raw" in case.fields else json.dumps(case.fields["index"])
    (tmp_path / index).write_text(raw)
    contents = Contents([*files, index, "config.json", "sub/three.safetensors"])

    def check():
        for name in (*files, index):
            contents.check(tmp_path / name, name=name)
        contents.check_together()

    refused(case, check)


@each("configs")
def test_configs(case, tmp_path):
    name = case.fields["file"]
    content = bytes.fromhex(case.fields["bytes"]) if "bytes" in case.fields else long(case.fields["text"]).encode()
    (tmp_path / name).write_bytes(content)
    refused(case, lambda: Contents([name]).check(tmp_path / name, name=name))


@each("places")
def test_places(case):
    assert case.reason == "ForbiddenContent"  # not said in the file: there is one reason for all
    with pytest.raises(WeightsError) as caught:
        Location.parse(long(case.fields["uri"]))
    assert (caught.value.reason, case.says in str(caught.value)) == ("SourceNotAllowed", True), str(caught.value)
