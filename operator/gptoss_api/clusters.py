"""An administrator's entry for a Ray cluster, as it stands in the settings of operator and gateway."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, HttpUrl, TypeAdapter, field_validator

from gptoss_api.model import Name, StrictModel

_URL = TypeAdapter(HttpUrl)


class RayCluster(StrictModel):
    """Where a Ray cluster is reached and which namespaces may use it. Never part of a custom resource."""

    name: Name = Field(description="How deployments name this cluster.")
    dashboard_url: str = Field(alias="dashboardURL", description="Ray's dashboard, such as http://127.0.0.1:8265.")
    serve_url: str = Field(alias="serveURL", description="Ray Serve's proxy, such as http://127.0.0.1:8000.")
    token_file: Path | None = Field(
        default=None, description="File with Ray's bearer token; none where Ray's authentication is off."
    )
    gateway_token_file: Path = Field(description="File with the token that replicas ask of every request.")
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
