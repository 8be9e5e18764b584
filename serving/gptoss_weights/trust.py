"""What an operator asks before a GPU is: is the bundle at this place trusted, and did the place change?

Kilobytes only. The policy's sources are asked before the place is.
"""

import hashlib
from dataclasses import dataclass

from gptoss_api.policy import WeightTrustPolicySpec
from gptoss_weights import metrics
from gptoss_weights.errors import MissingFileError
from gptoss_weights.manifest import SIGNATURE_FILE
from gptoss_weights.policy import TrustDecision, check_source, evaluate
from gptoss_weights.signature import MAX_BUNDLE_BYTES
from gptoss_weights.sources import Source, SourceSettings, open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFingerprint:
    """What a look at a source costs next to nothing to find out; equal as long as nothing changed.

    ``signature`` is ``sha256:`` and the SHA-256 of ``model.sig``; ``file`` is the ETag of the file that
    was asked about. Empty where the file is missing or was not asked about.
    """

    signature: str
    file: str

    def __str__(self) -> str:
        return f"{self.signature or 'unsigned'} {self.file or '-'}"


def verify_source(
    uri: str,
    *,
    policy: WeightTrustPolicySpec,
    model_name: str,
    pinned_digest: str | None = None,
    settings: SourceSettings,
) -> TrustDecision:
    """Fetch ``model.sig`` from a place that the policy allows, and decide whether it is trusted.

    Raises:
        TrustError: it is not; ``reason`` and message say why and what to change.
        SourceError: the place can't be read; ``retryable`` says whether later is worth a try.
    """
    with metrics.counted_verification():
        check_source(uri, policy)
        with open_source(uri, settings=settings) as source:
            bundle = read_bundle(source)
        return evaluate(bundle, policy, uri=uri, model_name=model_name, pinned_digest=pinned_digest)


def probe(
    uri: str, *, policy: WeightTrustPolicySpec, settings: SourceSettings, file: str | None = None
) -> SourceFingerprint:
    """Look whether anything changed at a place, such as the file that failed last time.

    Raises:
        SourceNotAllowedError: the policy does not allow the place.
        SourceError: the place can't be read.
    """
    check_source(uri, policy)
    with open_source(uri, settings=settings) as source:
        bundle = read_bundle(source)
        signature = "" if bundle is None else "sha256:" + hashlib.sha256(bundle).hexdigest()
        return SourceFingerprint(signature=signature, file="" if file is None else _etag(source, file))


def read_bundle(source: Source) -> bytes | None:
    """Return the text of ``model.sig``, None where there is none."""
    try:
        return source.read_small(SIGNATURE_FILE, limit=MAX_BUNDLE_BYTES)
    except MissingFileError:
        return None


def _etag(source: Source, name: str) -> str:
    try:
        return source.stat(name).etag
    except MissingFileError:
        return ""
