"""The gateway's dealings with Kubernetes: it watches deployments and gateways' reports, and keeps its own report."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from gptoss_api.names import API_VERSION, GATEWAY_FIELD_MANAGER
from gptoss_gateway.catalogue import Catalogue
from gptoss_gateway.census import Census, pulse
from gptoss_kube.client import Kube
from gptoss_kube.errors import NotFound
from gptoss_kube.resources import GATEWAY_REPORTS, GPT_OSS_DEPLOYMENTS
from gptoss_kube.watch import Informer


class KubernetesReports:
    """GatewayReports in the system namespace; the gateway's Role reaches no other objects."""

    def __init__(self, kube: Kube, *, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace

    async def apply(self, name: str, spec: Mapping[str, Any], *, deadline: float) -> None:
        """Write the report within ``deadline`` seconds; raises KubeError."""
        report = {
            "apiVersion": API_VERSION,
            "kind": GATEWAY_REPORTS.kind,
            "metadata": {"name": name, "namespace": self._namespace},
            "spec": spec,
        }
        await self._kube.apply(report, resource=GATEWAY_REPORTS, field_manager=GATEWAY_FIELD_MANAGER, timeout=deadline)

    async def delete(self, name: str, *, deadline: float) -> None:
        """Delete the report if it is there; raises KubeError."""
        with contextlib.suppress(NotFound):
            await self._kube.delete(GATEWAY_REPORTS, name, namespace=self._namespace, timeout=deadline)


@contextlib.asynccontextmanager
async def followed(kube: Kube, namespaces: Sequence[str], catalogue: Catalogue) -> AsyncIterator[None]:
    """Keep a catalogue true while open; it is marked as synced once everything that exists is known."""
    async with contextlib.AsyncExitStack() as stack:
        informers = [
            await stack.enter_async_context(
                Informer(
                    kube,
                    GPT_OSS_DEPLOYMENTS,
                    namespace=namespace,
                    on_change=catalogue.on_change,
                    on_delete=catalogue.on_delete,
                )
            )
            for namespace in (namespaces or (None,))
        ]
        syncing = asyncio.create_task(_note_sync(informers, catalogue), name="sync")
        try:
            yield
        finally:
            syncing.cancel()
            await asyncio.wait({syncing})


def counted(kube: Kube, namespace: str, census: Census) -> Informer:
    """Return what keeps a census true while it is open. Without the right to watch, a process counts itself only."""
    return Informer(
        kube,
        GATEWAY_REPORTS,
        namespace=namespace,
        on_change=census.on_change,
        on_delete=census.on_delete,
        keep=pulse,
    )


def new_identity() -> str:
    """Return a name for this process' report: the host's, and something no other process has."""
    host = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in socket.gethostname().lower())
    return f"{host[:40].strip('-') or 'gateway'}-{secrets.token_hex(4)}"


async def _note_sync(informers: Sequence[Informer], catalogue: Catalogue) -> None:
    for informer in informers:
        await informer.synced.wait()
    catalogue.on_synced()
