"""Certificates count only if a root of the policy vouches for exactly the expected signer, now."""

import base64
from datetime import timedelta
from functools import cache

import model_signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gptoss_weights.errors import (
    DeniedIdentityError,
    DeniedKeyError,
    InvalidPolicyError,
    MalformedSignatureError,
    UntrustedSignerError,
)
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.signature import key_fingerprint, parse_bundle
from tests.unit.weights.builders import MODEL, bundle, model, policy, private_key, public_pem, text, write_key
from tests.unit.weights.pki import (
    CODE_SIGNING,
    IDENTITY,
    NOW,
    SERVER,
    YEAR,
    Holder,
    certificate_authority,
    issue,
    signed_bundle,
    signer,
)

SECOND = timedelta(seconds=1)


@cache
def root() -> Holder:
    return issue("root", authority=True, not_after=NOW + 10 * YEAR)


@cache
def intermediate() -> Holder:
    return issue("intermediate", by=root(), authority=True, path_length=0, not_after=NOW + 5 * YEAR)


def judge(*chain, authorities=None, denied=None, now=NOW, document=None, **expected):
    spec = policy(
        authorities=authorities or [certificate_authority(root(), **expected)], **({"denied": denied} if denied else {})
    )
    return evaluate(
        text(document or signed_bundle(chain)),
        spec,
        uri=f"s3://models/{MODEL}",
        narrowing=Narrowing(subject=MODEL),
        now=now,
    )


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_chain_that_ends_in_a_root_of_the_policy_is_trusted(curve):
    leaf = signer("release", by=intermediate(), key=private_key("leaf", curve))
    decision = judge(leaf, intermediate())
    assert decision.authority_name == "acme"
    assert decision.signer_fingerprint == key_fingerprint(leaf.key.public_key())
    assert decision.valid_until == leaf.certificate.not_valid_after_utc


def test_the_root_may_come_along_and_an_intermediate_may_be_a_root():
    leaf = signer("release", by=intermediate())
    assert judge(leaf, intermediate(), root())
    assert judge(leaf, authorities=[certificate_authority(intermediate())])


REFUSED = {
    "an unknown root": lambda: [signer("release", by=issue("stranger", authority=True))],
    "an unknown root that calls itself as ours": lambda: [signer("release", by=issue("root", authority=True))],
    "its own root": lambda: (lambda own: [signer("release", by=own), own])(issue("own", authority=True)),
    "signed by itself": lambda: [issue("release", purposes=CODE_SIGNING)],
    "a missing intermediate": lambda: [signer("release", by=intermediate())],
    "expired a moment ago": lambda: [signer("release", by=root(), not_after=NOW)],
    "not valid yet": lambda: [signer("release", by=root(), not_before=NOW + SECOND)],
    "for servers": lambda: [signer("release", by=root(), purposes=SERVER)],
    "for everything": lambda: [
        signer("release", by=root(), purposes=(x509.ObjectIdentifier("2.5.29.37.0"),)),
    ],
    "for nothing in particular": lambda: [signer("release", by=root(), purposes=())],
    "not for signatures": lambda: [signer("release", by=root(), digital_signature=False)],
    "an authority's own": lambda: [
        signer(
            "release",
            by=root(),
            authority=True,
            digital_signature=True,
            names=[x509.UniformResourceIdentifier("spiffe://acme/release")],
        )
    ],
    "issued by a signer": lambda: (lambda middle: [signer("release", by=middle), middle])(signer("middle", by=root())),
    "a path that is too long": lambda: (lambda second: [signer("release", by=second), second, intermediate()])(
        issue("second", by=intermediate(), authority=True)
    ),
    "an expired intermediate": lambda: (lambda old: [signer("release", by=old), old])(
        issue("old", by=root(), authority=True, not_after=NOW - SECOND)
    ),
    "an authority for servers": lambda: (lambda web: [signer("release", by=web), web])(
        issue("web", by=root(), authority=True, purposes=SERVER)
    ),
    "a constraint nobody understands": lambda: [
        signer(
            "release",
            by=root(),
            extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)],
        )
    ],
    "another identity": lambda: [
        signer("release", by=root(), names=[x509.UniformResourceIdentifier("spiffe://acme/nightly")])
    ],
    "an identity that only begins like it": lambda: [
        signer("release", by=root(), names=[x509.UniformResourceIdentifier("spiffe://acme/release/2")])
    ],
    "the identity as another kind of name": lambda: [
        signer("release", by=root(), names=[x509.DNSName("spiffe://acme/release")])
    ],
    "no identity": lambda: [signer("release", by=root(), names=())],
}


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(build):
    with pytest.raises(UntrustedSignerError):
        judge(*build())


def test_a_chain_is_judged_by_the_time_of_the_decision():
    leaf = signer("release", by=root(), not_after=NOW + YEAR)
    assert judge(leaf, now=NOW + YEAR - SECOND)
    with pytest.raises(UntrustedSignerError, match="not valid now"):
        judge(leaf, now=NOW + YEAR)


def test_an_expired_root_vouches_for_nobody():
    old = issue("old-root", authority=True, not_after=NOW - SECOND)
    with pytest.raises(UntrustedSignerError, match="no root"):
        judge(signer("release", by=old), authorities=[certificate_authority(old)])


def test_a_decision_ends_with_the_first_of_the_chain_to_end():
    short = issue("short", by=root(), authority=True, not_after=NOW + SECOND)
    assert judge(signer("release", by=short), short).valid_until == NOW + SECOND


@pytest.mark.parametrize(
    ("expected", "trusted"),
    [
        ({"subject": "CN=release,O=Acme"}, True),
        ({"subject": "CN=release,O=Acme", "subjectAltName": IDENTITY}, True),
        ({"subject": "CN=release"}, False),
        ({"subject": "cn=release,o=acme"}, False),
        ({"subject": "CN=nightly,O=Acme", "subjectAltName": IDENTITY}, False),
        ({"subject": "CN=release,O=Acme", "subjectAltName": "URI:spiffe://acme/other"}, False),
        ({"subjectAltName": "email:release@acme.example"}, True),
        ({"subjectAltName": "DNS:release.acme.example"}, True),
        ({"subjectAltName": "DNS:acme.example"}, False),
    ],
)
def test_subject_and_name_are_the_expected_ones_whole_and_both(expected, trusted):
    leaf = signer(
        "release",
        by=root(),
        names=[
            x509.UniformResourceIdentifier("spiffe://acme/release"),
            x509.RFC822Name("release@acme.example"),
            x509.DNSName("release.acme.example"),
        ],
    )
    if trusted:
        assert judge(leaf, **expected)
    else:
        with pytest.raises(UntrustedSignerError):
            judge(leaf, **expected)


def test_a_policy_without_roots_trusts_no_certificate():
    only_a_key = {"name": "a", "models": ["*"], "key": {"publicKeyPEM": public_pem(private_key())}}
    with pytest.raises(UntrustedSignerError, match="holds roots"):
        judge(signer("release", by=root()), root(), authorities=[only_a_key])


def test_a_signature_of_another_key_than_the_certificates_does_not_hold():
    document = signed_bundle([signer("release", by=root())])
    document["dsseEnvelope"] = bundle(key=private_key("stranger"))["dsseEnvelope"]
    with pytest.raises(UntrustedSignerError, match="does not hold"):
        judge(document=document)


@pytest.mark.parametrize("who", ["the signer", "the intermediate"])
def test_a_denied_key_anywhere_in_the_chain_denies(who):
    leaf = signer("release", by=intermediate())
    key = (leaf if who == "the signer" else intermediate()).key
    with pytest.raises(DeniedKeyError):
        judge(leaf, intermediate(), denied={"keyFingerprints": [key_fingerprint(key.public_key())]})


@pytest.mark.parametrize("who", ["the intermediate", "the root"])
def test_a_denied_key_denies_though_the_bundle_does_not_show_it(who):
    roots = [intermediate()] if who == "the intermediate" else [root()]
    chain = [signer("release", by=intermediate()), *([] if who == "the intermediate" else [intermediate()])]
    assert judge(*chain, authorities=[certificate_authority(*roots)])
    denied = {"keyFingerprints": [key_fingerprint(roots[0].key.public_key())]}
    with pytest.raises(DeniedKeyError):
        judge(*chain, authorities=[certificate_authority(*roots)], denied=denied)


@pytest.mark.parametrize("name", [IDENTITY, IDENTITY.upper(), "CN=release,O=Acme"])
def test_a_denied_name_denies(name):
    with pytest.raises(DeniedIdentityError):
        judge(signer("release", by=root()), denied={"identities": [name]})


def test_two_authorities_with_certificates_and_one_with_a_key_stand_side_by_side():
    other = issue("other-root", authority=True)
    authorities = [
        certificate_authority(other, name="first"),
        certificate_authority(root(), name="second"),
        {"name": "third", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_pem(private_key())}},
    ]
    assert judge(signer("release", by=root()), authorities=authorities).authority_name == "second"
    assert judge(signer("release", by=other), authorities=authorities).authority_name == "first"
    assert judge(document=bundle(), authorities=authorities).authority_name == "third"


@pytest.mark.parametrize(
    "roots",
    ["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + "x" * 64, "-----BEGIN CERTIFICATE-----" * 3],
)
def test_roots_that_can_not_be_read_close_the_policy(roots):
    broken = certificate_authority(root(), name="broken")
    broken["certificate"]["rootsPEM"] = roots
    good = certificate_authority(root(), name="good")
    with pytest.raises(InvalidPolicyError, match="broken"):
        judge(signer("release", by=root()), authorities=[good, broken])


def test_a_signers_own_certificate_is_no_root():
    leaf = signer("release", by=root())
    with pytest.raises(InvalidPolicyError, match="not a certificate authority"):
        judge(leaf, authorities=[certificate_authority(leaf)])


@pytest.mark.parametrize("changes", [{"key": None, "certificate": None}, {}])
def test_an_authority_with_neither_key_nor_roots_or_both_closes_the_policy(changes):
    both = {**certificate_authority(root()), "key": {"publicKeyPEM": public_pem(private_key())}}
    with pytest.raises(InvalidPolicyError, match="exactly one"):
        judge(signer("release", by=root()), authorities=[{**both, **changes}])


def test_keys_of_other_kinds_are_refused():
    leaf = signer("release", by=root(), key=rsa.generate_private_key(65537, 2048))
    document = signed_bundle([signer("release", by=root())])
    document["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = base64.b64encode(
        leaf.der
    ).decode()
    with pytest.raises(MalformedSignatureError, match="elliptic-curve"):
        judge(document=document)


def test_a_curve_that_we_do_not_know_signs_nothing():
    leaf = signer("release", by=root(), key=ec.generate_private_key(ec.SECP256K1()))
    document = signed_bundle([signer("release", by=root())])
    document["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = base64.b64encode(
        leaf.der
    ).decode()
    with pytest.raises(UntrustedSignerError, match="does not hold"):
        judge(document=document)


def material(**changes):
    document = signed_bundle([signer("release", by=root())])
    document["verificationMaterial"] = {**document["verificationMaterial"], **changes}
    return document


@pytest.mark.parametrize(
    "document",
    [
        material(publicKey={"hint": "0" * 64}),
        material(x509CertificateChain={"certificates": []}),
        material(x509CertificateChain={"certificates": [{"rawBytes": "AAAA"}] * 9}),
        material(x509CertificateChain={"certificates": [{"rawBytes": "AAAA", "more": 1}]}),
        material(x509CertificateChain={"certificates": "AAAA"}),
        material(x509CertificateChain=[]),
        material(x509CertificateChain={"certificates": [{"rawBytes": "A" * 30000}]}),
        material(tlogEntries=[{}]),
    ],
)
def test_bundles_with_certificates_are_read_in_one_way_only(document):
    with pytest.raises(MalformedSignatureError):
        parse_bundle(text(document))


def test_certificates_that_are_none_are_malformed():
    with pytest.raises(MalformedSignatureError, match="can't be read"):
        judge(document=material(x509CertificateChain={"certificates": [{"rawBytes": "AAAA"}]}))


def test_we_trust_what_model_signing_signs_with_a_certificate(tmp_path):
    leaf = signer("release", by=intermediate())
    folder = model(tmp_path / MODEL, shard_bytes=1000).folder
    model_signing.signing.Config().use_certificate_signer(
        private_key=write_key(tmp_path / "key", leaf.key),
        signing_certificate=leaf.write(tmp_path / "leaf.pem"),
        certificate_chain=[intermediate().write(tmp_path / "intermediate.pem")],
    ).sign(folder, folder / "model.sig")
    decision = evaluate(
        (folder / "model.sig").read_bytes(),
        policy(authorities=[certificate_authority(root())]),
        uri=f"s3://models/{MODEL}",
        narrowing=Narrowing(subject=MODEL),
        now=NOW,
    )
    assert decision.authority_name == "acme"
    assert decision.manifest.subject == MODEL
