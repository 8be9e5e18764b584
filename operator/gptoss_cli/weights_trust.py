"""Whom a `gptoss weights` command trusts: keys, certificates and identities named in options, or a whole policy.

A policy is decided upon as the operator does it, with the same code, so that people can try a
WeightTrustPolicy before it is applied; nothing of it is read from a cluster.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from gptoss_api.names import API_VERSION
from gptoss_api.policy import (
    Authority,
    CertificateChain,
    PublicKey,
    SigstoreIdentity,
    SigstoreRoot,
    WeightTrustPolicySpec,
    WeightTrustPolicyStatus,
)
from gptoss_weights.authorities import Authorities
from gptoss_weights.certificates import names_of, read_chain
from gptoss_weights.errors import InvalidPolicyError, SubjectMismatchError
from gptoss_weights.identities import certified
from gptoss_weights.manifest import Manifest, parse_manifest
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.signature import Bundle, parse_bundle

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NAMES = ("URI:", "email:", "DNS:")
_KIND = "WeightTrustPolicy"


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """What the options of `trust_options` say."""

    keys: tuple[Path, ...]
    certificate_roots: Path | None
    identity: str | None
    identity_regexp: str | None
    issuer: str | None
    trusted_root: tuple[str, ...]
    policy: Path | None
    uri: str | None

    @property
    def given(self) -> bool:
        """Whether anybody is trusted at all."""
        return bool(self.keys or self.certificate_roots or self.policy or self.identity or self.identity_regexp)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A bundle that is trusted, and what is printed about that."""

    manifest: Manifest
    facts: Mapping[str, Any]


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it is called with ``trust=TrustOptions``."""

    @wraps(command)
    def call(**given: Any) -> Any:
        picked = {name: given.pop(name) for name in TrustOptions.__dataclass_fields__}
        return command(trust=TrustOptions(**picked), **given)

    wrapped: Callable[..., Any] = call
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def decide(raw: bytes, trust: TrustOptions, *, model: str | None, place: str | None = None) -> Decision:
    """Decide whether the text of a ``model.sig`` is trusted. ``place`` is its URI, if it was read from one.

    Raises:
        TrustError: it is not.
        click.UsageError: the options do not go together.
    """
    now = datetime.now(UTC)
    if trust.policy is not None:
        return _by_policy(raw, trust, trust.policy, model=model, uri=trust.uri or place, now=now)
    if trust.uri is not None:
        raise click.UsageError("--uri goes with --policy only")
    bundle = parse_bundle(raw)
    authorities = Authorities(_authorities(trust), trusted_roots={})
    signer = authorities.signer(bundle)
    voucher = authorities.vouching(signer, bundle, now=now)[0]
    manifest = parse_manifest(bundle.payload)
    if model is not None and manifest.subject != model:
        raise SubjectMismatchError(f"the weights are signed as another model than {model}")
    return Decision(manifest=manifest, facts={"signer": signer.fingerprint, "identity": voucher.identity})


def claims(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle says about its signer, which proves nothing."""
    if not bundle.certificates:
        return {"signedWith": "key"}
    chain = read_chain(bundle.certificates)
    if bundle.log is None:
        names = [name if name.isprintable() else "(not printable)" for name in names_of(chain[0])]
        return {"signedWith": "certificate", "claimedNames": names}
    found = certified(chain[0])
    logged = bundle.log.integrated_at
    return {
        "signedWith": "sigstore",
        "claimedNames": [found.identity],
        "claimedIssuer": found.issuer if found.issuer.isprintable() else "(not printable)",
        "claimedTime": logged.isoformat() if logged is not None else None,
    }


def _by_policy(
    raw: bytes, trust: TrustOptions, policy: Path, *, model: str | None, uri: str | None, now: datetime
) -> Decision:
    if trust.keys or trust.certificate_roots or trust.identity or trust.identity_regexp or trust.issuer:
        raise click.UsageError("--policy says whom to trust; leave the other options out, but --trusted-root")
    if model is None or uri is None:
        raise click.UsageError("--policy needs --model and --uri, as the deployment has them")
    name, spec, status = _read_policy(policy)
    decision = evaluate(
        raw,
        spec,
        uri=uri,
        narrowing=Narrowing(subject=model),
        now=now,
        accepted=status,
        trusted_roots=_named_roots(trust.trusted_root),
    )
    return Decision(
        manifest=decision.manifest,
        facts={
            "signer": decision.signer_fingerprint,
            "identity": decision.identity,
            "policy": name,
            "authority": decision.authority_name,
            "validUntil": decision.valid_until.isoformat() if decision.valid_until is not None else None,
        },
    )


def _read_policy(path: Path) -> tuple[str, WeightTrustPolicySpec, WeightTrustPolicyStatus]:
    """Read the one WeightTrustPolicy of a file of manifests."""
    try:
        documents = [each for each in yaml.safe_load_all(path.read_text()) if isinstance(each, dict)]
        found = [each for each in documents if (each.get("apiVersion"), each.get("kind")) == (API_VERSION, _KIND)]
        if len(found) != 1:
            raise InvalidPolicyError(f"{path.name} holds {len(found)} WeightTrustPolicies; name a file with one")
        (raw,) = found
        return (
            str(raw["metadata"]["name"]),
            WeightTrustPolicySpec.model_validate(raw["spec"]),
            WeightTrustPolicyStatus.model_validate(raw.get("status") or {}),
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidPolicyError(f"{path.name} is not YAML") from error
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in fault["loc"]) for fault in error.errors()})
        raise InvalidPolicyError(f"the WeightTrustPolicy in {path.name} is wrong at {', '.join(fields)}") from error
    except (KeyError, TypeError) as error:
        raise InvalidPolicyError(f"the WeightTrustPolicy in {path.name} has no metadata.name or no spec") from error


def _authorities(trust: TrustOptions) -> list[Authority]:
    """Return the authorities that single options stand for. Named after their files, as messages tell them."""
    found = [
        Authority.model_construct(
            name=path.name, models=("*",), key=PublicKey.model_construct(public_key=path.read_text(errors="replace"))
        )
        for path in trust.keys
    ]
    if trust.certificate_roots is not None:
        found.append(_certificate(trust, trust.certificate_roots))
    elif trust.identity is not None or trust.identity_regexp is not None:
        found.append(_identity(trust))
    elif trust.issuer is not None or trust.trusted_root:
        raise click.UsageError("--issuer and --trusted-root go with --identity or --identity-regexp")
    return found


def _certificate(trust: TrustOptions, roots: Path) -> Authority:
    if trust.identity is None or trust.identity_regexp or trust.issuer or trust.trusted_root:
        raise click.UsageError("--certificate-roots goes with --identity only: a subject, or URI:…, email:… or DNS:…")
    named = trust.identity.startswith(_NAMES)
    chain = CertificateChain.model_construct(
        roots=roots.read_text(errors="replace"),
        subject=None if named else trust.identity,
        subject_alt_name=trust.identity if named else None,
    )
    return Authority.model_construct(name=roots.name, models=("*",), certificate=chain)


def _identity(trust: TrustOptions) -> Authority:
    if trust.issuer is None or len(trust.trusted_root) != 1 or (trust.identity and trust.identity_regexp):
        raise click.UsageError("--identity (or --identity-regexp) needs --issuer and one --trusted-root")
    expected = SigstoreIdentity.model_construct(
        identity=trust.identity,
        identity_reg_exp=trust.identity_regexp,
        issuer=trust.issuer,
        trusted_root=SigstoreRoot.model_construct(inline=_text_of(trust.trusted_root[0])),
    )
    return Authority.model_construct(name="identity", models=("*",), sigstore=expected)


def _named_roots(options: tuple[str, ...]) -> dict[str, str]:
    named = [each.partition("=") for each in options]
    if not all(separator for _, separator, _ in named):
        raise click.UsageError("with --policy, --trusted-root is NAME=FILE, by the name that the policy has for it")
    return {name: _text_of(path) for name, _, path in named}


def _text_of(path: str) -> str:
    return Path(path).read_text(errors="replace")


_OPTIONS = (
    click.option(
        "--key", "keys", multiple=True, type=_FILE, help="Public key (PEM) that may have signed; may be repeated."
    ),
    click.option("--certificate-roots", type=_FILE, help="Certificate authorities (PEM) that count; with --identity."),
    click.option("--identity", help="Who must have signed: a Sigstore identity, or a certificate's subject or name."),
    click.option("--identity-regexp", help="RE2 expression that the whole Sigstore identity must match."),
    click.option("--issuer", help="Who vouched for the Sigstore identity, whole."),
    click.option(
        "--trusted-root", multiple=True, help="trusted_root.json of the Sigstore instance; with --policy NAME=FILE."
    ),
    click.option("--policy", type=_FILE, help="Manifest of a WeightTrustPolicy: decide as the operator would."),
    click.option("--uri", help="With --policy: spec.model.uri of the deployment."),
)
