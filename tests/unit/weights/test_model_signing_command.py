"""The command lines of `model_signing` and of ours, each on what the other's signed, as people run them."""

import json
import subprocess
import sys

import pytest

from tests.unit.weights.builders import MODEL, model, private_key, write_key
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import ISSUER, WORKFLOW, Instance, trust_config
from tests.unit.weights.pki import IDENTITY
from tests.unit.weights.place import Place
from tests.unit.weights.test_cli import run, run_json
from tests.unit.weights.test_sign import holder

SECONDS = 300


@pytest.fixture
def place(tmp_path):
    """A folder that is not signed yet, called as the model: theirs signs as that."""
    return Place(model(tmp_path / MODEL, shard_bytes=1000), write_key(tmp_path / "key", private_key()))


def theirs(*arguments, code=0):
    command = [sys.executable, "-m", "model_signing", *(str(each) for each in arguments)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert found.returncode == code, found.stdout + found.stderr


def both_accept_until_a_byte_changes(place, *, their_options, our_options):
    signature = ["--signature", place.signature]
    found = run_json("verify", place.folder, *our_options, "--model", MODEL)
    assert (found["subject"], found["unsignedFiles"]) == (MODEL, [])
    theirs("verify", *their_options[:1], place.folder, *signature, *their_options[1:])
    place.add("config.json", b'{"architectures": ["Another"]}')
    error = run_json("verify", place.folder, *our_options, code=3)["error"]
    assert (error["reason"], error["file"]) == ("DigestMismatch", "config.json")
    theirs("verify", *their_options[:1], place.folder, *signature, *their_options[1:], code=1)


@pytest.mark.parametrize("signed_by", ["ours", "theirs"])
def test_keys(place, signed_by):
    public = place.key.with_name("key.pub")
    if signed_by == "ours":
        run("sign", place.folder, "--model", MODEL, "--key", place.key)
    else:
        theirs("sign", "key", place.folder, "--signature", place.signature, "--private_key", place.key)
    both_accept_until_a_byte_changes(
        place, their_options=["key", "--public_key", public], our_options=["--key", public]
    )


@pytest.mark.parametrize("signed_by", ["ours", "theirs"])
def test_certificates(place, tmp_path, signed_by):
    root, middle, leaf = holder()
    key = write_key(tmp_path / "leaf-key", leaf.key)
    roots, own, between = (
        each.write(tmp_path / f"{name}.pem") for name, each in (("root", root), ("leaf", leaf), ("middle", middle))
    )
    if signed_by == "ours":
        own.write_text(leaf.pem + middle.pem)
        run("sign", place.folder, "--model", MODEL, "--key", key, "--certificate", own)
    else:
        certificates = ["--signing_certificate", own, "--certificate_chain", between]
        theirs("sign", "certificate", place.folder, "--signature", place.signature, "--private_key", key, *certificates)
    both_accept_until_a_byte_changes(
        place,
        their_options=["certificate", "--certificate_chain", roots],
        our_options=["--certificate-roots", roots, "--identity", IDENTITY],
    )


def test_identities(place, tmp_path):
    """Signed by neither: signing so asks an identity provider and two logs, which no test can."""
    instance = Instance()
    place.put(instance.sign(signed_statement(files=place.files())))
    root, trust = tmp_path / "trusted_root.json", tmp_path / "trust.json"
    root.write_text(json.dumps(instance.trusted_root()))
    trust.write_text(json.dumps(trust_config(instance.trusted_root())))
    identity = ["--identity", WORKFLOW]
    both_accept_until_a_byte_changes(
        place,
        their_options=["sigstore", *identity, "--identity_provider", ISSUER, "--trust_config", trust],
        our_options=[*identity, "--issuer", ISSUER, "--trusted-root", root],
    )
