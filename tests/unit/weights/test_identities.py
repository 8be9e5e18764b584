"""Sigstore signatures count only from the expected identity, by the instance that the policy names, offline."""

import base64
import copy
import json
import socket
from datetime import timedelta
from functools import cache

import pytest
import sigstore.verify  # noqa: F401 - takes seconds, which no time limit of a test may count
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from gptoss_api.policy import WeightTrustPolicySpec
from gptoss_weights.errors import (
    BrokenSignatureError,
    DeniedIdentityError,
    DeniedKeyError,
    InvalidPolicyError,
    MalformedSignatureError,
    SubjectMismatchError,
    TrustError,
    UntrustedSignerError,
)
from gptoss_weights.policy import Narrowing, TrustDecision, evaluate, revocation
from gptoss_weights.signature import key_fingerprint
from tests.unit.weights.builders import MODEL, bundle, policy, private_key, public_pem, statement, text
from tests.unit.weights.instance import ISSUER, MINUTES, SIGNED, START, WORKFLOW, Instance, b64, new_key, span
from tests.unit.weights.pki import NOW, SERVER, certificate_authority, issue, signed_bundle, signer

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


@cache
def ours() -> Instance:
    return Instance()


@cache
def theirs() -> Instance:
    return Instance()


def judge(document=None, *, authorities=None, now=NOW, narrowing=None, trusted_roots=None, spec=None, **expected):
    return evaluate(
        text(document or ours().sign()),
        policy(authorities=authorities or [ours().authority(**expected)], **(spec or {})),
        uri=f"s3://models/{MODEL}",
        narrowing=Narrowing(subject=MODEL, **(narrowing or {})),
        now=now,
        trusted_roots=trusted_roots or {},
    )


def test_trusts_what_the_expected_identity_signed():
    holder = ours().certify()
    decision = judge(ours().sign(holder=holder))
    assert decision.authority_name == "workflow"
    assert decision.identity == WORKFLOW
    assert decision.signer_fingerprint == key_fingerprint(holder.key.public_key())
    assert decision.manifest.subject == MODEL


def test_a_signature_outlives_its_certificate_and_ends_with_its_authority_only():
    assert judge(now=NOW + 300 * DAY).valid_until is None
    authority = {**ours().authority(), "notAfter": (NOW + DAY).isoformat()}
    assert judge(authorities=[authority]).valid_until == NOW + DAY
    with pytest.raises(UntrustedSignerError, match="notAfter has passed"):
        judge(authorities=[authority], now=NOW + DAY)


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert judge()


def names(*found):
    return {"names": found}


def certificate(**changes):
    return lambda: ours().sign(**changes)


def spoiled(path, value):
    """A good bundle with one value replaced."""

    def build():
        document = ours().sign()
        *parents, last = path.split(".")
        holder = document["verificationMaterial"]["tlogEntries"][0]
        for each in parents:
            holder = holder[int(each) if each.isdigit() else each]
        last = int(last) if last.isdigit() else last
        holder[last] = value(holder[last])
        return document

    return build


def flipped(encoded: str) -> str:
    raw = bytearray(base64.b64decode(encoded))
    raw[-1] ^= 1
    return b64(bytes(raw))


def other_entry(**changes):
    """A good bundle with an entry of the log that is made otherwise."""

    def build():
        holder = ours().certify()
        document = ours().sign(holder=holder)
        body = changes.pop("body", ours().body)(document, holder)
        document["verificationMaterial"]["tlogEntries"] = [ours().entry(body, **changes)]
        return document

    return build


def body_with(change):
    def build(document, holder):
        found = json.loads(ours().body(document, holder))
        change(found)
        return json.dumps(found).encode()

    return build


def without_promise():
    """A certificate that no certificate log promised to show."""
    plain = issue(
        "signer",
        by=ours().intermediate,
        purposes=(x509.oid.ExtendedKeyUsageOID.CODE_SIGNING,),
        names=[x509.UniformResourceIdentifier(WORKFLOW)],
        not_before=SIGNED - MINUTES,
        not_after=SIGNED + MINUTES,
        extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1"), ISSUER.encode()), False)],
    )
    return ours().sign(holder=plain)


def another_payload():
    document = ours().sign()
    document["dsseEnvelope"]["payload"] = bundle(statement(files={"x.json": "e" * 64}))["dsseEnvelope"]["payload"]
    return document


def somebody_elses_envelope():
    """The certificate and entry of a good bundle beside an envelope that another key signed."""
    return {**ours().sign(), "dsseEnvelope": bundle()["dsseEnvelope"]}


def entry_of_another_signature():
    """Signed again after the certificate had ended, with the entry of what was signed in time."""
    holder = ours().certify()
    again = ours().sign(statement(files={"x.json": "e" * 64}), holder=holder)
    return {**again, "verificationMaterial": ours().sign(holder=holder)["verificationMaterial"]}


REFUSED = {
    "another identity": (certificate(identity=f"{WORKFLOW}s"), UntrustedSignerError, "another identity"),
    "an identity that only begins like it": (certificate(identity=WORKFLOW[:-1]), UntrustedSignerError, "identity"),
    "an identity in other letters": (certificate(identity=WORKFLOW.upper()), UntrustedSignerError, "identity"),
    "an e-mail address": (certificate(identity="release@acme.example"), UntrustedSignerError, "another identity"),
    "another issuer": (certificate(issuer="https://accounts.example"), UntrustedSignerError, "another issuer"),
    "an issuer with a slash more": (certificate(issuer=f"{ISSUER}/"), UntrustedSignerError, "another issuer"),
    "two issuers": (
        certificate(issuer="https://accounts.example", raw_issuer=ISSUER), MalformedSignatureError, "one issuer",
    ),
    "two identities": (
        certificate(**names(x509.UniformResourceIdentifier(WORKFLOW), x509.RFC822Name("a@acme.example"))),
        MalformedSignatureError, "exactly one identity",
    ),
    "no identity": (certificate(**names()), MalformedSignatureError, "exactly one identity"),
    "an identity of another kind": (
        certificate(**names(x509.DNSName("acme.example"))), MalformedSignatureError, "exactly one identity",
    ),
    "an identity with a line break": (
        certificate(**names(x509.UniformResourceIdentifier(f"{WORKFLOW}\nx"))),
        MalformedSignatureError, "exactly one identity",
    ),
    "another instance": (lambda: theirs().sign(), UntrustedSignerError, "no certificate authority"),
    "a certificate of another authority": (
        certificate(by=theirs().intermediate), UntrustedSignerError, "no certificate authority",
    ),
    "a certificate of its own making": (
        lambda: ours().sign(by=issue("own", authority=True)), UntrustedSignerError, "no certificate authority",
    ),
    "a certificate for servers": (certificate(purposes=SERVER), UntrustedSignerError, "does not vouch"),
    "a certificate for nothing in particular": (certificate(purposes=()), UntrustedSignerError, "does not vouch"),
    "a certificate that is not for signatures": (
        certificate(digital_signature=False), UntrustedSignerError, "does not vouch",
    ),
    "an authority's own certificate": (
        certificate(authority=True, digital_signature=True), UntrustedSignerError, "",
    ),
    "a key on another curve": (
        certificate(key=ec.generate_private_key(ec.SECP384R1())), MalformedSignatureError, "P-256",
    ),
    "logged after the certificate ended": (
        certificate(logged_at=SIGNED + MINUTES / 2 + SECOND), UntrustedSignerError, "was not valid at the time",
    ),
    "logged before the certificate began": (
        certificate(logged_at=SIGNED - MINUTES / 2 - SECOND), UntrustedSignerError, "was not valid at the time",
    ),
    "promised by another certificate log": (
        certificate(certificate_log=new_key()), UntrustedSignerError, "does not vouch",
    ),
    "promised by no certificate log": (without_promise, UntrustedSignerError, "does not vouch"),
    "another log": (certificate(log=theirs().log), UntrustedSignerError, "does not vouch"),
    "a checkpoint of another log": (certificate(checkpoint_log=theirs().log), UntrustedSignerError, "does not vouch"),
    "another payload": (another_payload, BrokenSignatureError, "does not hold"),
    "an envelope of another key": (somebody_elses_envelope, BrokenSignatureError, "does not hold"),
    "an entry of another signature": (entry_of_another_signature, UntrustedSignerError, "does not vouch"),
    "another time than the log promised": (
        spoiled("integratedTime", lambda found: str(int(found) + 1)), UntrustedSignerError, "does not vouch",
    ),
    "another place than the log promised": (spoiled("logIndex", lambda _: "1002"), UntrustedSignerError, "vouch"),
    "a broken promise": (
        spoiled("inclusionPromise.signedEntryTimestamp", flipped), UntrustedSignerError, "does not vouch",
    ),
    "a broken step of the proof": (spoiled("inclusionProof.hashes.0", flipped), UntrustedSignerError, "vouch"),
    "a proof that is too short": (
        spoiled("inclusionProof.hashes", lambda found: found[:1]), UntrustedSignerError, "does not vouch",
    ),
    "a proof that is too long": (
        spoiled("inclusionProof.hashes", lambda found: [*found, found[0]]), UntrustedSignerError, "does not vouch",
    ),
    "a proof of another place": (spoiled("inclusionProof.logIndex", lambda _: "0"), UntrustedSignerError, "vouch"),
    "a place beyond the tree": (
        spoiled("inclusionProof.logIndex", lambda _: "3"), MalformedSignatureError, "within treeSize",
    ),
    "a tree of another size than the checkpoint's": (
        spoiled("inclusionProof.treeSize", lambda _: "4"), MalformedSignatureError, "of the very tree",
    ),
    "a root of another tree than the checkpoint's": (
        spoiled("inclusionProof.rootHash", flipped), MalformedSignatureError, "of the very tree",
    ),
    "a checkpoint that was changed": (
        spoiled("inclusionProof.checkpoint.envelope", lambda found: found.replace("log.example - 42", "other", 1)),
        UntrustedSignerError, "does not vouch",
    ),
    "a body with another payload's hash": (
        other_entry(body=body_with(lambda body: body["spec"]["payloadHash"].update(value="0" * 64))),
        UntrustedSignerError, "does not vouch",
    ),
    "a body with another signature": (
        other_entry(body=body_with(lambda body: body["spec"]["signatures"][0].update(signature="AAAA"))),
        UntrustedSignerError, "does not vouch",
    ),
    "a body with another verifier": (
        other_entry(body=body_with(lambda body: body["spec"]["signatures"][0].update(verifier="AAAA"))),
        UntrustedSignerError, "does not vouch",
    ),
    "a body with two signatures": (
        other_entry(body=body_with(lambda body: body["spec"]["signatures"].append(body["spec"]["signatures"][0]))),
        UntrustedSignerError, "does not vouch",
    ),
    "a body of another kind": (
        other_entry(body=body_with(lambda body: body.update(kind="hashedrekord"))), UntrustedSignerError, "vouch",
    ),
    "a body that names a key twice": (
        other_entry(body=lambda document, holder: ours().body(document, holder)[:-1] + b',"kind":"dsse"}'),
        MalformedSignatureError, "twice",
    ),
    "another subject": (lambda: ours().sign(statement(subject="gpt-oss-20b")), SubjectMismatchError, MODEL),
}  # fmt: skip


@pytest.mark.parametrize(("build", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(build, error: type[TrustError], says: str):
    with pytest.raises(error) as caught:
        judge(build())
    assert says in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_trusts_entries_of_rekor_2_by_a_signed_timestamp():
    assert judge(ours().sign_stamped()).identity == WORKFLOW


def with_stamp(document, *more):
    """A bundle with signed timestamps beside what it has."""
    signature = base64.b64decode(document["dsseEnvelope"]["signatures"][0]["sig"])
    stamps = [{"signedTimestamp": b64(ours().stamps.stamp(signature, at))} for at in more]
    document["verificationMaterial"]["timestampVerificationData"] = {"rfc3161Timestamps": stamps}
    return document


def test_entries_of_rekor_1_may_be_timestamped_beside():
    assert judge(with_stamp(ours().sign(), SIGNED)).identity == WORKFLOW
    with pytest.raises(UntrustedSignerError, match="was not valid at the time"):
        judge(with_stamp(ours().sign(), SIGNED, SIGNED + MINUTES))


def without_stamp():
    document = ours().sign_stamped()
    document["verificationMaterial"]["timestampVerificationData"] = {}
    return document


def stamped_with_a_promise():
    document = ours().sign_stamped()
    document["verificationMaterial"]["tlogEntries"][0]["integratedTime"] = str(int(SIGNED.timestamp()))
    return document


STAMPED = {
    "late": (lambda: ours().sign_stamped(at=SIGNED + MINUTES), UntrustedSignerError, "not valid at the time"),
    "early": (lambda: ours().sign_stamped(at=SIGNED - MINUTES), UntrustedSignerError, "not valid at the time"),
    "by another authority": (
        lambda: ours().sign_stamped(stamp=lambda found: theirs().stamps.stamp(found, SIGNED)),
        UntrustedSignerError, "does not vouch",
    ),
    "by another key": (
        lambda: ours().sign_stamped(stamp=lambda found: ours().stamps.stamp(found, SIGNED, key=new_key())),
        UntrustedSignerError, "does not vouch",
    ),
    "over another signature": (
        lambda: ours().sign_stamped(stamp=lambda _: ours().stamps.stamp(b"another", SIGNED)),
        UntrustedSignerError, "does not vouch",
    ),
    "by nobody": (without_stamp, MalformedSignatureError, "needs a signed timestamp"),
    "by the log": (stamped_with_a_promise, MalformedSignatureError, "no time of its own"),
    "by nonsense": (
        lambda: ours().sign_stamped(stamp=lambda found: found), MalformedSignatureError, "can't be read",
    ),
    "for another identity": (
        lambda: ours().sign_stamped(identity="mallory@acme.example"), UntrustedSignerError, "another identity",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "error", "says"), STAMPED.values(), ids=STAMPED.keys())
def test_refuses_what_is_stamped(build, error: type[TrustError], says: str):
    with pytest.raises(error, match=says):
        judge(build())


def test_a_time_stamp_authority_counts_within_its_own_time_only():
    retired = ours().trusted_root(stamps=span(START, SIGNED - SECOND))
    with pytest.raises(UntrustedSignerError, match="does not vouch"):
        judge(ours().sign_stamped(), root=retired)


@pytest.mark.parametrize(
    ("expression", "identity", "trusted"),
    [
        (r"https://git\.example/acme/.*", WORKFLOW, True),
        (r"https://git\.example/acme/.*@refs/heads/main", WORKFLOW, True),
        (r"https://git\.example/acme", WORKFLOW, False),
        (r"acme/.*", WORKFLOW, False),
        (r"https://git.example/acme/.*|nobody", WORKFLOW, True),
        (r"nobody|https://git.example/acme/", WORKFLOW, False),
        (r".*@acme\.example", "release@acme.example", True),
        (r".*@acme\.example", "release@acme.example.evil.example", False),
    ],
)
def test_an_expression_matches_the_whole_identity(expression, identity, trusted):
    document = ours().sign(identity=identity)
    if trusted:
        assert judge(document, identityRegExp=expression).identity == identity
    else:
        with pytest.raises(UntrustedSignerError, match="another identity"):
            judge(document, identityRegExp=expression)


@pytest.mark.timeout(120)
def test_no_expression_is_slow():
    document = ours().sign(identity=f"https://{'a' * 900}")
    with pytest.raises(UntrustedSignerError, match="another identity"):
        judge(document, identityRegExp=r"(https://)?(([a-z])+.)+[A-Z]([a-z])+$")


@pytest.mark.parametrize("place", ["authorities", "ctlogs", "tlogs"])
def test_authorities_and_logs_count_within_their_own_time_only(place):
    for good in (span(START), span(SIGNED), span(START, SIGNED), span(START, NOW)):
        assert judge(root=ours().trusted_root(**{place: good}))
    for bad in (span(SIGNED + SECOND), span(START, SIGNED - SECOND)):
        with pytest.raises(UntrustedSignerError, match="counted when"):
            judge(root=ours().trusted_root(**{place: bad}))


def test_of_two_instances_each_vouches_for_its_own():
    authorities = [ours().authority("first"), theirs().authority("second")]
    assert judge(ours().sign(), authorities=authorities).authority_name == "first"
    assert judge(theirs().sign(), authorities=authorities).authority_name == "second"


def test_while_an_instance_rotates_both_its_logs_and_authorities_count():
    merged = ours().trusted_root()
    for key, value in theirs().trusted_root().items():
        if isinstance(value, list):
            merged[key] = [*merged[key], *value]
    for instance in (ours(), theirs()):
        assert judge(instance.sign(), root=merged).authority_name == "workflow"
    with pytest.raises(UntrustedSignerError):
        judge(ours().sign(by=issue("third", authority=True)), root=merged)


def test_keys_certificates_and_identities_stand_side_by_side():
    root = issue("root", authority=True)
    authorities = [
        ours().authority(),
        certificate_authority(root),
        {"name": "key", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_pem(private_key())}},
    ]
    assert judge(authorities=authorities).authority_name == "workflow"
    certified = judge(signed_bundle([signer("release", by=root)]), authorities=authorities)
    assert (certified.authority_name, certified.identity) == ("acme", "URI:spiffe://acme/release")
    keyed = judge(bundle(), authorities=authorities)
    assert (keyed.authority_name, keyed.identity) == ("key", None)


def test_other_kinds_of_authorities_vouch_for_no_identity():
    root = ours().root
    for authority in (
        certificate_authority(root, subjectAltName=f"URI:{WORKFLOW}"),
        {"name": "key", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_pem(private_key())}},
    ):
        with pytest.raises(UntrustedSignerError, match="no authority of the policy expects one"):
            judge(authorities=[authority])


def test_a_chain_of_the_same_authority_is_no_sigstore_bundle():
    holder = ours().certify()
    with pytest.raises(UntrustedSignerError, match="holds roots"):
        judge(signed_bundle([holder, ours().intermediate]))


@pytest.mark.parametrize("who", ["the signer", "the intermediate", "the root"])
def test_a_denied_key_denies_whom_it_certified(who):
    holder = ours().certify()
    key = {"the signer": holder, "the intermediate": ours().intermediate, "the root": ours().root}[who].key
    with pytest.raises(DeniedKeyError):
        judge(
            ours().sign(holder=holder),
            spec={"denied": {"keyFingerprints": [key_fingerprint(key.public_key())]}},
        )


def test_a_denied_identity_beats_every_authority():
    for denied in (WORKFLOW, WORKFLOW.upper()):
        with pytest.raises(DeniedIdentityError):
            judge(spec={"denied": {"identities": [denied]}})
    assert judge(spec={"denied": {"identities": [f"{WORKFLOW}s", WORKFLOW[:-1]]}})
    denied = WeightTrustPolicySpec.model_validate(policy().model_dump() | {"denied": {"identities": [WORKFLOW]}})
    found = revocation(denied, manifest_digest="sha256:" + "0" * 64, signer="", identity=WORKFLOW)
    assert isinstance(found, DeniedIdentityError)
    assert revocation(denied, manifest_digest="sha256:" + "0" * 64, signer="") is None


def test_audit_waives_the_identity_and_names_nobody():
    decision = judge(ours().sign(identity="mallory@acme.example"), spec={"allowAudit": True}, narrowing={"audit": True})
    assert "another identity" in str(decision.waived)
    assert (decision.identity, decision.authority_name) == (None, "")
    with pytest.raises(BrokenSignatureError):
        judge(another_payload(), spec={"allowAudit": True}, narrowing={"audit": True})


def test_a_trusted_root_may_stand_in_the_operators_settings():
    authority = ours().authority(trustedRoot={"name": "acme"})
    root = json.dumps(ours().trusted_root())
    assert judge(authorities=[authority], trusted_roots={"acme": root})
    with pytest.raises(InvalidPolicyError, match="sigstoreTrustedRoots"):
        judge(authorities=[authority], trusted_roots={"other": root})


def root_without(key):
    return {**ours().trusted_root(), key: []}


@pytest.mark.parametrize(
    ("trusted_root", "says"),
    [
        ({"inline": "{}"}, "is not a trusted_root"),
        ({"inline": "[" * 100}, "not acceptable JSON"),
        ({"inline": '{"mediaType": 1, "mediaType": 2}'}, "not acceptable JSON"),
        ({"inline": json.dumps({**Instance().trusted_root(), "mediaType": "text/plain"})}, "is not a trusted_root"),
        ({"inline": json.dumps(root_without("tlogs"))}, "must list"),
        ({"inline": json.dumps(root_without("ctlogs"))}, "must list"),
        ({"inline": json.dumps(root_without("certificateAuthorities"))}, "is not a trusted_root"),
        ({"inline": "{}", "name": "acme"}, "exactly one of inline and name"),
        ({}, "exactly one of inline and name"),
    ],
)
def test_a_trusted_root_that_can_not_be_read_closes_the_policy(trusted_root, says):
    broken = ours().authority("broken", trustedRoot=trusted_root)
    with pytest.raises(InvalidPolicyError, match=says):
        judge(authorities=[ours().authority("good"), broken])


@pytest.mark.parametrize("changes", [{"identity": WORKFLOW, "identityRegExp": ".+@.+"}, {"identity": None}])
def test_an_authority_with_two_identities_or_none_closes_the_policy(changes):
    authority = ours().authority()
    authority["sigstore"] |= changes
    with pytest.raises(InvalidPolicyError, match="exactly one"):
        judge(authorities=[authority])


def test_an_expression_that_is_none_closes_the_policy(capfd):
    with pytest.raises(InvalidPolicyError, match="RE2"):
        judge(identityRegExp="(acme")
    assert capfd.readouterr() == ("", "")


def test_a_policy_that_wants_no_log_is_refused_though_an_older_api_server_stored_it():
    with pytest.raises(InvalidPolicyError, match="requireTransparencyLog"):
        judge(requireTransparencyLog=False)
    root = issue("root", authority=True)
    authority = certificate_authority(root)
    authority["certificate"]["requireTransparencyLog"] = True
    with pytest.raises(InvalidPolicyError, match="requireTransparencyLog"):
        judge(signed_bundle([signer("release", by=root)]), authorities=[authority])


def test_the_decision_is_the_same_each_time():
    document = ours().sign()
    first, second = judge(copy.deepcopy(document)), judge(copy.deepcopy(document))
    assert isinstance(first, TrustDecision)
    assert first == second
