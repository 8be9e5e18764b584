"""Where Ray keeps its control store (GCS) so that a head can be lost, as an administrator decides.

In that store lies the code of a Ray cluster's actors: whoever writes to it runs code in the pods of engines. So a
Redis is of one namespace, like the Secrets beside it, and no custom resource names one.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from gptoss_api.model import Name, StrictModel

_NAMESPACE = "{namespace}"
_HOST = r"[a-zA-Z0-9{][a-zA-Z0-9{}.-]*"


class PasswordSecret(StrictModel):
    """A key of a Secret in the deployments' namespaces."""

    name: Name
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "password"


class GcsFaultTolerance(StrictModel):
    """The Redis of some namespaces, each of which has its own."""

    namespaces: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        description="Namespaces; `*` is any. The first entry that fits counts."
    )
    redis_address: Annotated[str, Field(max_length=253, pattern=rf"^rediss?://{_HOST}:[0-9]{{1,5}}$")] = Field(
        description="Redis 6 or later, with its port; `{namespace}` stands for the deployment's. rediss:// is by TLS."
    )
    password_secret: PasswordSecret | None = Field(
        default=None, description="Its password, in a Secret of each of these namespaces; none if it asks for none."
    )

    @property
    def port(self) -> int:
        """The port of its address."""
        return int(self.redis_address.rpartition(":")[2])

    def address_for(self, namespace: str) -> str:
        """Return the URL of a namespace's Redis."""
        return self.redis_address.replace(_NAMESPACE, namespace)

    @model_validator(mode="after")
    def _each_namespace_has_its_own(self) -> Self:
        if not self.namespaces:
            raise ValueError("kubeRay.gcsFaultTolerance[].namespaces is empty: name some, or '*' for all")
        if (len(self.namespaces) > 1 or "*" in self.namespaces) and _NAMESPACE not in self.redis_address:
            raise ValueError(
                f"kubeRay.gcsFaultTolerance[].redisAddress {self.redis_address} is one Redis for several namespaces, "
                "and whoever writes to it runs code in all their engines: put {namespace} into its name, or make an "
                "entry for each namespace"
            )
        if set(self.redis_address.replace(_NAMESPACE, "")) & {"{", "}"} or not 1 <= self.port <= 65535:
            raise ValueError(
                f"kubeRay.gcsFaultTolerance[].redisAddress {self.redis_address} is no address: write "
                "redis://redis.{namespace}.svc:6379, or rediss:// for TLS, with a port of 1 to 65535"
            )
        return self
