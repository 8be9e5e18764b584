"""Where a deployment on KubeRay is reached: one Service of ours for each, stable over sleep and roll-outs.

KubeRay deletes its own Services when a RayService is suspended, and gives new ones new addresses.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from gptoss_api.model import StrictModel
from gptoss_api.names import route_prefix

SERVE_PORT = 8000


def engine_service(name: str) -> str:
    """Return the name of a deployment's Service."""
    return f"{name}-gptoss"


class EngineAccess(StrictModel):
    """How operator and gateway reach engines that KubeRay runs."""

    gateway_token_file: Path = Field(
        description="File with the token that replicas ask of every request; while that changes, the new one above it."
    )
    service_url: Annotated[str, Field(alias="serviceURL", pattern=r"^https?://[^ ]+$", max_length=256)] = Field(
        default=f"http://{{service}}.{{namespace}}.svc:{SERVE_PORT}",
        description="Base URL of a deployment's Service; {service} and {namespace} are filled in.",
    )

    def engine_url(self, namespace: str, name: str) -> str:
        """Return the base URL of a deployment's engine, without a slash at its end."""
        base = self.service_url.replace("{service}", engine_service(name)).replace("{namespace}", namespace)
        return base.rstrip("/") + route_prefix(namespace, name)
