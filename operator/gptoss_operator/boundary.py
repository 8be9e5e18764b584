"""What the operator asks of Kubernetes, as narrow as it is. Everything else of the API stays outside."""

from collections.abc import Mapping
from typing import Any, Protocol

from gptoss_operator.cache import Kind, Raw


class Kubernetes(Protocol):
    """The API server, seen from a reconcile. Errors are gptoss_kube's."""

    async def list(self, kind: Kind) -> list[Raw]:
        """Return every watched object of a kind: a complete LIST."""
        ...

    async def write_status(self, deployment: Raw, status: Mapping[str, Any]) -> Raw:
        """Apply the status of exactly this object (its uid is a guard) and return what the server made of it."""
        ...

    async def write_policy_status(self, policy: Raw, status: Mapping[str, Any]) -> Raw:
        """Apply the status of exactly this version of a policy; one that was changed since is a Conflict."""
        ...

    async def credentials(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's credentials for sources of weights; none where it has no such Secret."""
        ...

    async def delete_report(self, name: str) -> None:
        """Delete the report of a gateway that is gone."""
        ...

    async def tell(self, deployment: Raw, *, type_: str, reason: str, message: str) -> bool:
        """Record an event about a deployment, and tell whether it was. Never fails: events are for people."""
        ...
