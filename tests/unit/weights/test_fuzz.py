"""One fuzz target per parser: whatever the bytes, it answers, or raises the one error that it promises.

Inputs are good ones with a few edits, text of the parser's own alphabet, and arbitrary bytes. Each target
runs a bounded number of examples; ``FUZZ_EXAMPLES`` raises it for a long run.
"""

import base64
import json
import os
import struct
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss_weights import strictjson
from gptoss_weights.certificates import read_chain
from gptoss_weights.content import INDEX_SUFFIX, Contents
from gptoss_weights.errors import (
    ForbiddenContentError,
    MalformedManifestError,
    MalformedSignatureError,
    SourceNotAllowedError,
    TrustError,
    UntrustedSignerError,
)
from gptoss_weights.identities import certified
from gptoss_weights.location import Location
from gptoss_weights.manifest import manifest_digest, parse_manifest
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.signature import TrustedKey, parse_bundle, verify_bundle
from tests.unit.weights.builders import (
    FILES,
    MODEL,
    bundle,
    private_key,
    public_pem,
    safetensors,
    statement,
    text,
)
from tests.unit.weights.pki import NOW
from tests.unit.weights.trusting import GOOD, paths_in, trusting

bounded = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
punctuation = st.text(alphabet='{}[]":,\\ud8u0e1-.09 \n\0aN', max_size=60).map(lambda found: found.encode())


BASE64 = {
    "payload", "sig", "rawBytes", "keyId", "rootHash", "canonicalizedBody", "signedEntryTimestamp", "signedTimestamp"
}  # fmt: skip


def edited(good: bytes):
    """Good bytes with up to three stretches replaced, which hits deeper than random bytes do."""

    def apply(edits):
        content = good
        for start, length, replacement in edits:
            start %= len(content) + 1
            content = content[:start] + replacement + content[start + length :]
        return content

    edit = st.tuples(st.integers(0, 10**6), st.integers(0, 12), st.binary(max_size=8) | punctuation)
    return st.lists(edit, min_size=1, max_size=3).map(apply)


def replaced(document):
    """A good document with one value, at any depth, replaced by another."""
    paths = list(paths_in(document))

    def apply(choice):
        path, value = choice
        return _with(document, path, value)

    return st.tuples(st.sampled_from(paths), values).map(apply)


def edited_inside(document):
    """A good bundle with the bytes behind one of its Base64 texts edited: signatures, certificates, timestamps."""
    paths = [path for path in paths_in(document) if path[-1] in BASE64]

    def edit(path):
        content = document
        for part in path:
            content = content[part]
        again = edited(base64.b64decode(content)).map(lambda raw: base64.b64encode(raw).decode())
        return again.map(lambda value: _with(document, path, value))

    return st.sampled_from(paths).flatmap(edit)


def with_other_files(document):
    """A good bundle whose payload is another good manifest."""
    other = statement(files=dict.fromkeys(FILES, "e" * 64))
    return _with(document, ("dsseEnvelope", "payload"), base64.b64encode(text(other)).decode())


def _with(document, path, value):
    fresh = json.loads(json.dumps(document))
    holder = fresh
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return json.dumps(fresh).encode()


def only(*kinds):
    """Run the block; let nothing but these errors pass unnoticed, and hold them to unquoted, short text."""

    class Expected:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            if error is None or not isinstance(error, kinds):
                return False
            assert len(str(error)) < 1500
            assert str(error).isprintable()
            return True

    return Expected()


@bounded
@given(st.binary(max_size=200) | punctuation | values.map(lambda found: json.dumps(found).encode()))
def test_strict_json(raw):
    with only(strictjson.StrictJSONError):
        document = strictjson.parse(raw, max_bytes=10_000, max_depth=8)
        assert strictjson.parse(json.dumps(document).encode(), max_bytes=20_000, max_depth=8) == document


@bounded
@given(
    st.binary(max_size=200)
    | punctuation
    | values.map(lambda found: json.dumps(found).encode())
    | values.map(lambda found: json.dumps({"a": found, "_file": [found, {"b": found}]}, ensure_ascii=False).encode())
)
def test_json_read_in_pieces_is_read_as_in_one(tmp_path, raw):
    path, seen = tmp_path / "some.json", []
    path.write_bytes(raw)
    try:
        document = strictjson.parse(raw, max_bytes=10_000, max_depth=500)
    except strictjson.StrictJSONError:
        with only(strictjson.StrictJSONError):
            strictjson.visit(path, lambda *_: None, max_bytes=10_000)
    else:
        strictjson.visit(path, lambda key, value: seen.append((key, _plain(value))), max_bytes=10_000)
        assert sorted(seen, key=repr) == sorted(_members(document), key=repr)


def _plain(value):
    return float(value) if isinstance(value, Decimal) else value


def _members(document):
    if isinstance(document, dict):
        for key, value in document.items():
            yield key, strictjson.NESTED if isinstance(value, dict | list) else value
    for value in document.values() if isinstance(document, dict) else document if isinstance(document, list) else ():
        yield from _members(value)


@bounded
@given(edited(text(bundle())) | replaced(bundle()) | st.binary(max_size=200))
def test_bundles(raw):
    trusted = [TrustedKey.from_pem("release-team", public_pem(private_key()))]
    with only(MalformedSignatureError, UntrustedSignerError):
        assert verify_bundle(parse_bundle(raw), trusted).manifest.subject


LOGGED = GOOD["promised"]
TRUSTING = trusting(allowAudit=True)


@bounded
@given(edited(text(LOGGED)) | replaced(LOGGED))
def test_logged_bundles(raw):
    with only(MalformedSignatureError):
        found = parse_bundle(raw)
        if found.log is not None:
            assert certified(read_chain(found.certificates)[0]).identity


@bounded
@pytest.mark.parametrize("kind", GOOD)
@given(st.data())
def test_decisions(kind, data):
    """Whatever is changed of what somebody trusted signed: what is trusted is what was signed."""
    good = GOOD[kind]
    raw = data.draw(edited(text(good)) | replaced(good) | edited_inside(good) | st.just(with_other_files(good)))
    asked = Narrowing(subject=MODEL, audit=data.draw(st.booleans()))
    with only(TrustError):
        found = evaluate(raw, TRUSTING, uri=f"s3://models/{MODEL}", narrowing=asked, now=NOW)
        assert found.manifest_digest == manifest_digest(text(statement()))


@bounded
@given(edited(text(statement())) | replaced(statement()) | st.binary(max_size=200))
def test_manifests(raw):
    with only(MalformedManifestError, ForbiddenContentError):
        assert parse_manifest(raw).served


@bounded
@given(st.data())
def test_tensor_files(tmp_path, data):
    good = {
        "a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]},
        "__metadata__": {"format": "pt"},
    }
    header = st.one_of(edited(json.dumps(good).encode()), replaced(good))
    framed = header.map(lambda raw: struct.pack("<Q", len(raw)) + raw + bytes(12))
    raw = data.draw(framed | edited(safetensors(header=good, tail=bytes(12))) | st.binary(max_size=200))
    _check(tmp_path, "model.safetensors", raw)


@bounded
@given(edited(b'{"weight_map": {"a": "model.safetensors"}}') | replaced({"weight_map": {"a": "model.safetensors"}}))
def test_indexes(tmp_path, raw):
    _check(tmp_path, f"model{INDEX_SUFFIX}", raw)


@bounded
@given(edited(b'{"a": [1, 2.5e3, {"b": "\\u00e9\\n"}], "vocab": {"x": 1}}') | punctuation | st.binary(max_size=200))
def test_configurations(tmp_path, raw):
    _check(tmp_path, "config.json", raw)


@bounded
@given(st.binary(max_size=200))
def test_texts(tmp_path, raw):
    _check(tmp_path, "chat_template.jinja", raw)


@bounded
@given(st.text(max_size=60) | st.text(alphabet="s3file:/.%\\ab-\0é@?", max_size=40).map("s3://".__add__))
def test_places(uri):
    with only(SourceNotAllowedError):
        place = Location.parse(uri)
        assert Location.parse(str(place)) == place
        assert ".." not in place.segments


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", ['\\"', '"', "[", '"[', "{]", "\\", '"\\', '"a":', "[]", "1", " ", "-", "[1e9,"])
def test_no_text_is_slow_to_refuse(unit):
    raw = (unit * (2_000_000 // len(unit))).encode()
    for head in (b"", b'"', b'{"'):
        with only(strictjson.StrictJSONError):
            strictjson.parse(head + raw, max_bytes=10**7, max_depth=8)


def _check(folder, name, raw):
    path = folder / name
    path.write_bytes(raw)
    contents = Contents([name, "model.safetensors"])
    with only(ForbiddenContentError):
        contents.check(path, name=name)
        if not name.endswith(INDEX_SUFFIX):
            contents.check_together()
