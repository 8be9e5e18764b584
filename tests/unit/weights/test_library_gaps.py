"""What the `model_signing` library accepts and we refuse. Every test shows both.

Should a later version of the library close a gap, its half of the test fails: then the line in
docs/trust.md goes, and our half stays.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_weights.errors import (
    MalformedManifestError,
    MalformedSignatureError,
    SubjectMismatchError,
    TrustError,
    UntrustedSignerError,
)
from gptoss_weights.hashing import hash_file
from gptoss_weights.policy import Narrowing, evaluate
from tests.unit.weights.builders import (
    MODEL,
    Model,
    bundle,
    model,
    policy,
    private_key,
    public_pem,
    verify_folder,
    write_key,
)
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import ISSUER, SIGNED, START, WORKFLOW, Instance, span
from tests.unit.weights.pki import CODE_SIGNING, SERVER, Holder, certificate_authority, issue, signed_bundle, signer

NOW = datetime.now(UTC)


@dataclass
class Place:
    """A folder of weights that one wrote and another verifies."""

    model: Model
    key: Path

    @property
    def folder(self) -> Path:
        return self.model.folder

    @property
    def signature(self) -> Path:
        return self.folder / "model.sig"

    def files(self) -> dict[str, str]:
        return {name: hash_file(self.folder / name) for name in sorted(self.model.files)}

    def put(self, document: dict[str, Any]) -> None:
        self.signature.write_text(json.dumps(document))

    def library(self) -> None:
        """What `model_signing verify key` does; raises if it refuses."""
        self.library_with(
            model_signing.verifying.Config().use_elliptic_key_verifier(public_key=self.key.with_name("key.pub"))
        )

    def library_with(self, config: Any) -> None:
        """Verify with the signature outside the folder, because the library minds an unsigned file in it."""
        outside = self.folder.with_name("outside.sig")
        self.signature.rename(outside)
        try:
            config.verify(self.folder, outside)
        finally:
            outside.rename(self.signature)

    def ours(self, subject: str = MODEL) -> None:
        verify_folder(self.folder, pem=public_pem(private_key()), model=subject)

    def decide(self, *, subject: str = MODEL, now: datetime = NOW, **changes: Any) -> None:
        evaluate(
            self.signature.read_bytes(),
            policy(**changes),
            uri=f"s3://models/{MODEL}",
            narrowing=Narrowing(subject=subject),
            now=now,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(model(tmp_path / MODEL, shard_bytes=1000), write_key(tmp_path / "key", private_key()))


def test_both_accept_what_is_right(place: Place) -> None:
    place.put(bundle(signed_statement(files=place.files())))
    place.library()
    place.ours()
    place.decide()


def legacy_predicate(place: Place) -> dict[str, Any]:
    """The predicate of signers before version 1.0, which binds neither a root digest nor a subject."""
    return bundle(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in place.files().items()],
            "predicateType": "https://model_signing/Digests/v0.1",
            "predicate": {"unused": "Unused, just passed due to API requirements"},
        }
    )


def old_encoding(place: Place) -> dict[str, Any]:
    """Signed over the text of Python's bytes, as version 0.2 did: two readings of one signature."""
    payload = json.dumps(signed_statement(files=place.files())).encode()
    document = bundle(payload)
    text = f"DSSEV1 28 application/vnd.in-toto+json {len(payload)} {payload}".encode()
    return signed_by(document, text)


def several_signatures(place: Place) -> dict[str, Any]:
    """Only the first is looked at: another reader may choose another."""
    document = bundle(signed_statement(files=place.files()))
    document["dsseEnvelope"]["signatures"].append({"sig": base64.b64encode(b"anything").decode(), "keyid": "other"})
    return document


def no_key_hint(place: Place) -> dict[str, Any]:
    """A signature that does not say by whom it claims to be."""
    document = bundle(signed_statement(files=place.files()))
    document["verificationMaterial"]["publicKey"] = {}
    return document


def a_key_beside_the_hint(place: Place) -> dict[str, Any]:
    """Another key in the bundle, which the library takes out before it looks."""
    document = bundle(signed_statement(files=place.files()))
    document["verificationMaterial"]["publicKey"]["rawBytes"] = base64.b64encode(b"another key").decode()
    return document


def names_twice(place: Place) -> dict[str, Any]:
    """One key of the envelope twice: of two readers, one takes the first."""
    return bundle(json.dumps(signed_statement(files=place.files())).replace("{", '{"_type": "other", ', 1).encode())


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (legacy_predicate, MalformedManifestError),
        (old_encoding, UntrustedSignerError),
        (several_signatures, MalformedSignatureError),
        (no_key_hint, MalformedSignatureError),
        (a_key_beside_the_hint, MalformedSignatureError),
        (names_twice, MalformedManifestError),
    ],
    ids=lambda value: value.__name__,
)
def test_the_library_accepts_and_we_refuse(
    place: Place, build: Callable[[Place], dict[str, Any]], error: type[TrustError]
) -> None:
    place.put(build(place))
    place.library()
    with pytest.raises(error):
        place.ours()
    with pytest.raises(error):
        place.decide()


def test_the_library_never_compares_the_subject(place: Place) -> None:
    place.put(bundle(signed_statement(subject="gpt-oss-20b-nightly", files=place.files())))
    place.library()
    with pytest.raises(SubjectMismatchError):
        place.ours()
    with pytest.raises(SubjectMismatchError):
        place.decide()


def test_the_library_lets_the_manifest_say_which_files_are_not_looked_at(place: Place) -> None:
    document = signed_statement(files=place.files())
    document["predicate"]["serialization"]["ignore_paths"] = ["hooks"]
    place.put(bundle(document))
    (place.folder / "hooks").mkdir()
    (place.folder / "hooks" / "load.py").write_text("import os")
    place.library()
    found = verify_folder(place.folder, pem=public_pem(private_key()), model=MODEL)
    assert found.unsigned == ("hooks/load.py",)
    assert "hooks/load.py" not in {file.name for file in found.manifest.files}


def certified(place: Place, *chain: Holder) -> None:
    place.put(signed_bundle(chain, signed_statement(files=place.files())))


def with_certificates(place: Place, *roots: Path) -> None:
    """What `model_signing verify certificate` does; raises if it refuses."""
    place.library_with(model_signing.verifying.Config().use_certificate_verifier(certificate_chain=list(roots)))


def test_the_library_judges_certificates_by_their_own_date(place: Place, tmp_path: Path) -> None:
    root = issue("root", authority=True, not_before=NOW - timedelta(days=900), not_after=NOW + timedelta(days=900))
    old = signer("release", by=root, not_before=NOW - timedelta(days=800), not_after=NOW - timedelta(days=400))
    certified(place, old)
    with_certificates(place, root.write(tmp_path / "root.pem"))
    with pytest.raises(UntrustedSignerError, match="not valid now"):
        place.decide(authorities=[certificate_authority(root)])


def test_the_library_takes_whoever_a_root_certifies(place: Place, tmp_path: Path) -> None:
    root = issue("root", authority=True, not_before=NOW - timedelta(days=9), not_after=NOW + timedelta(days=9))
    times = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=9)}
    certified(place, signer("somebody", by=root, names=[x509.DNSName("printer.acme.example")], **times))
    with_certificates(place, root.write(tmp_path / "root.pem"))
    with pytest.raises(UntrustedSignerError, match="subjectAltName"):
        place.decide(authorities=[certificate_authority(root)])


def test_the_library_takes_a_servers_certificate_for_a_signers(place: Place, tmp_path: Path) -> None:
    times = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=9)}
    root = issue("root", authority=True, **times)
    certified(place, signer("web", by=root, purposes=SERVER, **times))
    with_certificates(place, root.write(tmp_path / "root.pem"))
    with pytest.raises(UntrustedSignerError, match="code signing"):
        place.decide(authorities=[certificate_authority(root)])


def test_without_roots_the_library_falls_back_to_those_of_the_web(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=9)}
    web = issue("web", authority=True, **times)
    # One of the roots that every browser trusts, as far as the library can tell.
    monkeypatch.setattr("certifi.where", lambda: str(web.write(tmp_path / "web.pem")))
    certified(place, issue("stranger", by=web, purposes=CODE_SIGNING, **times))
    with_certificates(place)
    with pytest.raises(UntrustedSignerError, match="no authority of the policy holds roots"):
        place.decide()
    with pytest.raises(UntrustedSignerError, match="no root"):
        place.decide(authorities=[certificate_authority(issue("root", authority=True, **times))])


def logged(place: Place, instance: Instance, **certified: Any) -> None:
    place.put(instance.sign(signed_statement(files=place.files()), **certified))


def with_sigstore(place: Place, tmp_path: Path, root: dict[str, Any]) -> None:
    """What `model_signing verify sigstore` does; raises if it refuses."""
    config = tmp_path / "trust.json"
    signing = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}
    config.write_text(
        json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": root,
                "signingConfig": signing,
            }
        )
    )
    place.library_with(
        model_signing.verifying.Config().use_sigstore_verifier(
            identity=WORKFLOW, oidc_issuer=ISSUER, trust_config=config
        )
    )


def test_both_accept_the_expected_identity(place: Place, tmp_path: Path) -> None:
    instance = Instance()
    logged(place, instance)
    with_sigstore(place, tmp_path, instance.trusted_root())
    place.decide(authorities=[instance.authority()])


@pytest.mark.parametrize("which", ["authorities", "ctlogs", "tlogs"])
def test_the_library_takes_authorities_and_logs_whose_time_was_over(place: Place, tmp_path: Path, which: str) -> None:
    instance = Instance()
    logged(place, instance)
    root = instance.trusted_root(**{which: span(START, SIGNED - timedelta(days=30))})
    with_sigstore(place, tmp_path, root)
    with pytest.raises(UntrustedSignerError, match="counted when"):
        place.decide(authorities=[instance.authority(root=root)])


def test_the_library_takes_one_identity_of_several(place: Place, tmp_path: Path) -> None:
    instance = Instance()
    names = [x509.RFC822Name("mallory@acme.example"), x509.UniformResourceIdentifier(WORKFLOW)]
    logged(place, instance, names=names)
    with_sigstore(place, tmp_path, instance.trusted_root())
    with pytest.raises(MalformedSignatureError, match="exactly one identity"):
        place.decide(authorities=[instance.authority()])


def test_the_library_does_not_mind_two_issuers(place: Place, tmp_path: Path) -> None:
    instance = Instance()
    logged(place, instance, issuer="https://accounts.example", raw_issuer=ISSUER)
    with_sigstore(place, tmp_path, instance.trusted_root())
    with pytest.raises(MalformedSignatureError, match="one issuer"):
        place.decide(authorities=[instance.authority()])


def signed_by(document: dict[str, Any], text: bytes) -> dict[str, Any]:
    signature = private_key().sign(text, ec.ECDSA(hashes.SHA256()))
    document["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(signature).decode(), "keyid": ""}]
    return document
