"""Policies fail closed, deny before they allow, and say what to change."""

import hashlib
import json

import pytest

from gptoss_api.policy import WeightTrustPolicy
from gptoss_weights.errors import (
    AmbiguousPolicyError,
    DeniedDigestError,
    InvalidPolicyError,
    ManifestChangedError,
    NoPolicyError,
    PolicyNotFoundError,
    SourceNotAllowedError,
    SubjectMismatchError,
    UnsignedError,
    UntrustedSignerError,
)
from gptoss_weights.policy import check_source, evaluate, select_policy
from tests.unit.weights.builders import MODEL, bundle, policy, private_key, public_pem, statement, text

URI = f"s3://models/{MODEL}"


def judge(document=None, spec=None, **changes):
    raw = text(document or bundle())
    return evaluate(raw, spec or policy(), **{"uri": URI, "model_name": MODEL, **changes})


def digest_of(document):
    return "sha256:" + hashlib.sha256(json.dumps(document).encode()).hexdigest()


def test_trusts_what_a_known_key_signed_as_this_model():
    decision = judge()
    assert decision.authority_name == "release-team"
    assert decision.manifest_digest == digest_of(statement())
    assert decision.signer_fingerprint.startswith("sha256:")


def test_unsigned():
    with pytest.raises(UnsignedError, match="gptoss weights sign"):
        evaluate(None, policy(), uri=URI, model_name=MODEL)


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
        judge(bundle(statement(subject="llama")), spec, model_name="llama")


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


def test_a_pinned_digest_narrows():
    assert judge(pinned_digest=digest_of(statement()))
    with pytest.raises(ManifestChangedError):
        judge(pinned_digest="sha256:" + "0" * 64)


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
        evaluate(None, policy(), uri="s3://elsewhere/x", model_name=MODEL)


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
