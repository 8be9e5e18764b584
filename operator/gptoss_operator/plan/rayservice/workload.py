"""The input of a rendering, and the names that everything of one deployment shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.names import API_VERSION, FIELD_MANAGER, GROUP
from gptoss_api.pod import Pod
from gptoss_operator.kuberay_settings import KubeRaySettings

Raw = dict[str, Any]

DEPLOYMENT_LABEL = f"{GROUP}/deployment"
UID_LABEL = f"{GROUP}/uid"
ROLE_LABEL = f"{GROUP}/role"
REVISION_LABEL = f"{GROUP}/revision"
"""On pods: the revision of what they were made from. On a RayService: an annotation with the one it asks for."""
MANAGED_BY = {"app.kubernetes.io/managed-by": FIELD_MANAGER}

HEAD, WORKER = "head", "worker"
WORKER_GROUP = "engine"
ENGINE_CONTAINER = "ray-worker"
WEIGHTS_CONTAINER = "weights"
CACHE_VOLUME, SOURCE_VOLUME = "claim", "source"
"""A worker's volumes that are claims: of ``spec.cache``, and of a folder that ``spec.model.uri`` names."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One deployment, resolved.

    Attributes:
        namespace: its namespace.
        name: its name, and the RayService's.
        uid: its uid.
        tensor: accelerators of one pod.
        pods_per_replica: pods that one replica spans: its pipeline stages.
        min_replicas: replicas that stay up while it is awake.
        max_replicas: most replicas.
        blue_green: changes start beside what runs.
        accelerator: what it computes on.
        pod: what users chose of its pods.
        application: Ray's configuration of its application.
        weights_uri: where the weights lie.
        weights_revision: the commit of an ``hf://`` source.
        subject: who they must be signed for.
        manifest_digest: the digest they are pinned to.
        cache_claim: claim with weights that were fetched before, if there is one.
        cache_max_bytes: most that weights may take there.
        weight_bytes: what the model's weights take, None if that is not known.
    """

    namespace: str
    name: str
    uid: str
    tensor: int
    pods_per_replica: int
    min_replicas: int
    max_replicas: int
    blue_green: bool
    accelerator: AcceleratorRequest
    pod: Pod
    application: Mapping[str, Any]
    weights_uri: str
    subject: str
    manifest_digest: str
    weights_revision: str | None = None
    cache_claim: str | None = None
    cache_max_bytes: str | None = None
    weight_bytes: int | None = None

    @property
    def autoscales(self) -> bool:
        """Whether Ray adds and removes pods while it is awake."""
        return self.max_replicas > self.min_replicas

    @property
    def scheme(self) -> str:
        """What kind of place the weights lie in: ``s3``, ``az``, ``hf`` or ``file``."""
        return self.weights_uri.partition("://")[0]

    @property
    def identity(self) -> dict[str, str]:
        """Labels that all its pods carry and no other pod does."""
        return _identity(self.name, self.uid)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its objects."""
        return {**MANAGED_BY, **self.identity}

    def metadata(self, name: str, annotations: Mapping[str, str] | None = None) -> Raw:
        """Return the metadata of an object that goes when the deployment goes."""
        found = owned_metadata(name, namespace=self.namespace, deployment=self.name, uid=self.uid)
        return {**found, **({"annotations": dict(annotations)} if annotations else {})}


@dataclass(frozen=True, kw_only=True)
class KubeRaySite:
    """What the operator's settings add to every rendering.

    Attributes:
        settings: the administrator's.
        system_namespace: where operator and gateways run.
        s3_endpoint: URL of the object store; None is AWS.
        s3_region: region to sign for.
        azure_account: name of the storage account; None if there is none.
        azure_endpoint: URL of its blob service; None is the public cloud's.
        hf_endpoint: URL of the hub; None is the public one.
        hf_download_hosts: where the hub may redirect to.
        gateway_token_hashes: SHA-256 of each token that gateways may send, in hexadecimal digits and a fixed order.
    """

    settings: KubeRaySettings
    system_namespace: str
    s3_endpoint: str | None = None
    s3_region: str | None = None
    azure_account: str | None = None
    azure_endpoint: str | None = None
    hf_endpoint: str | None = None
    hf_download_hosts: tuple[str, ...] = ()
    gateway_token_hashes: tuple[str, ...]


def owned_metadata(name: str, *, namespace: str, deployment: str, uid: str) -> Raw:
    """Return the metadata of an object that goes when the deployment with this uid goes."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": "GptOssDeployment",
        "name": deployment,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    labels = {**MANAGED_BY, **_identity(deployment, uid)}
    return {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [owner]}


def ray_token_secret(name: str, uid: str) -> str:
    """Return the name of the Secret with Ray's own token. Another deployment of that name has another."""
    return f"{name}-ray-{uid[:8]}"


def gateway_tokens_config(name: str) -> str:
    """Return the name of the ConfigMap with the hashes of gateways' tokens."""
    return f"{name}-gateway-tokens"


def _identity(deployment: str, uid: str) -> dict[str, str]:
    return {DEPLOYMENT_LABEL: deployment, UID_LABEL: uid}
