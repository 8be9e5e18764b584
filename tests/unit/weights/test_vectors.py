"""What the test vectors of OpenSSF's Model Signing specification mean, made with keys of our own.

Both the library and we accept the valid ones and refuse the others; where the library alone accepts something is in
``test_library_gaps``.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gptoss_weights.errors import TrustError
from tests.unit.weights.builders import bundle, private_key, public_pem
from tests.unit.weights.builders import statement as signed_statement
from tests.unit.weights.instance import Instance
from tests.unit.weights.pki import Holder, certificate_authority, issue, signed_bundle, signer
from tests.unit.weights.place import NOW, Place, place
from tests.unit.weights.test_library_gaps_certified import with_certificates, with_sigstore

__all__ = ["place"]

ROOT: Holder = issue("root", authority=True, not_before=NOW - timedelta(days=9), not_after=NOW + timedelta(days=9))
INSTANCE = Instance()
AUTHORITIES = [
    {"name": "key", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_pem(private_key())}},
    certificate_authority(ROOT, name="certificate"),
    INSTANCE.authority("sigstore"),
]


def with_key(place: Place, **changes: Any) -> dict[str, Any]:
    return bundle({**signed_statement(files=place.files()), **changes})


def with_certificate(place: Place) -> dict[str, Any]:
    times = {"not_before": NOW - timedelta(days=9), "not_after": NOW + timedelta(days=9)}
    return signed_bundle([signer("release", by=ROOT, **times)], signed_statement(files=place.files()))


def with_identity(place: Place) -> dict[str, Any]:
    return INSTANCE.sign(signed_statement(files=place.files()))


def asked(place: Place, tmp_path: Path, kind: str) -> None:
    """What `model_signing verify` does for this kind of signature; raises if it refuses."""
    match kind:
        case "key":
            place.library()
        case "certificate":
            with_certificates(place, ROOT.write(tmp_path / "root.pem"))
        case "sigstore":
            with_sigstore(place, tmp_path, INSTANCE.trusted_root())


VALID = {"key": with_key, "certificate": with_certificate, "sigstore": with_identity}


@pytest.mark.parametrize("kind", VALID)
def test_valid(place: Place, tmp_path: Path, kind: str) -> None:
    place.put(VALID[kind](place))
    asked(place, tmp_path, kind)
    place.decide(authorities=AUTHORITIES)


def without(*path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def spoil(document: dict[str, Any]) -> dict[str, Any]:
        holder = document
        for each in path[:-1]:
            holder = holder[each]
        del holder[path[-1]]
        return document

    return spoil


INVALID: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str, str]] = {
    "empty": (lambda _: {}, "key", "MalformedSignature"),
    "missing envelope": (without("dsseEnvelope"), "key", "MalformedSignature"),
    "missing material": (without("verificationMaterial"), "key", "MalformedSignature"),
    "missing log entries": (without("verificationMaterial", "tlogEntries"), "sigstore", "MalformedSignature"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid(place: Place, tmp_path: Path, name: str) -> None:
    spoil, kind, reason = INVALID[name]
    place.put(spoil(VALID[kind](place)))
    refused_by_both(place, tmp_path, kind, reason)


def test_a_wrong_predicate(place: Place, tmp_path: Path) -> None:
    place.put(with_key(place, predicateType="https://slsa.dev/provenance/v1"))
    refused_by_both(place, tmp_path, "key", "MalformedManifest")


def test_no_bytes_at_all(place: Place, tmp_path: Path) -> None:
    place.signature.write_bytes(b"")
    refused_by_both(place, tmp_path, "key", "MalformedSignature")


def refused_by_both(place: Place, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - of whatever kind: that is a gap of its own
        asked(place, tmp_path, kind)
    with pytest.raises(TrustError) as caught:
        place.decide(authorities=AUTHORITIES)
    assert caught.value.reason == reason
