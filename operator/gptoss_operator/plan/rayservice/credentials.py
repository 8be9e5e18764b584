"""How the container that fetches weights shows who it is, and nobody else in its pod can.

From a namespace's Secret, or, where an administrator's settings say so, by a token that Kubernetes signs for a
ServiceAccount and that only a cloud's token service takes. It is mounted by us, and not by a cloud's webhook, for
that one would give it to the engine too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gptoss_api.names import CREDENTIALS_SECRET
from gptoss_operator.plan.rayservice.workload import WEIGHTS_CONTAINER, KubeRaySite, Raw, Workload
from gptoss_weights.sources.settings import (
    AZURE_AUTHORITY,
    AZURE_AUTHORITY_VARIABLE,
    AZURE_CLIENT_VARIABLE,
    AZURE_KEY_VARIABLE,
    AZURE_SAS_VARIABLE,
    AZURE_TENANT_VARIABLE,
    AZURE_TOKEN_FILE_VARIABLE,
    HUB_TOKEN_VARIABLE,
    S3_ID_VARIABLE,
    S3_KEY_VARIABLE,
    S3_SESSION_VARIABLE,
)

_SECRETS = {
    "s3": (S3_ID_VARIABLE, S3_KEY_VARIABLE, S3_SESSION_VARIABLE),
    "az": (AZURE_SAS_VARIABLE, AZURE_KEY_VARIABLE),
    "hf": (HUB_TOKEN_VARIABLE,),
    "file": (),
}
"""By a URI's scheme, what its container may take from the namespace's Secret."""
_VOLUME = "identity"
_FOLDER = "/gptoss/identity"
_FILE = "token"
_TOKEN_SECONDS = 3600
"""The kubelet writes a new one at four fifths of it. Kubernetes allows ten minutes at least."""
_LONGEST_SESSION_NAME = 64
_EVERY_CONTAINER = ("ray-worker", "wait-gcs-ready", WEIGHTS_CONTAINER)
_AWS_STS = "https://sts.amazonaws.com"
"""Of no region: it stands for the port of each region's."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What they add to a worker's pod.

    Attributes:
        env: of the container that fetches weights.
        mounts: of that container alone.
        volumes: of the pod.
        service_account: whom the pod runs as; None is the namespace's default one.
        annotations: of the pod.
    """

    env: tuple[Raw, ...]
    mounts: tuple[Raw, ...] = ()
    volumes: tuple[Raw, ...] = ()
    service_account: str | None = None
    annotations: Mapping[str, str] | None = None


def credentials_of(workload: Workload, site: KubeRaySite) -> Credentials:
    """Return the credentials for a deployment's source: an identity where there is one for it, else the Secret's."""
    found = _identity_of(workload, site)
    if found is None:
        return Credentials(env=tuple(_from_secret(name) for name in _SECRETS[workload.scheme]))
    return Credentials(
        env=tuple({"name": name, "value": value} for name, value in sorted(found.environment.items())),
        mounts=({"name": _VOLUME, "mountPath": _FOLDER, "readOnly": True},),
        volumes=(_token_volume(found.audience),),
        service_account=found.service_account,
        # Somebody may have annotated the account for Amazon's webhook: it keeps its hands off, the engine above all.
        annotations={"eks.amazonaws.com/skip-containers": ",".join(_EVERY_CONTAINER)},
    )


def token_service(workload: Workload, site: KubeRaySite) -> str | None:
    """Return the URL of the service that takes a worker's token, if it has one."""
    found = _identity_of(workload, site)
    return found.endpoint if found is not None else None


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """An identity for one deployment's source; ``endpoint`` is the URL of what takes its token."""

    service_account: str
    audience: str
    environment: Mapping[str, str]
    endpoint: str


def _identity_of(workload: Workload, site: KubeRaySite) -> _Identity | None:
    entry = site.settings.identity_of(workload.namespace)
    if entry is None:
        return None
    if workload.scheme == "s3" and (aws := entry.aws) is not None:
        return _Identity(
            service_account=entry.service_account_name,
            audience=aws.audience,
            environment={
                "AWS_ROLE_ARN": aws.role_arn,
                # Who reads the cloud's audit log sees whose weights were fetched.
                "AWS_ROLE_SESSION_NAME": f"gptoss.{workload.namespace}.{workload.name}"[:_LONGEST_SESSION_NAME],
                "AWS_WEB_IDENTITY_TOKEN_FILE": f"{_FOLDER}/{_FILE}",
                **({"AWS_ENDPOINT_URL_STS": aws.sts_endpoint} if aws.sts_endpoint is not None else {}),
            },
            endpoint=aws.sts_endpoint or _AWS_STS,
        )
    if workload.scheme == "az" and (azure := entry.azure) is not None:
        return _Identity(
            service_account=entry.service_account_name,
            audience=azure.audience,
            environment={
                AZURE_CLIENT_VARIABLE: azure.client_id,
                AZURE_TENANT_VARIABLE: azure.tenant_id,
                AZURE_TOKEN_FILE_VARIABLE: f"{_FOLDER}/{_FILE}",
                **({AZURE_AUTHORITY_VARIABLE: azure.authority_host} if azure.authority_host is not None else {}),
            },
            endpoint=azure.authority_host or AZURE_AUTHORITY,
        )
    return None


def _from_secret(name: str) -> Raw:
    return {
        "name": name,
        "valueFrom": {"secretKeyRef": {"name": CREDENTIALS_SECRET, "key": name, "optional": True}},
    }


def _token_volume(audience: str) -> Raw:
    token = {"audience": audience, "expirationSeconds": _TOKEN_SECONDS, "path": _FILE}
    return {"name": _VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}}
