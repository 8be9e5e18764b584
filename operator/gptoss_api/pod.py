"""The part of a replica's pods that users may shape. Everything else of them is the operator's.

No service account, volume, host namespace or security context can be named here: whoever may write a
GptOssDeployment may run that model's pods, and nothing more.
"""

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from gptoss_api.accelerator import LabelValue, QualifiedName
from gptoss_api.model import INT64, ApiModel

Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
"""A Kubernetes quantity."""

_UNITS: dict[str, Fraction | int] = {
    "m": Fraction(1, 1000), "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def amount(quantity: str) -> int:
    """Return what a quantity says, such as bytes, rounded up."""
    number = quantity.rstrip("mkMGTKi")
    return math.ceil(Fraction(number) * _UNITS[quantity[len(number) :]])


ClassName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
"""Name of a PriorityClass or RuntimeClass."""


NodeSelector = Annotated[dict[Annotated[str, Field(max_length=317)], LabelValue], Field(max_length=16)]
"""Labels that a node must have."""


class PodResources(ApiModel):
    """CPU and memory of one pod. Accelerators follow from the parallelism."""

    cpu: Quantity | None = Field(default=None, description="CPUs requested; by default the operator's setting.")
    memory: Quantity | None = Field(
        default=None, description="Memory requested, which is the limit too; by default the operator's setting."
    )


class Toleration(ApiModel):
    """A taint that the pods tolerate. Its key must be one that an administrator allows the namespace."""

    key: QualifiedName = Field(description="Key of the taint.")
    operator: Literal["Exists", "Equal"] = Field(default="Exists", description="How the taint's value is compared.")
    value: LabelValue = Field(default="", description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; all of them by default."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=86400)] | None = Field(
        default=None, description="Seconds on a node with a NoExecute taint.", json_schema_extra=INT64
    )


class Pod(ApiModel):
    """What may be chosen of a replica's pods, within what an administrator allows the namespace."""

    resources: PodResources = Field(default_factory=PodResources, description="CPU and memory of each worker pod.")
    node_selector: NodeSelector = Field(default_factory=dict, description="Labels that a worker's node must have.")
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = Field(
        default=(), description="Taints that worker pods tolerate."
    )
    priority_class_name: ClassName | None = Field(default=None, description="PriorityClass of all pods.")
    runtime_class_name: ClassName | None = Field(default=None, description="RuntimeClass of worker pods.")
