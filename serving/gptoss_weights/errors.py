"""Everything that can be wrong with weights, as one tree.

::

    WeightsError
    ├── TrustError                   what is signed, or who signed it, is not acceptable
    │   ├── NoPolicyError            NoPolicy
    │   ├── PolicyNotFoundError      PolicyNotFound
    │   ├── AmbiguousPolicyError     AmbiguousPolicy
    │   ├── InvalidPolicyError       InvalidPolicy
    │   ├── SourceNotAllowedError    SourceNotAllowed    (also a URI that is no place at all)
    │   ├── UnsignedError            Unsigned
    │   ├── MalformedSignatureError  MalformedSignature
    │   ├── MalformedManifestError   MalformedManifest
    │   ├── UntrustedSignerError     UntrustedSigner
    │   │   └── BrokenSignatureError UntrustedSigner     (made by nobody: never waived)
    │   ├── AuditNotAllowedError     AuditNotAllowed
    │   ├── SubjectMismatchError     SubjectMismatch
    │   ├── DeniedDigestError        DeniedDigest
    │   ├── DeniedKeyError           DeniedKey
    │   ├── DeniedIdentityError      DeniedIdentity
    │   ├── UnlistedReleaseError     UnlistedRelease
    │   ├── RollbackError            Rollback
    │   ├── ManifestChangedError     ManifestChanged     (not the manifest that was pinned)
    │   ├── DigestMismatchError      DigestMismatch      (bytes of a file differ from the manifest)
    │   └── ForbiddenContentError    ForbiddenContent
    ├── SourceError                  the place that holds the weights
    │   ├── MissingFileError         MissingFile
    │   ├── AccessDeniedError        AccessDenied
    │   ├── StalledTransferError     StalledTransfer     (retryable)
    │   └── SourceUnavailableError   SourceUnavailable   (retryable)
    │       ├── ThrottledError       SourceUnavailable   (too many requests; may say how long to wait)
    │       └── SourceChangedError   SourceUnavailable   (a file was replaced while it was read)
    ├── StorageError                 StorageFailed: the node's own folder for verified copies
    │   ├── NoSpaceError             NoSpace             (retryable)
    │   ├── HungStorageError         StorageFailed       (retryable: it does not answer)
    │   └── BusyError                StorageFailed       (retryable: another process pulls the same)
    └── SigningError                 SigningFailed       (only while signing)

``reason`` is CamelCase and stable: conditions, metrics and exit codes use it. ``str(error)`` is
``"<reason>: <message>"``, so a message that crosses a process boundary as text keeps its reason.
A message names what failed and what to change; it never quotes content, because content is what an
attacker writes. ``retryable`` says that the same call may succeed later without anybody's hand.
"""

from typing import ClassVar, Self

from gptoss_api.conditions import TrustReason

__all__ = [
    "AccessDeniedError",
    "AmbiguousPolicyError",
    "AuditNotAllowedError",
    "BrokenSignatureError",
    "BusyError",
    "DeniedDigestError",
    "DeniedIdentityError",
    "DeniedKeyError",
    "DigestMismatchError",
    "ForbiddenContentError",
    "HungStorageError",
    "InvalidPolicyError",
    "MalformedManifestError",
    "MalformedSignatureError",
    "ManifestChangedError",
    "MissingFileError",
    "NoPolicyError",
    "NoSpaceError",
    "PolicyNotFoundError",
    "RollbackError",
    "SigningError",
    "SourceChangedError",
    "SourceError",
    "SourceNotAllowedError",
    "SourceUnavailableError",
    "StalledTransferError",
    "StorageError",
    "SubjectMismatchError",
    "ThrottledError",
    "TrustError",
    "UnlistedReleaseError",
    "UnsignedError",
    "UntrustedSignerError",
    "WeightsError",
]


class WeightsError(Exception):
    """Weights can't be used. ``file`` is the name of the file at fault, where there is one."""

    reason: ClassVar[str] = "WeightsFailed"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.file = file

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __reduce__(self) -> tuple[object, tuple[type[Self], str, str | None]]:
        # Errors travel between processes (Ray pickles them); a keyword-only argument would be lost.
        return _rebuild, (type(self), self.message, self.file)


class TrustError(WeightsError):
    """What is signed, or who signed it, is not acceptable."""


class NoPolicyError(TrustError):
    """No policy applies to the namespace."""

    reason = TrustReason.NO_POLICY


class PolicyNotFoundError(TrustError):
    """The policy that a deployment names does not exist."""

    reason = TrustReason.POLICY_NOT_FOUND


class AmbiguousPolicyError(TrustError):
    """More than one default policy applies to the namespace."""

    reason = TrustReason.AMBIGUOUS_POLICY


class InvalidPolicyError(TrustError):
    """The policy itself can't be used, for example because a key is not a key."""

    reason = TrustReason.INVALID_POLICY


class SourceNotAllowedError(TrustError):
    """No source of the policy or of the settings contains the URI, or it is no place at all."""

    reason = TrustReason.SOURCE_NOT_ALLOWED


class UnsignedError(TrustError):
    """There is no ``model.sig`` beside the weights."""

    reason = TrustReason.UNSIGNED


class MalformedSignatureError(TrustError):
    """``model.sig`` is not a strict bundle."""

    reason = TrustReason.MALFORMED_SIGNATURE


class MalformedManifestError(TrustError):
    """The manifest is not a strict OpenSSF Model Signing v1.0 one, or names in it are unsafe."""

    reason = TrustReason.MALFORMED_MANIFEST


class UntrustedSignerError(TrustError):
    """No authority that may sign this model made the signature."""

    reason = TrustReason.UNTRUSTED_SIGNER


class BrokenSignatureError(UntrustedSignerError):
    """The signature does not hold for the key that the bundle itself names or carries."""


class AuditNotAllowedError(TrustError):
    """The deployment asks for mode Audit, and its policy does not permit that."""

    reason = TrustReason.AUDIT_NOT_ALLOWED


class SubjectMismatchError(TrustError):
    """Validly signed, but as another model."""

    reason = TrustReason.SUBJECT_MISMATCH


class DeniedDigestError(TrustError):
    """The manifest's digest is on the policy's deny-list."""

    reason = TrustReason.DENIED_DIGEST


class DeniedKeyError(TrustError):
    """The key that signed is on the policy's deny-list."""

    reason = TrustReason.DENIED_KEY


class DeniedIdentityError(TrustError):
    """The identity that signed is on the policy's deny-list."""

    reason = TrustReason.DENIED_IDENTITY


class UnlistedReleaseError(TrustError):
    """The policy lists the model's releases, and this manifest is none of them."""

    reason = TrustReason.UNLISTED_RELEASE


class RollbackError(TrustError):
    """A newer release of the model was accepted before."""

    reason = TrustReason.ROLLBACK


class ManifestChangedError(TrustError):
    """The manifest is not the one that was pinned."""

    reason = TrustReason.MANIFEST_CHANGED


class DigestMismatchError(TrustError):
    """Bytes of a file differ from what was signed."""

    reason = TrustReason.DIGEST_MISMATCH


class ForbiddenContentError(TrustError):
    """Signed, but of a kind that no engine may load: pickles, code, remote code, broken tensors."""

    reason = TrustReason.FORBIDDEN_CONTENT


class SourceError(WeightsError):
    """The place that holds the weights."""

    reason = TrustReason.SOURCE_UNAVAILABLE


class MissingFileError(SourceError):
    """A file that the manifest lists is not there."""

    reason = TrustReason.MISSING_FILE


class AccessDeniedError(SourceError):
    """The source refuses our credentials, or there are none."""

    reason = TrustReason.ACCESS_DENIED


class StalledTransferError(SourceError):
    """No byte arrived for too long."""

    reason = TrustReason.STALLED_TRANSFER
    retryable = True


class SourceUnavailableError(SourceError):
    """The source does not answer, answers with an error of its own, or broke off."""

    retryable = True


class ThrottledError(SourceUnavailableError):
    """The source asks for fewer requests. ``seconds``: how long it wants to be left alone, 0 if it does not say."""

    def __init__(self, message: str, *, file: str | None = None, seconds: float = 0.0) -> None:
        super().__init__(message, file=file)
        self.seconds = seconds


class SourceChangedError(SourceUnavailableError):
    """A file was replaced while it was being read. Only a new pull can go on."""


class StorageError(WeightsError):
    """The node's own folder for verified copies is unsafe or failed."""

    reason = TrustReason.STORAGE_FAILED


class NoSpaceError(StorageError):
    """The folder's file system is too full for the weights."""

    reason = TrustReason.NO_SPACE
    retryable = True


class HungStorageError(StorageError):
    """The folder's file system does not answer, as one on a file server that is away."""

    retryable = True


class BusyError(StorageError):
    """Another process of this node is still pulling the same weights."""

    retryable = True


class SigningError(WeightsError):
    """A folder can't be signed, or the key can't be used."""

    reason = "SigningFailed"


def _rebuild(kind: type[WeightsError], message: str, file: str | None) -> WeightsError:
    return kind(message, file=file)
