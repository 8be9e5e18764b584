"""Policies fail closed, deny before they allow, and say what to change."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_weights.errors import (
    AmbiguousPolicyError,
    AuditNotAllowedError,
    BrokenSignatureError,
    DeniedDigestError,
    DeniedKeyError,
    ForbiddenContentError,
    InvalidPolicyError,
    MalformedManifestError,
    MalformedSignatureError,
    ManifestChangedError,
    NoPolicyError,
    PolicyNotFoundError,
    SourceNotAllowedError,
    SubjectMismatchError,
    TrustError,
    UnsignedError,
    UntrustedSignerError,
)
from gptoss_weights.policy import Narrowing, check_source, evaluate, revocation, select_policy
from gptoss_weights.signature import key_fingerprint
from tests.unit.weights.builders import MODEL, bundle, policy, private_key, public_pem, statement, text

URI = f"s3://models/{MODEL}"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def judge(document=None, spec=None, *, now=NOW, **narrowing):
    raw = text(document or bundle())
    return evaluate(raw, spec or policy(), uri=URI, narrowing=Narrowing(**{"subject": MODEL, **narrowing}), now=now)


def authority(name="release-team", *, key=None, models=("gpt-oss-*",), not_before=None, not_after=None):
    times = {"notBefore": not_before, "notAfter": not_after}
    pem = public_pem(key or private_key())
    return {"name": name, "models": list(models), "key": {"publicKeyPEM": pem}} | {
        name: time.isoformat() for name, time in times.items() if time
    }


def digest_of(document):
    return "sha256:" + hashlib.sha256(json.dumps(document).encode()).hexdigest()


def test_trusts_what_a_known_key_signed_as_this_model():
    decision = judge()
    assert decision.authority_name == "release-team"
    assert decision.manifest_digest == digest_of(statement())
    assert decision.signer_fingerprint.startswith("sha256:")


def test_unsigned():
    with pytest.raises(UnsignedError, match="gptoss weights sign"):
        evaluate(None, policy(), uri=URI, narrowing=Narrowing(subject=MODEL), now=NOW)


def test_signed_by_an_unknown_key():
    with pytest.raises(UntrustedSignerError):
        judge(bundle(key=private_key("stranger")))


def test_signed_as_another_model():
    with pytest.raises(SubjectMismatchError, match=MODEL):
        judge(bundle(statement(subject="gpt-oss-20b")))


def test_a_subject_is_not_a_prefix_and_case_counts():
    for other in (MODEL + "-2", MODEL[:-1], MODEL.upper()):
        with pytest.raises(SubjectMismatchError):
            judge(bundle(statement(subject=other)))


def test_an_authority_signs_only_its_own_models():
    spec = policy()
    with pytest.raises(UntrustedSignerError, match="may not sign"):
        judge(bundle(statement(subject="llama")), spec, subject="llama")


def test_the_same_key_may_stand_in_two_authorities():
    key = {"publicKeyPEM": public_pem(private_key())}
    spec = policy(
        authorities=[
            {"name": "first", "models": ["llama"], "key": key},
            {"name": "second", "models": ["gpt-oss-*"], "key": key},
        ]
    )
    assert judge(spec=spec).authority_name == "second"


def test_deny_beats_allow():
    spec = policy(denied={"manifestDigests": [digest_of(statement())]})
    with pytest.raises(DeniedDigestError):
        judge(spec=spec)


def test_a_denied_key_beats_every_authority_that_holds_it():
    fingerprint = key_fingerprint(private_key().public_key())
    both = [authority("one"), authority("two"), authority("other", key=private_key("other"))]
    spec = policy(authorities=both, denied={"keyFingerprints": [fingerprint]})
    with pytest.raises(DeniedKeyError, match=fingerprint):
        judge(spec=spec)
    assert judge(bundle(key=private_key("other")), spec).authority_name == "other"


def test_a_denied_digest_is_told_before_the_signer_is_asked():
    spec = policy(denied={"manifestDigests": [digest_of(statement())]})
    with pytest.raises(DeniedDigestError):
        judge(bundle(key=private_key("stranger")), spec)


@pytest.mark.parametrize(
    ("not_before", "not_after", "problem"),
    [
        (None, None, None),
        (NOW, None, None),
        (NOW - DAY, NOW + DAY, None),
        (NOW + timedelta(seconds=1), None, "notBefore"),
        (None, NOW, "notAfter has passed"),
        (NOW - 2 * DAY, NOW - DAY, "notAfter has passed"),
    ],
)
def test_an_authority_counts_from_not_before_until_not_after(not_before, not_after, problem):
    spec = policy(authorities=[authority(not_before=not_before, not_after=not_after)])
    if problem is None:
        assert judge(spec=spec).valid_until == not_after
    else:
        with pytest.raises(UntrustedSignerError, match=problem):
            judge(spec=spec)


def test_while_keys_rotate_both_count_and_the_decision_says_which_one_matched():
    old, new = private_key("trusted"), private_key("next", ec.SECP384R1)
    spec = policy(authorities=[authority("old", key=old, not_after=NOW + DAY), authority("new", key=new)])
    assert judge(bundle(key=old), spec).authority_name == "old"
    assert judge(bundle(key=new), spec).authority_name == "new"
    assert judge(bundle(key=new), spec, now=NOW + DAY).authority_name == "new"
    with pytest.raises(UntrustedSignerError, match="authority old signed"):
        judge(bundle(key=old), spec, now=NOW + DAY)


def test_of_two_authorities_with_one_key_the_one_that_counts_longest_is_told():
    spec = policy(
        authorities=[
            authority("gone", not_after=NOW - DAY),
            authority("soon-over", not_after=NOW + DAY),
            authority("later", not_after=NOW + 2 * DAY),
            authority("other-models", models=("llama",)),
        ]
    )
    decision = judge(spec=spec)
    assert (decision.authority_name, decision.valid_until) == ("later", NOW + 2 * DAY)


def test_a_deployment_narrows_to_one_authority():
    spec = policy(authorities=[authority("one"), authority("two"), authority("other", key=private_key("other"))])
    assert judge(spec=spec, authority="two").authority_name == "two"
    for unwilling in ("other", "nobody"):
        with pytest.raises(UntrustedSignerError, match=r"spec\.verification\.authority"):
            judge(spec=spec, authority=unwilling)


def test_narrowing_widens_nothing():
    spec = policy(
        authorities=[authority("one", models=("llama",)), authority("two", not_after=NOW)],
        denied={"keyFingerprints": []},
    )
    for name in ("one", "two"):
        with pytest.raises(UntrustedSignerError):
            judge(spec=spec, authority=name, manifest_digest=digest_of(statement()))


def audited(document=None, *, allow=True, **more):
    spec = more.pop("spec", {})
    return judge(document, policy(allowAudit=allow, **spec), audit=True, **more)


@pytest.mark.parametrize(
    ("document", "spec", "problem"),
    [
        (lambda: bundle(key=private_key("stranger")), {}, "no authority of the policy holds"),
        (lambda: bundle(), {"authorities": [authority(models=("llama",))]}, "may not sign"),
        (lambda: bundle(), {"authorities": [authority(not_after=NOW)]}, "notAfter"),
    ],
    ids=["a stranger", "another model's signer", "an authority whose time is over"],
)
def test_audit_waives_the_signer_and_says_so(document, spec, problem):
    with pytest.raises(UntrustedSignerError):
        judge(document(), policy(**spec))
    decision = audited(document(), spec=spec)
    assert problem in decision.waived
    assert decision.authority_name == ""
    assert decision.manifest_digest == digest_of(statement())


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_whose_signature_it_is_is_known_of_strangers_too(curve):
    for _ in range(20):  # of the two keys that fit a signature, chance says which is tried first
        stranger = ec.generate_private_key(curve())
        fingerprint = key_fingerprint(stranger.public_key())
        found = audited(bundle(key=stranger))
        assert found.signer_fingerprint == fingerprint
        assert fingerprint in found.waived
        with pytest.raises(DeniedKeyError, match=fingerprint):
            judge(bundle(key=stranger), policy(denied={"keyFingerprints": [fingerprint]}))


@pytest.mark.parametrize("signature", [b"", b"x", b"0" * 70, bytes.fromhex("3006020101020101")])
def test_what_is_no_signature_is_nobodys_in_audit_too(signature):
    document = bundle(key=private_key("stranger"))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    with pytest.raises(TrustError):
        audited(document)


def test_audit_of_a_trusted_signer_is_as_good_as_enforcing():
    assert audited().waived is None
    assert audited().authority_name == "release-team"


def test_audit_only_where_the_policy_permits_it():
    for document in (bundle(), bundle(key=private_key("stranger"))):
        with pytest.raises(AuditNotAllowedError, match="allowAudit"):
            audited(document, allow=False)


def forged():
    document = bundle(key=private_key("stranger"))
    return {**document, "verificationMaterial": bundle()["verificationMaterial"]}


STRANGER = private_key("stranger")


def of_nobody():
    """A stranger's hint, and another's signature: nobody here holds either key."""
    document = bundle(key=STRANGER)
    return {**document, "dsseEnvelope": bundle(key=private_key("another stranger"))["dsseEnvelope"]}


@pytest.mark.parametrize(
    ("document", "spec", "narrowing", "error"),
    [
        (lambda: None, {}, {}, UnsignedError),
        (lambda: {**bundle(), "more": 1}, {}, {}, MalformedSignatureError),
        (forged, {}, {}, BrokenSignatureError),
        (lambda: bundle(statement(subject="gpt-oss-20b"), key=STRANGER), {}, {}, SubjectMismatchError),
        (lambda: bundle(statement(files={"../x.json": "a" * 64}), key=STRANGER), {}, {}, MalformedManifestError),
        (lambda: bundle(statement(files={"x.pkl": "a" * 64}), key=STRANGER), {}, {}, ForbiddenContentError),
        (lambda: bundle(key=STRANGER), {}, {"manifest_digest": "sha256:" + "0" * 64}, ManifestChangedError),
        (
            lambda: bundle(key=STRANGER),
            {"denied": {"manifestDigests": [digest_of(statement())]}},
            {},
            DeniedDigestError,
        ),
        (
            lambda: bundle(),
            {"denied": {"keyFingerprints": [key_fingerprint(private_key().public_key())]}},
            {},
            DeniedKeyError,
        ),
        (
            lambda: bundle(key=STRANGER),
            {"denied": {"keyFingerprints": [key_fingerprint(STRANGER.public_key())]}},
            {},
            DeniedKeyError,
        ),
        (of_nobody, {}, {}, BrokenSignatureError),
        (lambda: bundle(key=STRANGER), {"sources": [{"prefix": "s3://elsewhere"}]}, {}, SourceNotAllowedError),
    ],
    ids=[
        "unsigned", "malformed", "forged", "another subject", "unsafe names", "forbidden content", "another manifest",
        "a denied manifest", "a denied key", "a denied key of a stranger", "a signature of nobody", "another place",
    ],
)  # fmt: skip
def test_audit_waives_nothing_but_the_signer(document, spec, narrowing, error):
    found = document()
    values = {"sources": [{"prefix": "s3://models"}], "authorities": [authority()], "allowAudit": True, **spec}
    raw = text(found) if found is not None else None
    asked = Narrowing(**{"subject": MODEL, "audit": True, **narrowing})
    with pytest.raises(error):
        evaluate(raw, WeightTrustPolicySpec.model_validate(values), uri=URI, narrowing=asked, now=NOW)


@pytest.mark.parametrize(
    ("denied", "reason"),
    [
        ({}, None),
        ({"manifestDigests": ["sha256:" + "1" * 64]}, "DeniedDigest"),
        ({"keyFingerprints": ["sha256:" + "2" * 64]}, "DeniedKey"),
        ({"manifestDigests": ["sha256:" + "2" * 64], "keyFingerprints": ["sha256:" + "1" * 64]}, None),
    ],
)
def test_what_was_accepted_is_revoked_by_its_manifest_or_its_key(denied, reason):
    found = revocation(policy(denied=denied), manifest_digest="sha256:" + "1" * 64, signer="sha256:" + "2" * 64)
    assert (found.reason if found is not None else None) == reason


def test_a_signer_that_nobody_knows_is_not_denied():
    spec = policy(denied={"keyFingerprints": ["sha256:" + "2" * 64]})
    assert revocation(spec, manifest_digest="sha256:" + "1" * 64, signer="") is None


def test_a_pinned_digest_narrows():
    assert judge(manifest_digest=digest_of(statement()))
    with pytest.raises(ManifestChangedError):
        judge(manifest_digest="sha256:" + "0" * 64)


def test_one_unusable_key_closes_the_policy():
    good = {"name": "good", "models": ["*"], "key": {"publicKeyPEM": public_pem(private_key())}}
    bad = {"name": "bad", "models": ["*"], "key": {"publicKeyPEM": "-----BEGIN PUBLIC KEY-----" + "A" * 64}}
    with pytest.raises(InvalidPolicyError, match="bad"):
        judge(spec=policy(authorities=[good, bad]))


@pytest.mark.parametrize(
    ("prefix", "uri", "allowed"),
    [
        ("s3://models", "s3://models/gpt", True),
        ("s3://models/", "s3://models/gpt", True),
        ("s3://models", "s3://models", True),
        ("s3://models/gpt", "s3://models/gpt/", True),
        ("s3://models/gpt", "s3://models/gpt/v1", True),
        ("s3://models/gpt", "s3://models/gpt-oss", False),
        ("s3://models", "s3://models2/gpt", False),
        ("s3://models/gpt", "s3://models", False),
        ("s3://models/gpt", "s3://models/gpt/../secret", False),
        ("s3://models/gpt", "s3://models/gpt//x", False),
        ("s3://models/gpt", "s3://models/gpt/%2e%2e/x", False),
        ("s3://models", "s3://Models/gpt", False),
        ("az://models", "az://models/gpt", True),
        ("az://models/gpt", "az://models/gpt/v1/", True),
        ("az://models/gpt", "az://models/gpt-oss", False),
        ("az://models", "az://models-2/gpt", False),
        ("az://models", "s3://models/gpt", False),
        ("s3://models", "az://models/gpt", False),
        ("az://models", "az://models/gpt.", False),
        ("hf://acme", "hf://acme/gpt", True),
        ("hf://acme/gpt", "hf://acme/gpt/", True),
        ("hf://acme", "hf://acme-evil/gpt", False),
        ("hf://acme", "hf://Acme/gpt", False),
        ("hf://acme/gpt", "hf://acme/gpt-2", False),
        ("hf://acme", "s3://acme/gpt", False),
        ("s3://models", "file:///models/gpt", False),
        ("file:///srv/models", "file:///srv/models/a", True),
        ("file:///srv/models", "file:///srv/models-2/a", False),
        ("file:///srv/models", "file://host/srv/models/a", False),
        ("s3://models", "s3://key@models/gpt", False),
        ("s3://models", "s3://models/gpt?versionId=1", False),
        ("s3://models", "http://models/gpt", False),
        ("s3://models", "s3:///models/gpt", False),
        ("s3://models", "s3://models/a\\b", False),
        ("s3://models", "s3://models/a b", False),
        ("s3://models", "s3://models/" + "a" * 2000, False),
    ],
)
def test_sources_match_on_segment_boundaries_and_in_one_reading(prefix, uri, allowed):
    spec = policy(sources=(prefix,))
    if allowed:
        assert check_source(uri, spec)
    else:
        with pytest.raises(SourceNotAllowedError):
            check_source(uri, spec)


def test_the_source_is_asked_about_before_anything_else():
    with pytest.raises(SourceNotAllowedError):
        evaluate(None, policy(), uri="s3://elsewhere/x", narrowing=Narrowing(subject=MODEL), now=NOW)


def named(name, **spec):
    return WeightTrustPolicy(name=name, spec=policy(**spec))


def choose(*policies, labels=None, ref=None, namespace="ml"):
    return select_policy(policies, namespace=namespace, namespace_labels=labels or {}, policy_ref=ref)


def test_the_one_default_applies():
    assert choose(named("other"), named("base", default=True)).name == "base"


def test_no_policy_and_no_default():
    for policies in ((), (named("other"),)):
        with pytest.raises(NoPolicyError, match="default: true"):
            choose(*policies)


def test_two_defaults_are_ambiguous_and_named():
    with pytest.raises(AmbiguousPolicyError, match="a, b"):
        choose(named("b", default=True), named("a", default=True))


def test_a_named_policy_must_exist_and_select_the_namespace():
    elsewhere = named("p", namespaceSelector={"matchLabels": {"team": "b"}})
    assert choose(elsewhere, labels={"team": "b"}, ref="p").name == "p"
    with pytest.raises(NoPolicyError, match="does not select"):
        choose(elsewhere, labels={"team": "a"}, ref="p")
    with pytest.raises(PolicyNotFoundError):
        choose(named("base", default=True), ref="p")


@pytest.mark.parametrize(
    ("expression", "labels", "selects"),
    [
        ({"operator": "In", "values": ["a"]}, {"team": "a"}, True),
        ({"operator": "In", "values": ["a"]}, {}, False),
        ({"operator": "NotIn", "values": ["a"]}, {"team": "a"}, False),
        ({"operator": "NotIn", "values": ["a"]}, {}, True),
        ({"operator": "Exists"}, {"team": ""}, True),
        ({"operator": "Exists"}, {}, False),
        ({"operator": "DoesNotExist"}, {}, True),
        ({"operator": "DoesNotExist"}, {"team": "x"}, False),
    ],
)
def test_selectors_follow_kubernetes(expression, labels, selects):
    candidate = named("p", default=True, namespaceSelector={"matchExpressions": [{"key": "team", **expression}]})
    if selects:
        assert choose(candidate, labels=labels)
    else:
        with pytest.raises(NoPolicyError):
            choose(candidate, labels=labels)


def test_a_namespace_can_not_borrow_the_name_label_of_another():
    only_prod = named("p", default=True, namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "prod"}})
    assert choose(only_prod, namespace="prod")
    with pytest.raises(NoPolicyError):
        choose(only_prod, namespace="ml", labels={"kubernetes.io/metadata.name": "prod"})
