"""Where a deployment's pods on KubeRay find weights that were fetched before: a claim of its own namespace.

A cache is worth a fetch and nothing else. What the engine opens is a private copy, each byte of which is
verified on its way there.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from gptoss_api.model import ApiModel, cel
from gptoss_api.pod import ClassName

CACHE_CLAIM = "gptoss-weights-cache"
"""The claim that deployments may use unless an administrator says otherwise: who names a claim so offers it."""

ByteSize = Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[1-9][0-9]{0,17}(Ki|Mi|Gi|Ti)?$")]
"""A number of bytes, as ``GPTOSS_WEIGHTS_MAX_BYTES`` takes it."""


class Cache(ApiModel):
    """Weights that were fetched before, for pods on KubeRay."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            "self.type == 'PersistentVolumeClaim' || (!has(self.claimName) && !has(self.maxBytes))",
            "spec.cache.claimName and spec.cache.maxBytes are of a claim: set spec.cache.type to "
            "PersistentVolumeClaim, or remove them",
            fieldPath=".type",
        )
    )

    type: Literal["None", "PersistentVolumeClaim"] = Field(
        default="None",
        description="PersistentVolumeClaim keeps verified weights on a claim for the next pods to copy from. What an "
        "engine opens is always its pod's own copy.",
    )
    claim_name: ClassName | None = Field(
        default=None,
        description=f"Claim in the deployment's namespace, by default {CACHE_CLAIM}. Others only where an "
        "administrator allows them the namespace.",
    )
    max_bytes: ByteSize | None = Field(
        default=None,
        description="Most that weights may take on the claim, such as 200Gi; the least recently used ones go. By "
        "default as much as fits.",
    )

    @property
    def claim(self) -> str | None:
        """Name of the claim, None if there is no cache."""
        return (self.claim_name or CACHE_CLAIM) if self.type == "PersistentVolumeClaim" else None
