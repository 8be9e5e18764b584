"""The boundary to Kubernetes, made of gptoss_kube's client."""

import base64
import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import Any

from gptoss_api.names import CREDENTIALS_SECRET, FIELD_MANAGER, GROUP
from gptoss_kube.client import Kube
from gptoss_kube.errors import Conflict, Forbidden, KubeError, NotFound
from gptoss_kube.events import record
from gptoss_kube.resources import (
    GATEWAY_REPORTS,
    GPT_OSS_DEPLOYMENTS,
    NAMESPACES,
    SECRETS,
    WEIGHT_TRUST_POLICIES,
    Resource,
)
from gptoss_operator.cache import Kind, Raw
from gptoss_operator.settings import Settings

_log = logging.getLogger(__name__)
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
        """Apply the status of exactly this object.

        What we know of it is the guard, so that no read precedes the write; only a newer version costs one.
        """
        metadata = deployment["metadata"]
        identity = {name: metadata[name] for name in ("namespace", "name", "uid")}
        guarded = {"metadata": {**identity, "resourceVersion": metadata["resourceVersion"]}, "status": status}
        try:
            return await self._apply_status(guarded)
        except Conflict:
            return await self._apply_status({"metadata": identity, "status": status})

    async def write_policy_status(self, policy: Raw, status: Mapping[str, Any]) -> Raw:
        """Apply the status of exactly this version of a policy."""
        metadata = {name: policy["metadata"][name] for name in ("name", "uid", "resourceVersion")}
        return await self._kube.apply_status(
            {"metadata": metadata, "status": status}, resource=WEIGHT_TRUST_POLICIES, field_manager=FIELD_MANAGER
        )

    async def credentials(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's credentials for sources of weights; none where it has no such Secret."""
        try:
            secret = await self._kube.get(SECRETS, CREDENTIALS_SECRET, namespace=namespace)
        except NotFound:
            return {}
        data = secret.get("data") or {}
        return {name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()}

    async def delete_report(self, name: str) -> None:
        """Delete the report of a gateway that is gone."""
        with contextlib.suppress(NotFound):
            await self._kube.delete(GATEWAY_REPORTS, name, namespace=self._settings.system_namespace)

    async def tell(self, deployment: Raw, *, type_: str, reason: str, message: str) -> bool:
        """Record an event, and tell whether it was; one that can't be written is no reason to fail."""
        try:
            await record(
                self._kube,
                regarding=deployment,
                reason=reason,
                note=message,
                action="Reconcile",
                controller=f"{GROUP}/{FIELD_MANAGER}",
                instance=self._instance,
                kind="Warning" if type_ == "Warning" else "Normal",
                timeout=_EVENT_SECONDS,
            )
        except KubeError as error:
            level = logging.WARNING if isinstance(error, Forbidden) else logging.INFO
            _log.log(level, "an event about %s was not recorded: %s", deployment["metadata"]["name"], error)
            return False
        return True

    async def _apply_status(self, document: Raw) -> Raw:
        return await self._kube.apply_status(document, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER)
