"""`gptoss weights verify` and `inspect` decide about keys, certificates, identities and policies as operators do."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from tests.unit.weights.builders import MODEL, model, private_key, public_pem, write_key
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import ISSUER, WORKFLOW, Instance
from tests.unit.weights.pki import IDENTITY, certificate_authority, issue, signer
from tests.unit.weights.test_cli import run, run_json
from tests.unit.weights.test_library_gaps import Place

DAY = timedelta(days=1)
URI = f"s3://models/{MODEL}"


@pytest.fixture
def place(tmp_path):
    return Place(model(tmp_path / MODEL, shard_bytes=1000), write_key(tmp_path / "key", private_key()))


@pytest.fixture
def instance():
    return Instance()


@pytest.fixture
def logged(place, instance, tmp_path):
    """A folder that the workflow signed, and the options that trust it."""
    place.put(instance.sign(signed_statement(files=place.files())))
    root = tmp_path / "trusted_root.json"
    root.write_text(json.dumps(instance.trusted_root()))
    return ["--issuer", ISSUER, "--trusted-root", root]


def manifest(tmp_path, *authorities, name="policy.yaml", **spec):
    path = tmp_path / name
    path.write_text(
        yaml.safe_dump_all(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}},
                {
                    "apiVersion": "serving.gptoss.dev/v1alpha1",
                    "kind": "WeightTrustPolicy",
                    "metadata": {"name": "platform"},
                    "spec": {"sources": [{"prefix": "s3://models"}], "authorities": list(authorities), **spec},
                },
            ]
        )
    )
    return path


def certified(place, tmp_path):
    now = datetime.now(UTC)
    times = {"not_before": now - DAY, "not_after": now + DAY}
    root = issue("root", authority=True, **times)
    leaf = signer("release", by=root, **times)
    key = write_key(tmp_path / "leaf-key", leaf.key)
    chain = leaf.write(tmp_path / "leaf.pem")
    run("sign", place.folder, "--model", MODEL, "--key", key, "--certificate", chain)
    return root


def test_an_identity(place, logged):
    found = run_json("verify", place.folder, "--identity", WORKFLOW, *logged, "--model", MODEL)
    assert (found["identity"], found["unsignedFiles"]) == (WORKFLOW, [])
    assert run_json("verify", place.folder, "--identity-regexp", "https://git[.]example/.*", *logged)
    for wrong in (["--identity", "mallory@acme.example"], ["--identity-regexp", "https://git[.]example/"]):
        error = run_json("verify", place.folder, *wrong, *logged, code=3)["error"]
        assert error["reason"] == "UntrustedSigner"
    assert run_json("verify", place.folder, "--identity", WORKFLOW, *logged, "--model", "x", code=3)
    (place.folder / "config.json").write_text("{}")
    error = run_json("verify", place.folder, "--identity", WORKFLOW, *logged, code=3)["error"]
    assert (error["reason"], error["file"]) == ("DigestMismatch", "config.json")


def test_a_certificate(place, tmp_path):
    root = certified(place, tmp_path)
    roots = ["--certificate-roots", root.write(tmp_path / "roots.pem")]
    for identity in (IDENTITY, "CN=release,O=Acme"):
        assert run_json("verify", place.folder, *roots, "--identity", identity)["identity"] == identity
    for stranger in ("URI:spiffe://acme/other", "CN=release"):
        assert run_json("verify", place.folder, *roots, "--identity", stranger, code=3)
    other = issue("other", authority=True).write(tmp_path / "other.pem")
    assert run_json("verify", place.folder, "--certificate-roots", other, "--identity", IDENTITY, code=3)


def test_a_policy_decides_as_the_operator_would(place, logged, instance, tmp_path):
    policy = manifest(tmp_path, instance.authority())
    asked = ["--policy", policy, "--model", MODEL, "--uri", URI]
    found = run_json("verify", place.folder, *asked)
    assert (found["policy"], found["authority"], found["identity"]) == ("platform", "workflow", WORKFLOW)
    assert run_json("inspect", place.folder, *asked)["verified"] is True
    denied = manifest(tmp_path, instance.authority(), name="denied.yaml", denied={"identities": [WORKFLOW]})
    for command, reason in (
        (["--policy", policy, "--model", MODEL, "--uri", "s3://elsewhere/x"], "SourceNotAllowed"),
        (["--policy", policy, "--model", "gpt-oss-20b", "--uri", URI], "SubjectMismatch"),
        (["--policy", denied, "--model", MODEL, "--uri", URI], "DeniedIdentity"),
    ):
        assert run_json("verify", place.folder, *command, code=3)["error"]["reason"] == reason


def test_a_policy_may_name_a_trusted_root(place, logged, instance, tmp_path):
    policy = manifest(tmp_path, instance.authority(trustedRoot={"name": "acme"}))
    asked = ["verify", place.folder, "--policy", policy, "--model", MODEL, "--uri", URI]
    root = logged[-1]
    assert run_json(*asked, "--trusted-root", f"acme={root}")["identity"] == WORKFLOW
    assert run_json(*asked, code=3)["error"]["reason"] == "InvalidPolicy"
    run(*asked, "--trusted-root", root, code=2)
    assert run_json(*asked, "--trusted-root", f"acme={tmp_path}/missing", code=1)


def test_what_was_accepted_before_counts_in_a_policy_from_the_cluster(place, tmp_path):
    run("sign", place.folder, "--model", MODEL, "--key", tmp_path / "key")
    digest = run_json("inspect", place.folder)["manifestDigest"]
    newer = "sha256:" + "0" * 64
    key = {"name": "a", "models": ["*"], "key": {"publicKeyPEM": public_pem(private_key())}}
    policy = manifest(tmp_path, key, releases=[{"model": MODEL, "manifestDigests": [digest, newer]}])
    asked = ["verify", place.folder, "--policy", policy, "--model", MODEL, "--uri", URI]
    assert run_json(*asked)["identity"] is None
    _, stored = yaml.safe_load_all(policy.read_text())
    accepted = {"model": MODEL, "manifestDigest": newer, "acceptedAt": "2026-01-01T00:00:00Z"}
    policy.write_text(yaml.safe_dump({**stored, "status": {"releases": [accepted]}}))
    assert run_json(*asked, code=3)["error"]["reason"] == "Rollback"


def test_inspect_tells_claims_apart_from_facts(place, logged, tmp_path):
    found = run_json("inspect", place.folder)
    assert (found["signedWith"], found["claimedNames"], found["claimedIssuer"]) == ("sigstore", [WORKFLOW], ISSUER)
    assert found["claimedTime"].startswith("2026-05-01T12:00:00")
    assert (found["verified"], found["signer"]) == (False, None)
    certified(place, tmp_path)
    found = run_json("inspect", place.folder)
    assert found["signedWith"] == "certificate"
    assert found["claimedNames"] == ["CN=release,O=Acme", IDENTITY]
    run("sign", place.folder, "--model", MODEL, "--key", tmp_path / "key")
    assert run_json("inspect", place.folder)["signedWith"] == "key"
    assert "signedWith: key" in run("inspect", place.folder).stdout


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--identity", "a@acme.example"],
        ["--identity", "a@acme.example", "--issuer", ISSUER],
        ["--identity-regexp", "x", "--identity", "y", "--issuer", ISSUER, "--trusted-root", "FILE"],
        ["--key", "FILE", "--issuer", ISSUER],
        ["--certificate-roots", "FILE"],
        ["--certificate-roots", "FILE", "--identity", "CN=a", "--issuer", ISSUER],
        ["--key", "FILE", "--uri", URI],
        ["--policy", "FILE"],
        ["--policy", "FILE", "--model", MODEL],
        ["--policy", "FILE", "--model", MODEL, "--uri", URI, "--key", "FILE"],
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(place, tmp_path, options):
    run("sign", place.folder, "--model", MODEL, "--key", tmp_path / "key")
    key = str(tmp_path / "key.pub")
    run("verify", place.folder, *[key if each == "FILE" else each for each in options], code=2)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "kind: Pod",
        "apiVersion: serving.gptoss.dev/v1alpha1\nkind: WeightTrustPolicy\n",
        "apiVersion: serving.gptoss.dev/v1alpha1\nkind: WeightTrustPolicy\nmetadata: {name: a}\nspec: {sources: []}\n",
        "\0",
    ],
)
def test_a_file_without_a_policy_is_an_invalid_policy(place, tmp_path, text):
    run("sign", place.folder, "--model", MODEL, "--key", tmp_path / "key")
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    found = run_json("verify", place.folder, "--policy", path, "--model", MODEL, "--uri", URI, code=3)
    assert found["error"]["reason"] == "InvalidPolicy"


def test_a_policy_with_certificates(place, tmp_path):
    root = certified(place, tmp_path)
    policy = manifest(tmp_path, certificate_authority(root))
    found = run_json("verify", place.folder, "--policy", policy, "--model", MODEL, "--uri", URI)
    assert (found["authority"], found["identity"]) == ("acme", IDENTITY)
    assert found["validUntil"]
