"""What the `model_signing` library accepts of certificates and Sigstore identities, and we refuse.

As in `test_library_gaps`, every test shows both halves.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography import x509

from gptoss_weights.errors import MalformedSignatureError, UntrustedSignerError
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import ISSUER, SIGNED, START, WORKFLOW, Instance, span, trust_config
from tests.unit.weights.pki import CODE_SIGNING, SERVER, Holder, certificate_authority, issue, signed_bundle, signer
from tests.unit.weights.place import NOW, Place, place

__all__ = ["place"]


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
    config.write_text(json.dumps(trust_config(root)))
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
