"""Releases go forward only, unless an administrator lists an older one again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_api.policy import WeightTrustPolicyStatus
from gptoss_weights.errors import InvalidPolicyError, RollbackError, TrustError, UnlistedReleaseError
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.releases import check_release
from tests.unit.weights.builders import MODEL, bundle, policy, private_key, text
from tests.unit.weights.test_policy import NOW, URI, digest_of, statement

ONE, TWO, THREE = ("sha256:" + digit * 64 for digit in "123")


def accepted(digest=None, model=MODEL):
    release = {"model": model, "manifestDigest": digest, "acceptedAt": "2026-01-01T00:00:00Z"}
    return WeightTrustPolicyStatus.model_validate({"releases": [release] if digest else []})


def check(digest, *listed, highest=None, model=MODEL):
    releases = [{"model": MODEL, "manifestDigests": list(listed)}] if listed else []
    return check_release(policy(releases=releases), accepted(highest), model=model, manifest_digest=digest)


def test_a_model_without_a_list_is_not_guarded():
    assert check(ONE) is False
    assert check(ONE, TWO, model="gpt-oss-other") is False


def test_the_first_and_every_higher_release_is_recorded_and_the_same_is_not():
    assert check(ONE, ONE, TWO) is True
    assert check(TWO, ONE, TWO, highest=ONE) is True
    assert check(TWO, ONE, TWO, highest=TWO) is False


def test_a_lower_release_is_refused():
    with pytest.raises(RollbackError, match=TWO):
        check(ONE, ONE, TWO, highest=TWO)


def test_what_is_not_listed_is_refused():
    with pytest.raises(UnlistedReleaseError):
        check(THREE, ONE, TWO)


def test_a_list_that_lost_what_was_accepted_accepts_nothing():
    with pytest.raises(InvalidPolicyError, match=THREE):
        check(TWO, ONE, TWO, highest=THREE)


def test_an_administrator_goes_back_by_listing_the_older_one_again():
    assert check(ONE, ONE, TWO, ONE, highest=TWO) is True
    assert check(ONE, TWO, ONE, highest=TWO) is True
    with pytest.raises(RollbackError):
        check(TWO, ONE, TWO, ONE, highest=ONE)


@given(
    listed=st.lists(st.sampled_from([ONE, TWO, THREE]), min_size=1, max_size=5, unique=True),
    seen=st.lists(st.sampled_from([ONE, TWO, THREE]), max_size=8),
)
def test_what_is_recorded_never_falls(listed, seen):
    highest = None
    for digest in seen:
        try:
            raises = check(digest, *listed, highest=highest)
        except TrustError:
            continue
        if highest is not None:
            assert listed.index(digest) >= listed.index(highest)
        assert raises == (digest != highest)
        highest = digest


def judge(document, spec, status, **narrowing):
    asked = Narrowing(**{"subject": MODEL, **narrowing})
    return evaluate(text(document), spec, uri=URI, narrowing=asked, now=NOW, accepted=status)


def test_a_decision_asks_the_releases_of_the_signed_subject():
    digest = digest_of(statement())
    listed = policy(releases=[{"model": MODEL, "manifestDigests": [ONE, digest, TWO]}])
    assert judge(bundle(), listed, accepted(ONE)).raises_release
    assert not judge(bundle(), listed, accepted(digest)).raises_release
    with pytest.raises(RollbackError):
        judge(bundle(), listed, accepted(TWO))
    with pytest.raises(UnlistedReleaseError):
        judge(bundle(), policy(releases=[{"model": MODEL, "manifestDigests": [ONE]}]), accepted())


def test_audit_waives_no_release_and_a_waived_signer_raises_none():
    document = bundle(key=private_key("stranger"))
    listed = policy(allowAudit=True, releases=[{"model": MODEL, "manifestDigests": [digest_of(statement()), TWO]}])
    assert not judge(document, listed, accepted(), audit=True).raises_release
    with pytest.raises(RollbackError):
        judge(document, listed, accepted(TWO), audit=True)
