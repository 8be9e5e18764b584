"""What we sign, OpenSSF's model_signing verifies, and the other way round."""

import json
import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_weights.errors import (
    DigestMismatchError,
    ForbiddenContentError,
    MalformedManifestError,
    MissingFileError,
    SigningError,
    SubjectMismatchError,
    TrustError,
    UnsignedError,
    UntrustedSignerError,
)
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.sign import generate_key, sign_folder
from tests.unit.weights.builders import MODEL, model, policy, private_key, public_pem, verify_folder, write_key
from tests.unit.weights.pki import IDENTITY, SERVER, certificate_authority, issue, signer

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path):
    return model(tmp_path / "weights", shard_bytes=1000)


def verified(folder, key=None, **changes):
    return verify_folder(folder.folder, pem=public_pem(key or private_key()), **changes)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_model_signing_verifies_what_we_sign(folder, tmp_path, curve):
    key = private_key("one", curve)
    folder.sign(key=key)
    (folder.folder / ".cache").mkdir()
    (folder.folder / ".cache" / "left-behind").write_text("by a downloader")
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "signing-key.pub")
    config.verify(folder.folder, folder.folder / "model.sig")
    (folder.folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        config.verify(folder.folder, folder.folder / "model.sig")


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_we_verify_what_model_signing_signs(folder, tmp_path, curve):
    key = private_key("one", curve)
    path = write_key(tmp_path / "key", key)
    named = folder.folder.rename(tmp_path / MODEL)
    model_signing.signing.Config().use_elliptic_key_signer(private_key=path).sign(named, named / "model.sig")
    folder.folder = named
    found = verified(folder, key, model=MODEL)
    assert found.manifest.subject == MODEL
    assert found.unsigned == ()
    ours = sign_folder(named, model=MODEL, key=path).manifest
    assert ours.files == found.manifest.files


def test_a_generated_key_signs_and_is_private(folder, tmp_path):
    pair = generate_key(tmp_path / "release", curve="P-384")
    assert stat.S_IMODE(pair.private_key.stat().st_mode) == 0o600
    signed = sign_folder(folder.folder, model=MODEL, key=pair.private_key)
    assert signed.signer_fingerprint == pair.fingerprint
    assert verify_folder(folder.folder, pem=pair.public_key.read_text()).signer_fingerprint == pair.fingerprint
    openssl = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", pair.public_key, "-outform", "DER"], capture_output=True, check=True
    )
    import hashlib

    assert pair.fingerprint == "sha256:" + hashlib.sha256(openssl.stdout).hexdigest()


def test_keys_are_never_overwritten(tmp_path):
    generate_key(tmp_path / "key")
    before = (tmp_path / "key").read_bytes()
    for _ in range(2):
        with pytest.raises(SigningError, match="never overwritten"):
            generate_key(tmp_path / "key")
        (tmp_path / "key.pub").unlink(missing_ok=True)
    assert (tmp_path / "key").read_bytes() == before


def test_whoever_may_read_the_weights_may_read_their_signature(folder):
    before = os.umask(0o022)
    try:
        folder.sign()
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder.folder / "model.sig").stat().st_mode) == 0o644


def test_signing_again_replaces_the_signature(folder):
    first = folder.sign().manifest.digest
    (folder.folder / "README.md").write_text("changed")
    assert folder.sign().manifest.digest != first
    assert verified(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py"])
def test_does_not_sign_what_no_node_would_load(folder, name):
    (folder.folder / name).write_bytes(b"x")
    with pytest.raises(ForbiddenContentError, match=name):
        folder.sign()
    assert not (folder.folder / "model.sig").exists()


def test_an_empty_folder_is_a_mistake_and_no_verdict(tmp_path, folder):
    empty = tmp_path / "empty"
    (empty / ".git").mkdir(parents=True)
    with pytest.raises(SigningError, match="empty holds no files to sign"):
        sign_folder(empty, model=MODEL, key=generate_key(tmp_path / "empty.key").private_key)
    assert not (empty / "model.sig").exists()


def test_does_not_sign_links_code_or_half_a_model(folder):
    link = folder.folder / "link.json"
    link.symlink_to("config.json")
    with pytest.raises(SigningError, match=r"link\.json"):
        folder.sign()
    link.unlink()
    (folder.folder / "config.json").write_text('{"auto_map": {"a": "b"}}')
    with pytest.raises(ForbiddenContentError, match="auto_map"):
        folder.sign()
    (folder.folder / "config.json").unlink()
    with pytest.raises(ForbiddenContentError, match=r"config\.json"):
        folder.sign()


def test_does_not_sign_an_index_that_names_absent_tensors(folder):
    (folder.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ForbiddenContentError, match="index"):
        folder.sign()


@pytest.mark.parametrize("name", ["", "a" * 300, "new\nline"])
def test_does_not_sign_as_a_name_that_nobody_could_read(folder, name):
    with pytest.raises(MalformedManifestError):
        folder.sign(model=name)


def test_refuses_keys_that_can_not_sign(folder, tmp_path):
    for content in (b"nothing", public_pem(private_key()).encode()):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(SigningError, match="bad"):
            sign_folder(folder.folder, model=MODEL, key=tmp_path / "bad")


def test_verifying_names_the_file_that_differs(folder):
    folder.sign()
    shard = folder.folder / "model-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DigestMismatchError, match=shard.name):
        verified(folder)
    shard.unlink()
    with pytest.raises(MissingFileError, match=shard.name):
        verified(folder)


def test_verifying_reports_unsigned_files_and_forgives_absent_documents(folder):
    folder.sign()
    (folder.folder / "extra.json").write_text("{}")
    (folder.folder / "README.md").unlink()
    assert verified(folder).unsigned == ("extra.json",)


def test_verifying_asks_for_signature_signer_and_subject(folder):
    with pytest.raises(UnsignedError):
        verified(folder)
    folder.sign()
    with pytest.raises(UntrustedSignerError):
        verified(folder, private_key("stranger"))
    with pytest.raises(SubjectMismatchError):
        verified(folder, model="gpt-oss-120b")


def test_a_link_put_in_place_of_a_signed_file_is_refused(folder):
    folder.sign()
    path = folder.folder / "config.json"
    path.rename(folder.folder.parent / "elsewhere")
    path.symlink_to(folder.folder.parent / "elsewhere")
    with pytest.raises((TrustError, OSError)):
        verified(folder)


def test_the_signature_is_text_that_model_signing_reads(folder):
    document = json.loads(folder.sign().signature.read_bytes())
    assert document["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"


def holder(**changes):
    now = datetime.now(UTC)
    root = issue("root", authority=True, not_before=now - DAY, not_after=now + DAY)
    middle = issue("middle", by=root, authority=True, not_before=now - DAY, not_after=now + DAY)
    times = {"not_before": now - DAY, "not_after": now + DAY}
    return root, middle, signer("release", by=middle, **{**times, **changes})


def test_model_signing_verifies_what_we_sign_with_a_certificate(folder, tmp_path):
    root, middle, leaf = holder()
    chain = tmp_path / "chain.pem"
    chain.write_text(leaf.pem + middle.pem + root.pem)
    sign_folder(folder.folder, model=MODEL, key=write_key(tmp_path / "key", leaf.key), certificate=chain)
    material = json.loads((folder.folder / "model.sig").read_text())["verificationMaterial"]
    assert len(material["x509CertificateChain"]["certificates"]) == 2
    config = model_signing.verifying.Config().use_certificate_verifier(
        certificate_chain=[root.write(tmp_path / "root.pem")]
    )
    config.verify(folder.folder, folder.folder / "model.sig")
    decision = evaluate(
        (folder.folder / "model.sig").read_bytes(),
        policy(authorities=[certificate_authority(root)]),
        uri=f"s3://models/{MODEL}",
        narrowing=Narrowing(subject=MODEL),
        now=datetime.now(UTC),
    )
    assert decision.identity == IDENTITY


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"purposes": SERVER}, "not for signing code"),
        ({"digital_signature": False}, "not for signing code"),
        ({"not_after": datetime.now(UTC) - DAY / 2}, "not valid now"),
        ({"key": private_key("somebody else")}, "not that of the key"),
    ],
)
def test_nothing_is_signed_with_a_certificate_that_no_policy_would_accept(folder, tmp_path, changes, problem):
    _, _, leaf = holder(**changes)
    key = write_key(tmp_path / "key", private_key() if "key" in changes else leaf.key)
    with pytest.raises(SigningError, match=problem):
        sign_folder(folder.folder, model=MODEL, key=key, certificate=leaf.write(tmp_path / "leaf.pem"))
    assert not (folder.folder / "model.sig").exists()


def test_a_certificate_that_is_none_can_not_sign(folder, tmp_path):
    broken = tmp_path / "leaf.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(SigningError, match="PEM certificates"):
        sign_folder(folder.folder, model=MODEL, key=write_key(tmp_path / "key", private_key()), certificate=broken)
