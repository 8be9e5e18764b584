"""The operator's settings file: what an administrator decides, and no custom resource can."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from gptoss_api.clusters import RayCluster
from gptoss_api.model import Name, StrictModel
from gptoss_operator.election import Terms
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from gptoss_weights.sources.download_hosts import check_download_host
from gptoss_weights.sources.settings import HUB_ENDPOINT, SourceSettings


class SettingsError(Exception):
    """The settings file can't be used; the message names the file and what is wrong in it."""


class S3Settings(StrictModel):
    """An object store that isn't AWS."""

    endpoint: str | None = Field(default=None, description="URL of the store; none is AWS itself.")
    region: str | None = Field(default=None, description="Region to sign requests for.")


class HubSettings(StrictModel):
    """A Hugging Face hub, or a mirror of one."""

    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None, description="URL of the hub; none is the public one."
    )
    download_hosts: tuple[Annotated[str, AfterValidator(check_download_host)], ...] = Field(
        default=(), description="Hosts to which the hub may redirect for the bytes of large files; none refuses that."
    )


class AzureSettings(StrictModel):
    """The account of Azure Blob Storage that holds the containers of ``az://``."""

    account: Annotated[str, Field(pattern=r"^[a-z0-9]{3,24}$")] | None = Field(
        default=None, description="Name of the storage account; none refuses az://."
    )
    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None, description="URL of the account's blob service; none is https://<account>.blob.core.windows.net."
    )


class WeightSources(StrictModel):
    """Where weights are read from.

    The operator's own credentials come from its environment, for S3 in boto3's ways. For Azure those of the Secret
    gptoss-model-credentials of the deployment's namespace count more, and a hub's token comes only from there.
    """

    file_roots: tuple[Path, ...] = Field(default=(), description="Folders below which file:// may be read.")
    s3: S3Settings = Field(default_factory=S3Settings)
    azure: AzureSettings = Field(default_factory=AzureSettings)
    hugging_face: HubSettings = Field(default_factory=HubSettings)


class MetricsSettings(StrictModel):
    """Listener of /metrics, /healthz and /readyz."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9402


class LeaderElection(Terms):
    """How replicas of the operator agree on the one that writes, by a Lease in the system namespace."""

    lease_name: Name = Field(default="gptoss-operator", description="One per installation.")


class Settings(StrictModel):
    """The operator's settings."""

    installation: Name = Field(description="Marks what this installation made on shared Ray clusters.")
    system_namespace: Name = Field(description="Namespace of the gateways' reports.")
    default_ray_cluster: Name | None = Field(default=None, description="For deployments that name none.")
    ray_clusters: tuple[RayCluster, ...] = ()
    kube_ray: KubeRaySettings | None = Field(
        default=None,
        description="Run replicas on KubeRay: deployments that name it, and without a defaultRayCluster all that "
        "name nothing.",
    )
    gateway_url: str = Field(default="", alias="gatewayURL", description="Base URL that status tells clients.")
    weight_sources: WeightSources = Field(default_factory=WeightSources)
    sigstore_trusted_roots: dict[Name, Path] = Field(
        default_factory=dict,
        description="Files of Sigstore instances (trusted_root.json) by the name that policies give them; read again "
        "at each check.",
    )
    serving_import_path: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = "gptoss_serving.app:build"
    max_concurrent_starts: Annotated[int, Field(ge=1, le=1000)] = 4
    resync_seconds: Annotated[float, Field(ge=5)] = 300.0
    workers: Annotated[int, Field(ge=1, le=64)] = 8
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    leader_election: LeaderElection | None = Field(
        default=None, description="Needed as soon as there are two replicas; {} takes the defaults."
    )
    namespaces: tuple[Name, ...] = Field(default=(), description="Namespaces to watch; none is all.")

    @model_validator(mode="after")
    def _clusters_are_told_apart(self) -> Self:
        names = [cluster.name for cluster in self.ray_clusters]
        if len(set(names)) != len(names):
            raise ValueError("rayClusters[].name must be unique")
        if self.default_ray_cluster is not None and self.default_ray_cluster not in names:
            raise ValueError(f"defaultRayCluster {self.default_ray_cluster} is not among rayClusters")
        return self

    @property
    def kube_ray_is_default(self) -> bool:
        """Whether KubeRay runs deployments that name no substrate."""
        return self.kube_ray is not None and self.default_ray_cluster is None

    def kube_ray_site(self, gateway_token_hashes: tuple[str, ...]) -> KubeRaySite | None:
        """Return what renderings for KubeRay depend on; None without KubeRay."""
        if self.kube_ray is None:
            return None
        sources = self.sources()
        return KubeRaySite(
            settings=self.kube_ray,
            system_namespace=self.system_namespace,
            s3_endpoint=sources.s3_endpoint,
            s3_region=sources.s3_region,
            azure_account=sources.azure_account,
            azure_endpoint=sources.azure_endpoint,
            hf_endpoint=self.weight_sources.hugging_face.endpoint,
            hf_download_hosts=self.weight_sources.hugging_face.download_hosts,
            gateway_token_hashes=gateway_token_hashes,
        )

    def sources(self) -> SourceSettings:
        """Return how weights are read: the environment's credentials, but a hub's token; these settings' places."""
        environment = SourceSettings.from_environment()
        claims = self.kube_ray.file_roots if self.kube_ray is not None else ()
        return SourceSettings(
            file_roots=(
                *(self.weight_sources.file_roots or environment.file_roots),
                *(Path(root.path) for root in claims),
            ),
            s3_endpoint=self.weight_sources.s3.endpoint or environment.s3_endpoint,
            s3_region=self.weight_sources.s3.region or environment.s3_region,
            s3_access_key_id=environment.s3_access_key_id,
            s3_secret_access_key=environment.s3_secret_access_key,
            azure_account=self.weight_sources.azure.account or environment.azure_account,
            azure_endpoint=self.weight_sources.azure.endpoint or environment.azure_endpoint,
            azure_sas_token=environment.azure_sas_token,
            azure_account_key=environment.azure_account_key,
            azure_workload=environment.azure_workload,
            hf_endpoint=self.weight_sources.hugging_face.endpoint or HUB_ENDPOINT,
            hf_download_hosts=self.weight_sources.hugging_face.download_hosts,
        )


def load_settings(path: Path) -> Settings:
    """Read a settings file.

    Raises:
        SettingsError: it is missing, is no YAML, or says what is not permitted.
    """
    try:
        document = yaml.safe_load(path.read_text())
        return Settings.model_validate(document)
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"settings file {path} is not YAML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"settings file {path}: {error}") from error
