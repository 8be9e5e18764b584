"""The boundary to Kubernetes, made of gptoss_kube's client."""

import contextlib
import logging
import socket
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gptoss_api.names import FIELD_MANAGER
from gptoss_kube.client import Kube
from gptoss_kube.errors import KubeError, NotFound
from gptoss_kube.resources import (
    EVENTS,
    GATEWAY_REPORTS,
    GPT_OSS_DEPLOYMENTS,
    NAMESPACES,
    WEIGHT_TRUST_POLICIES,
    Resource,
)
from gptoss_operator.cache import Kind, Raw
from gptoss_operator.settings import Settings

_LOG = logging.getLogger(__name__)
_RESOURCES: Mapping[Kind, Resource] = {
    Kind.DEPLOYMENT: GPT_OSS_DEPLOYMENTS,
    Kind.POLICY: WEIGHT_TRUST_POLICIES,
    Kind.REPORT: GATEWAY_REPORTS,
    Kind.NAMESPACE: NAMESPACES,
}
_EVENT_SECONDS = 3.0


class KubernetesAdapter:
    """Lists what is watched, writes status and events."""

    def __init__(self, kube: Kube, *, settings: Settings) -> None:
        self._kube = kube
        self._settings = settings
        self._instance = socket.gethostname()[:128]

    async def list(self, kind: Kind) -> list[Raw]:
        """Return every watched object of a kind."""
        resource = _RESOURCES[kind]
        scopes: tuple[str | None, ...] = (None,)
        if kind is Kind.REPORT:
            scopes = (self._settings.system_namespace,)
        elif kind is Kind.DEPLOYMENT and self._settings.namespaces:
            scopes = self._settings.namespaces
        items: list[Raw] = []
        for namespace in scopes:
            items += (await self._kube.list(resource, namespace=namespace)).items
        return items

    async def write_status(self, deployment: Raw, status: Mapping[str, Any]) -> Raw:
        """Apply the status of exactly this object."""
        metadata = deployment["metadata"]
        document = {
            "metadata": {name: metadata[name] for name in ("namespace", "name", "uid")},
            "status": status,
        }
        return await self._kube.apply_status(document, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER)

    async def delete_report(self, name: str) -> None:
        """Delete the report of a gateway that is gone."""
        with contextlib.suppress(NotFound):
            await self._kube.delete(GATEWAY_REPORTS, name, namespace=self._settings.system_namespace)

    async def tell(self, deployment: Raw, *, type_: str, reason: str, message: str) -> None:
        """Record an event."""
        metadata = deployment["metadata"]
        now = datetime.now(UTC)
        event = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "serving.gptoss.dev/operator",
            "reportingInstance": self._instance,
            "action": "Reconcile",
            "type": type_,
            "reason": reason,
            "note": message[:1024],
            "regarding": {
                "apiVersion": deployment.get("apiVersion"),
                "kind": deployment.get("kind"),
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion"),
            },
        }
        try:
            await self._kube.create(event, resource=EVENTS, field_manager=FIELD_MANAGER, timeout=_EVENT_SECONDS)
        except KubeError as error:
            _LOG.info("an event about %s was not recorded: %s", metadata["name"], error)
