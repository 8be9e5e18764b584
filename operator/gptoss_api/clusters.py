"""An administrator's entry for a Ray cluster, as it stands in the settings of operator and gateway."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, HttpUrl, TypeAdapter, field_validator, model_validator

from gptoss_api.hardware import GIB, Accelerator, accelerator_named
from gptoss_api.model import Name, StrictModel

_URL = TypeAdapter(HttpUrl)


class ClusterHardware(StrictModel):
    """What an administrator says of a cluster's accelerators, where Ray can't or the nodes come and go."""

    accelerator: str = Field(description="Name as `gptoss fit --list` has it, such as H100-80GB.")
    per_node: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="Accelerators of each node.")
    memory_gib: Annotated[float, Field(ge=1, le=4096)] | None = Field(
        default=None, alias="memoryGiB", description="GiB of each, where it differs: a MIG slice, or a CPU's share."
    )

    @property
    def card(self) -> Accelerator:
        """The accelerator from the catalogue, with the memory that was told."""
        card = accelerator_named(self.accelerator)
        return card if self.memory_gib is None else card.with_memory(int(self.memory_gib * GIB))

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.card.memory_bytes == 0:
            raise ValueError(f"memoryGiB must say how much memory an engine has on {self.accelerator}")
        return self


class RayCluster(StrictModel):
    """Where a Ray cluster is reached and which namespaces may use it. Never part of a custom resource."""

    name: Name = Field(description="How deployments name this cluster.")
    dashboard_url: str = Field(alias="dashboardURL", description="Ray's dashboard, such as http://127.0.0.1:8265.")
    serve_url: str = Field(alias="serveURL", description="Ray Serve's proxy, such as http://127.0.0.1:8000.")
    token_file: Path | None = Field(
        default=None, description="File with Ray's bearer token; none where Ray's authentication is off."
    )
    gateway_token_file: Path = Field(
        description="File with the token that replicas ask of every request; while that changes, the new one above it."
    )
    hardware: ClusterHardware | None = Field(
        default=None, description="Its accelerators; by default what Ray's nodes tell."
    )
    allowed_namespaces: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("*",), description="Namespaces whose deployments may run here; `*` is any."
    )

    @field_validator("dashboard_url", "serve_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        _URL.validate_python(value)
        return value.rstrip("/")

    def allows(self, namespace: str) -> bool:
        """Tell whether deployments of a namespace may run on this cluster."""
        return "*" in self.allowed_namespaces or namespace in self.allowed_namespaces
