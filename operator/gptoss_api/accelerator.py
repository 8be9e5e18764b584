"""What a deployment asks to compute on; ``hardware`` knows what there is. How many follows from the parallelism."""

from typing import Annotated, Literal

from pydantic import Field

from gptoss_api.model import ApiModel

Vendor = Literal["nvidia", "amd", "cpu"]

_RESOURCE = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
_PRODUCT_LABEL = {"nvidia": "nvidia.com/gpu.product", "amd": "amd.com/gpu.product-name"}
"""Labels of NVIDIA's gpu-feature-discovery and of AMD's node labeller."""

QualifiedName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$",
    ),
]
"""A Kubernetes name with an optional DNS prefix, such as ``nvidia.com/gpu``."""

LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
"""The value of a label, which may be empty."""


class AcceleratorRequest(ApiModel):
    """Which accelerators a replica's pods ask for."""

    vendor: Vendor = Field(
        default="nvidia", description="Maker of the accelerators; cpu computes without any, for trials and tests."
    )
    product: LabelValue | None = Field(
        default=None,
        description="Only nodes with this product label are used, such as NVIDIA-H100-80GB-HBM3 "
        "(nvidia.com/gpu.product, amd.com/gpu.product-name).",
    )
    resource_name: QualifiedName | None = Field(
        default=None, description="Extended resource to ask for, by default nvidia.com/gpu or amd.com/gpu."
    )

    @property
    def resource(self) -> str | None:
        """The extended resource that pods ask for; None on a CPU."""
        return None if self.vendor == "cpu" else self.resource_name or _RESOURCE[self.vendor]

    @property
    def product_label(self) -> str:
        """The label with which nodes name their product; empty on a CPU."""
        return _PRODUCT_LABEL.get(self.vendor, "")

    @property
    def node_selector(self) -> dict[str, str]:
        """Labels that a node must have."""
        if not self.product or self.vendor == "cpu":
            return {}
        return {self.product_label: self.product}
