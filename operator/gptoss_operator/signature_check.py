"""The look at signature and policy itself: choose the policy, ask it about the source, read the bundle, judge it.

It blocks, and remembers nothing; ``trust`` runs it in threads and remembers what it found.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Protocol

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.policy import WeightTrustPolicy, WeightTrustPolicySpec
from gptoss_operator.cache import Cache
from gptoss_operator.plan.observation import Trusted
from gptoss_operator.plan.sources import mark
from gptoss_weights.errors import MissingFileError, SourceError, SourceUnavailableError
from gptoss_weights.identities import MAX_ROOT_BYTES
from gptoss_weights.manifest import ManifestFile
from gptoss_weights.policy import Narrowing, check_source, evaluate, select_policy
from gptoss_weights.sources import ObjectVersion, Source, SourceSettings, open_source
from gptoss_weights.trust import read_bundle
from gptoss_weights.watch import in_threads

_log = logging.getLogger(__name__)
_NO_FILES: Mapping[str, Path] = {}
_LOOKS_AT_ONCE = 8


class Check(Protocol):
    """A blocking look at signature and policy."""

    def __call__(
        self,
        deployment: GptOssDeployment,
        policies: Sequence[WeightTrustPolicy],
        wall: str,
        credentials: Mapping[str, str],
    ) -> Trusted:
        """Return why the weights are trusted, or raise a WeightsError. ``credentials`` are the namespace's own."""
        ...


class SignatureCheck:
    """The check against a source.

    ``trusted_roots`` are the files of Sigstore instances by the name that policies give them.
    """

    def __init__(self, *, cache: Cache, sources: SourceSettings, trusted_roots: Mapping[str, Path] = _NO_FILES) -> None:
        self._cache = cache
        self._sources = sources
        self._trusted_roots = trusted_roots

    def __call__(
        self,
        deployment: GptOssDeployment,
        policies: Sequence[WeightTrustPolicy],
        wall: str,
        credentials: Mapping[str, str],
    ) -> Trusted:
        """Return why the weights are trusted.

        Raises:
            WeightsError: they are not, or the source can't be read.
        """
        spec = deployment.spec
        narrowing = spec.verification
        policy = policy_of(deployment, policies, self._cache)
        check_source(spec.model.uri, policy.spec)
        settings = self._sources.with_credentials(credentials)
        with open_source(spec.model.uri, revision=spec.model.revision, settings=settings) as source:
            bundle = read_bundle(source)
            decision = evaluate(
                bundle,
                policy.spec,
                uri=spec.model.uri,
                narrowing=Narrowing(
                    subject=spec.subject,
                    manifest_digest=narrowing.manifest_digest,
                    authority=narrowing.authority,
                    audit=narrowing.mode == "Audit",
                ),
                now=datetime.fromisoformat(wall),
                accepted=policy.status,
                trusted_roots=self._named_roots(policy.spec),
            )
            versions = hashlib.sha256(decision.manifest_digest.encode())
            weight_bytes: int | None = 0
            seen = True
            for file, look in _looks(source, decision.manifest.served):
                try:
                    version = look.result()
                    if file.name.endswith(".safetensors") and weight_bytes is not None:
                        weight_bytes += version.size
                    versions.update(f"\n{file.name} {version.size} {version.etag}".encode())
                except SourceUnavailableError:
                    raise  # it says nothing of what the source holds: neither that it changed nor that it did not
                except MissingFileError as error:
                    weight_bytes = None
                    versions.update(f"\n{file.name} {error.reason}".encode())
                except SourceError as error:
                    # The manifest may be all that the operator is let near: nodes have credentials of their own.
                    _log.debug("the version of %s can't be seen: %s", file.name, error.reason)
                    seen, weight_bytes = False, None
                    break
        return Trusted(
            manifest_digest=decision.manifest_digest,
            signer=decision.signer_fingerprint,
            authority=decision.authority_name,
            identity=decision.identity,
            policy=policy.name,
            source=mark(decision.manifest_digest, versions.hexdigest() if seen else None),
            checked_at=wall,
            valid_until=decision.valid_until,
            waived=decision.waived,
            weight_bytes=weight_bytes,
            raises_release=decision.raises_release,
        )

    def _named_roots(self, policy: WeightTrustPolicySpec) -> dict[str, str]:
        """Return the texts of the trusted roots that a policy names; one that can't be read is left out."""
        found: dict[str, str] = {}
        for each in policy.authorities:
            name = each.sigstore.trusted_root.name if each.sigstore is not None else None
            if name is not None and name in self._trusted_roots:
                try:
                    with self._trusted_roots[name].open("rb") as stream:
                        found[name] = stream.read(MAX_ROOT_BYTES + 1).decode()
                except (OSError, UnicodeDecodeError) as error:
                    _log.error("the trusted root %s can't be read: %s", name, type(error).__name__)
        return found


def _looks(source: Source, files: Sequence[ManifestFile]) -> list[tuple[ManifestFile, Future[ObjectVersion]]]:
    """Look at files at once, but at the first one alone: where that can't be seen, none can."""

    def look(file: ManifestFile) -> ObjectVersion:
        return source.stat(file.name)

    looks = in_threads(look, files[:1], threads=1)
    if all(isinstance(each.exception(), MissingFileError | None) for each in looks):
        looks += in_threads(look, files[1:], threads=_LOOKS_AT_ONCE)
    return list(zip(files, looks, strict=False))


def policy_of(deployment: GptOssDeployment, policies: Sequence[WeightTrustPolicy], cache: Cache) -> WeightTrustPolicy:
    """Return the one policy that applies to a deployment.

    Raises:
        WeightsError: there is none, or more than one.
    """
    reference = deployment.spec.verification.policy_ref
    return select_policy(
        policies,
        namespace=deployment.namespace,
        namespace_labels=cache.namespace_labels(deployment.namespace),
        policy_ref=reference.name if reference is not None else None,
    )
