"""Condition types and reasons: every one that the operator may write, in one place."""

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions on a GptOssDeployment."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    FIT = "Fit"
    WEIGHTS_VERIFIED = "WeightsVerified"
    ENGINE_READY = "EngineReady"
    SCALED_TO_ZERO = "ScaledToZero"
    REVOKED = "Revoked"
    DEGRADED = "Degraded"
    NAME_CONFLICT = "NameConflict"
    UPDATE_AVAILABLE = "UpdateAvailable"


class Reason(StrEnum):
    """Reasons of conditions. Trust failures carry the reason of the failed check instead (see ``TrustReason``)."""

    # Ready, Reconciling
    PROGRESSING = "Progressing"
    SERVING = "Serving"
    IDLE = "Idle"
    DRAINING = "Draining"
    WAKING = "Waking"
    SUSPENDED = "Suspended"
    RECONCILED = "Reconciled"
    WAITING_FOR_START = "WaitingForStart"
    PAUSED = "Paused"
    # Stalled
    NOT_STALLED = "NotStalled"
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_CLUSTER = "UnknownCluster"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    ROUTE_CONFLICT = "RouteConflict"
    START_TIMEOUT = "StartTimeout"
    ENGINE_FAILED = "EngineFailed"
    SERVING_VERSION_MISMATCH = "ServingVersionMismatch"
    UNTRUSTED_WEIGHTS = "UntrustedWeights"
    # Fit
    FITS = "Fits"
    UNVERIFIED = "Unverified"
    FITS_WITH_REDUCED_CONTEXT = "FitsWithReducedContext"
    DOES_NOT_FIT = "DoesNotFit"
    DEPENDS_ON_NODE = "DependsOnNode"
    HARDWARE_UNKNOWN = "HardwareUnknown"
    MODEL_UNKNOWN = "ModelUnknown"
    # EngineReady
    ANSWERING = "Answering"
    NOT_ANSWERING = "NotAnswering"
    STARTING = "Starting"
    STOPPED = "Stopped"
    NOT_PROVED = "NotProved"
    # EngineReady, Ready: why pods or engines do not start
    UNSCHEDULABLE = "Unschedulable"
    PODS_REFUSED = "PodsRefused"
    POD_EVICTED = "PodEvicted"
    NODE_LOST = "NodeLost"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    IMAGE_INCOMPLETE = "ImageIncomplete"
    CONTAINER_REFUSED = "ContainerRefused"
    FETCHING_WEIGHTS = "FetchingWeights"
    WEIGHTS_NOT_FETCHED = "WeightsNotFetched"
    WAITING_FOR_HEAD = "WaitingForHead"
    WAITING_FOR_NODE = "WaitingForNode"
    WAITING_FOR_PODS = "WaitingForPods"
    WAITING_FOR_KUBERAY = "WaitingForKubeRay"
    OUT_OF_MEMORY = "OutOfMemory"
    OUT_OF_ACCELERATOR_MEMORY = "OutOfAcceleratorMemory"
    UNSUPPORTED_HARDWARE = "UnsupportedHardware"
    ACCELERATOR_MISSING = "AcceleratorMissing"
    DRIVER_TOO_OLD = "DriverTooOld"
    COMMUNICATION_FAILED = "CommunicationFailed"
    INVALID_ENGINE_ARGUMENT = "InvalidEngineArgument"
    VOLUME_FULL = "VolumeFull"
    ENGINE_CRASHED = "EngineCrashed"
    NODE_MISCONFIGURED = "NodeMisconfigured"
    RAY_TOO_OLD = "RayTooOld"
    # WeightsVerified
    VERIFIED = "Verified"
    SIGNATURE_VERIFIED = "SignatureVerified"
    NOT_CHECKED = "NotChecked"
    SIGNER_WAIVED = "SignerWaived"
    # Revoked
    NOT_REVOKED = "NotRevoked"
    # Degraded
    HEALTHY = "Healthy"
    CLUSTER_UNREACHABLE = "ClusterUnreachable"
    KUBERAY_MISSING = "KubeRayMissing"
    KUBERAY_TOO_OLD = "KubeRayTooOld"
    CONFIGURATION_REFUSED = "ConfigurationRefused"
    FOREIGN_CONFIGURATION_REDACTED = "ForeignConfigurationRedacted"
    GATEWAY_TOKEN_UNREADABLE = "GatewayTokenUnreadable"  # noqa: S105 - a reason's name
    CACHE_DAMAGED = "CacheDamaged"
    CACHE_NOT_USED = "CacheNotUsed"
    IMAGE_CHANGED = "ImageChanged"
    # UpdateAvailable
    NEWER_SETTINGS = "NewerSettings"
    UP_TO_DATE = "UpToDate"
    # NameConflict
    NAME_TAKEN = "NameTaken"
    NAME_UNIQUE = "NameUnique"


class TrustReason(StrEnum):
    """Why weights are not trusted or could not be fetched; reasons of WeightsVerified=False."""

    NO_POLICY = "NoPolicy"
    AMBIGUOUS_POLICY = "AmbiguousPolicy"
    POLICY_NOT_FOUND = "PolicyNotFound"
    INVALID_POLICY = "InvalidPolicy"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    UNSIGNED = "Unsigned"
    MALFORMED_SIGNATURE = "MalformedSignature"
    MALFORMED_MANIFEST = "MalformedManifest"
    UNTRUSTED_SIGNER = "UntrustedSigner"
    AUDIT_NOT_ALLOWED = "AuditNotAllowed"
    SUBJECT_MISMATCH = "SubjectMismatch"
    DENIED_DIGEST = "DeniedDigest"
    DENIED_KEY = "DeniedKey"
    DENIED_IDENTITY = "DeniedIdentity"
    UNLISTED_RELEASE = "UnlistedRelease"
    ROLLBACK = "Rollback"
    RELEASE_NOT_RECORDED = "ReleaseNotRecorded"
    MANIFEST_CHANGED = "ManifestChanged"
    DIGEST_MISMATCH = "DigestMismatch"
    FORBIDDEN_CONTENT = "ForbiddenContent"
    MISSING_FILE = "MissingFile"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    ACCESS_DENIED = "AccessDenied"
    NO_SPACE = "NoSpace"
    STORAGE_FAILED = "StorageFailed"
    STALLED_TRANSFER = "StalledTransfer"


MAX_MESSAGE_LENGTH = 1024
"""Longest message of a condition, in characters."""
