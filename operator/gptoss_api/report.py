"""GatewayReport: what one gateway process tells the operator about demand.

Each gateway writes one object in the system namespace. The operator never compares a time in it
with its own clock: it watches for values that *change* and remembers when it saw that.
"""

from typing import Annotated

from pydantic import Field

from gptoss_api.model import ApiModel, Name


class DeploymentDemand(ApiModel):
    """Demand for one deployment, as one gateway sees it."""

    uid: str = Field(min_length=1, max_length=64, description="UID of the GptOssDeployment.")
    namespace: Name = Field(description="Its namespace.")
    name: Name = Field(description="Its name.")
    waiting: int = Field(default=0, ge=0, description="Requests held, and demand kept for clients that left.")
    in_flight: int = Field(default=0, ge=0, description="Requests that an engine is answering.")
    last_request: Annotated[str, Field(max_length=64)] = Field(
        default="", description="When the last request arrived, on the gateway's clock; empty if none did."
    )
    drain_epoch_seen: int = Field(
        default=0, ge=0, description="Highest drain epoch since which this gateway holds new requests."
    )


class GatewayReportSpec(ApiModel):
    """One gateway's view."""

    gateway: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="Identity of the gateway process.")
    heartbeat: int = Field(ge=0, description="Grows with every write; a gateway whose heartbeat stands still is gone.")
    renewed_at: Annotated[str, Field(max_length=64)] = Field(
        description="Time of the write, on the gateway's clock. For people."
    )
    closing: bool = Field(
        default=False, description="It takes no new requests any more: tenants' limits are divided among the others."
    )
    deployments: Annotated[tuple[DeploymentDemand, ...], Field(max_length=5000)] = Field(
        default=(),
        description="Demand per deployment; only those with recent requests.",
        # Each object has one writer: owning every entry by itself would double the object and slow each write.
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
