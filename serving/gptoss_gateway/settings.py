"""What an administrator decides about a gateway: one YAML file, read once at start."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from gptoss_api.clusters import RayCluster
from gptoss_api.kuberay import EngineAccess
from gptoss_api.model import Name, StrictModel
from gptoss_gateway.errors import SettingsError


class Listener(StrictModel):
    """An address to listen on."""

    host: Annotated[str, Field(min_length=1)] = Field(default="127.0.0.1", description="Address to bind.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(description="TCP port; 0 takes a free one.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class TLS(StrictModel):
    """The certificate of the listener for clients."""

    cert_file: Path = Field(description="PEM file: the certificate, then the authorities' between it and a root.")
    key_file: Path = Field(description="PEM file: the certificate's private key, not encrypted.")
    minimum_version: Literal["TLSv1.2", "TLSv1.3"] = Field(
        default="TLSv1.2", description="Oldest protocol that is spoken."
    )
    client_ca_file: Path | None = Field(
        default=None,
        alias="clientCAFile",
        description="PEM file with authorities: only clients with a certificate of theirs get as far as a key.",
    )


class Limits(StrictModel):
    """Bounds of one gateway process."""

    max_held_total: Annotated[int, Field(ge=0)] = Field(
        default=1000, description="Requests held for waking models, all models together."
    )
    max_held_bytes: Annotated[int, Field(ge=0)] = Field(
        default=256 * 1024 * 1024, description="Bodies of held requests together, in bytes."
    )
    max_connections: Annotated[int, Field(ge=1)] = Field(
        default=10_000, description="Clients' connections; the process needs two open files for each request."
    )
    max_connections_per_client: Annotated[int, Field(ge=1)] = Field(
        default=5_000,
        description="Connections from one address. Behind a proxy, all of its clients share the proxy's.",
    )
    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=32 * 1024, description="Largest request line and headers, in bytes."
    )
    head_seconds: Annotated[float, Field(gt=0)] = Field(
        default=10.0,
        description="Time a client has for its TLS handshake, and to send a request's headers from their first byte, "
        "in seconds.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=8 * 1024 * 1024, description="Largest request body, in bytes."
    )
    max_bodies_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=512 * 1024 * 1024,
        description="Request bodies in memory together, in bytes: coming in, held, or on their way to an engine.",
    )
    body_seconds: Annotated[float, Field(gt=0)] = Field(
        default=30.0, description="Time a client has to send its body, in seconds."
    )
    stall_seconds: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Time that a client may let an answer lie unread before it is dropped, in seconds."
    )
    idle_seconds: Annotated[float, Field(gt=0)] = Field(
        default=600.0, description="Longest silence of an engine within a stream, in seconds."
    )


class Shutdown(StrictModel):
    """How the process ends."""

    delay_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Seconds between /readyz going off and closing the listener, so load balancers notice.",
    )
    grace_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Seconds that open requests have to finish."
    )


class GatewaySettings(StrictModel):
    """The settings file of `python -m gptoss_gateway`."""

    system_namespace: Name = Field(description="Namespace of the GatewayReports.")
    listen: Listener = Field(description="Where clients come in.")
    admin: Listener = Field(description="Metrics and health; not for clients.")
    tls: TLS | None = Field(
        default=None, description="Certificate of `listen`; read again when its files change. None: plain HTTP."
    )
    keys_file: Path | None = Field(default=None, description="Tenants and the hashes of their keys.")
    audit_file: Path | None = Field(
        default=None, description="Where a JSON line per request is written, without content; none by default."
    )
    ray_clusters: tuple[RayCluster, ...] = Field(default=(), description="Ray clusters that replicas run on.")
    kube_ray: EngineAccess | None = Field(
        default=None, description="How replicas on KubeRay are reached; the same as the operator's."
    )
    default_ray_cluster: Name | None = Field(
        default=None, description="Cluster of deployments that name none; the same as the operator's."
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Processes that serve `listen` together. Each has a report, a catalogue, and every bound of "
        "`limits`, of its own; tenants' limits are divided among all gateway processes.",
    )
    limits: Limits = Field(default_factory=Limits, description="Bounds of each process.")
    shutdown: Shutdown = Field(default_factory=Shutdown, description="How this process ends.")
    namespaces: tuple[Name, ...] = Field(
        default=(), description="Namespaces whose deployments are offered; empty means all."
    )

    @model_validator(mode="after")
    def _clusters_are_consistent(self) -> Self:
        names = [cluster.name for cluster in self.ray_clusters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rayClusters names {twice[0]!r} twice: give each entry its own name")
        if self.default_ray_cluster is not None and self.default_ray_cluster not in names:
            raise ValueError(
                f"defaultRayCluster is {self.default_ray_cluster!r}, which rayClusters does not have: "
                f"choose one of {', '.join(names) or 'its entries (there is none)'}"
            )
        return self

    @classmethod
    def load(cls, path: Path, *, allow_anonymous: bool = False) -> Self:
        """Read a settings file and check that the gateway would not stand open.

        Raises:
            SettingsError: unreadable, not YAML, a wrong or unknown field, or no keys.
        """
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: can't be read: {error}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"{path}: is not YAML: {error}") from error
        try:
            settings = cls.model_validate(document)
        except ValidationError as error:
            raise SettingsError(f"{path}: {describe(error)}") from error
        settings.require_guard(allow_anonymous=allow_anonymous)
        return settings

    def require_guard(self, *, allow_anonymous: bool) -> None:
        """Refuse to stand open: keys, or anonymous callers on loopback only.

        Raises:
            SettingsError: no keysFile, or anonymous callers on a reachable address.
        """
        if not allow_anonymous:
            if self.keys_file is None:
                raise SettingsError(
                    "keysFile is missing: name a file with tenants and key hashes (`gptoss keys create`), "
                    "or start with --allow-anonymous on a loopback address"
                )
            return
        if self.keys_file is not None:
            raise SettingsError("keysFile and --allow-anonymous exclude each other: drop one of them")
        if not self.listen.is_loopback:
            raise SettingsError(
                f"listen.host is {self.listen.host!r}: with --allow-anonymous it must be 127.0.0.1 or ::1"
            )


def describe(error: ValidationError) -> str:
    """Return every complaint of a validation, each with the field's path as the file spells it."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'the file'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    )
