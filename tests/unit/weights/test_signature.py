"""Bundles are read in one way only, and verified against trusted keys only."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from gptoss_weights.errors import (
    InvalidPolicyError,
    MalformedManifestError,
    MalformedSignatureError,
    TrustError,
    UntrustedSignerError,
)
from gptoss_weights.signature import TrustedKey, parse_bundle, verify_bundle
from tests.unit.weights.builders import MODEL, bundle, private_key, public_pem, statement, text


def trusted(key=None) -> TrustedKey:
    return TrustedKey.from_pem("release-team", public_pem(key or private_key()))


def verify(document, *keys):
    return verify_bundle(parse_bundle(text(document)), keys or (trusted(),))


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_accepts_a_signature_of_a_trusted_key_on_every_curve(curve):
    key = private_key("one", curve)
    verified = verify(bundle(key=key), trusted(key))
    assert verified.manifest.subject == MODEL
    assert verified.key.name == "release-team"
    assert [file.name for file in verified.manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_refuses_an_unknown_signer():
    with pytest.raises(UntrustedSignerError):
        verify(bundle(key=private_key("stranger")))


def test_refuses_a_stranger_who_names_a_trusted_key():
    document = bundle(key=private_key("stranger"))
    document["verificationMaterial"] = bundle()["verificationMaterial"]
    with pytest.raises(UntrustedSignerError, match="does not hold"):
        verify(document)


def test_refuses_another_payload_under_a_good_signature():
    document = bundle()
    document["dsseEnvelope"]["payload"] = bundle(statement(subject="gpt-oss-120b"))["dsseEnvelope"]["payload"]
    with pytest.raises(UntrustedSignerError):
        verify(document)


def test_refuses_the_encoding_of_signers_before_version_1():
    key = private_key()
    raw = json.dumps(statement()).encode()
    document = bundle(raw)
    legacy = f"DSSEV1 28 application/vnd.in-toto+json {len(raw)} {raw!r}".encode()
    from cryptography.hazmat.primitives import hashes

    signature = key.sign(legacy, ec.ECDSA(hashes.SHA256()))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(UntrustedSignerError):
        verify(document)


def at(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    if value is ...:
        del document[last]
    else:
        document[last] = value


SPOILT = {
    "another media type": (["mediaType"], "application/vnd.dev.sigstore.bundle+json;version=0.2"),
    "unknown member": (["surprise"], 1),
    "no material": (["verificationMaterial"], ...),
    "certificate": (["verificationMaterial"], {"certificate": {"rawBytes": "AA=="}}),
    "log entries": (["verificationMaterial", "tlogEntries"], [{}]),
    "no hint": (["verificationMaterial", "publicKey"], {}),
    "hint of another length": (["verificationMaterial", "publicKey", "hint"], "00"),
    "hint that is no text": (["verificationMaterial", "publicKey", "hint"], 5),
    "another payload type": (["dsseEnvelope", "payloadType"], "text/plain"),
    "message signature": (["dsseEnvelope"], ...),
    "no signature": (["dsseEnvelope", "signatures"], []),
    "two signatures": (["dsseEnvelope", "signatures"], [{"sig": "AA=="}, {"sig": "AA=="}]),
    "unknown member of a signature": (["dsseEnvelope", "signatures", 0, "alg"], "none"),
    "payload that is no Base64": (["dsseEnvelope", "payload"], "e30=\n"),
    "payload in URL alphabet": (["dsseEnvelope", "payload"], "_-8="),
    "payload that is not canonical": (["dsseEnvelope", "payload"], "e31="),
    "payload that is no text": (["dsseEnvelope", "payload"], None),
    "endless signature": (["dsseEnvelope", "signatures", 0, "sig"], "AAAA" * 200),
}


@pytest.mark.parametrize("name", SPOILT)
def test_refuses_bundles_that_are_not_strict(name):
    document = bundle()
    at(document, *SPOILT[name])
    with pytest.raises(MalformedSignatureError):
        parse_bundle(text(document))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"mediaType": NaN}',
        b'{"a": 1, "a": 2}',
        b"1" * 5000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
)
def test_refuses_json_that_could_be_read_in_two_ways(raw):
    with pytest.raises(MalformedSignatureError):
        parse_bundle(raw)


def test_a_duplicate_key_does_not_hide_a_second_payload():
    raw = text(bundle()).replace(b'"payloadType"', b'"payload": "e30=", "payloadType"', 1)
    with pytest.raises(MalformedSignatureError):
        parse_bundle(raw)


def test_refuses_a_bundle_beyond_the_bound():
    with pytest.raises(MalformedSignatureError, match="longer"):
        parse_bundle(b" " * (8 * 1024 * 1024 + 1))


MANIFESTS = {
    "another statement": (["_type"], "https://in-toto.io/Statement/v0.1"),
    "legacy predicate": (["predicateType"], "https://model_signing/Digests/v0.1"),
    "two subjects": (["subject"], [{"name": "a", "digest": {"sha256": "0" * 64}}] * 2),
    "empty subject": (["subject", 0, "name"], ""),
    "control character in subject": (["subject", 0, "name"], "gpt\u0000oss"),
    "another root": (["subject", 0, "digest", "sha256"], "0" * 64),
    "shards": (["predicate", "serialization", "method"], "shards"),
    "another hash": (["predicate", "serialization", "hash_type"], "blake3"),
    "links": (["predicate", "serialization", "allow_symlinks"], True),
    "links in words": (["predicate", "serialization", "allow_symlinks"], "false"),
    "no files": (["predicate", "resources"], []),
    "upper-case digest": (["predicate", "resources", 0, "digest"], "A" * 64),
    "another algorithm": (["predicate", "resources", 0, "algorithm"], "sha512"),
    "unknown member of a file": (["predicate", "resources", 0, "size"], 1),
    "unknown member": (["surprise"], 1),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_refuses_signed_manifests_that_are_not_strict(name):
    document = statement()
    at(document, *MANIFESTS[name])
    with pytest.raises(MalformedManifestError):
        verify(bundle(document))


def test_other_members_of_the_predicate_are_ignored_as_the_specification_asks():
    document = statement()
    document["predicate"]["modelCard"] = {"anything": [1]}
    assert verify(bundle(document)).manifest.subject == MODEL


def test_refuses_too_many_files():
    files = {f"f{index}.json": "0" * 64 for index in range(10_001)}
    with pytest.raises(MalformedManifestError, match="10000"):
        verify(bundle(statement(files=files)))


def test_refuses_keys_that_are_not_on_the_curves_of_the_specification():
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    for key in (edwards, ec.generate_private_key(ec.SECP256K1()).public_key()):
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        with pytest.raises(InvalidPolicyError, match="P-256"):
            TrustedKey.from_pem("release-team", pem)
    with pytest.raises(InvalidPolicyError, match="not a PEM"):
        TrustedKey.from_pem("release-team", "-----BEGIN PUBLIC KEY-----\nnothing\n-----END PUBLIC KEY-----")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_type(raw):
    with pytest.raises(TrustError):
        parse_bundle(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths(document, prefix=()):
    yield prefix
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from paths(value, (*prefix, key))


@given(st.data(), JSON)
def test_any_change_of_a_bundle_is_refused_with_a_type_or_changes_nothing(data, value):
    document = bundle()
    path = data.draw(st.sampled_from([path for path in paths(document) if path]))
    at(document, path, value)
    try:
        assert verify(document).manifest.subject == MODEL
    except TrustError:
        return
    # Only what is not read may differ.
    assert path in {("dsseEnvelope", "signatures", 0, "keyid"), ("verificationMaterial", "tlogEntries")}


@given(st.data(), JSON)
def test_any_change_of_a_signed_manifest_is_refused_with_a_type_or_keeps_the_rules(data, value):
    document = statement()
    path = data.draw(st.sampled_from([path for path in paths(document) if path]))
    at(document, path, value)
    try:
        manifest = verify(bundle(document)).manifest
    except TrustError:
        return
    assert {file.name for file in manifest.served} >= {"config.json", "tokenizer.json"}
