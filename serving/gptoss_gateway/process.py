"""The process: one gateway between Kubernetes and the sockets, from start to SIGTERM."""

import asyncio
import signal
from pathlib import Path

from gptoss_gateway.app import Gateway
from gptoss_gateway.keys import Anonymous, KeyFile
from gptoss_gateway.kubernetes import KubernetesReports, followed, new_identity
from gptoss_gateway.server import Server
from gptoss_gateway.settings import GatewaySettings
from gptoss_kube.client import Kube


async def run(settings: GatewaySettings, *, kubeconfig: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the grace.

    Raises:
        SettingsError, KubeError, OSError: the gateway can't start.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, hurry)
    async with Kube(kubeconfig=kubeconfig, user_agent="gptoss-gateway") as kube:
        gateway = Gateway(
            settings,
            identity=new_identity(),
            keys=KeyFile(settings.keys_file) if settings.keys_file else Anonymous(),
            store=KubernetesReports(kube, namespace=settings.system_namespace),
        )
        server = Server(gateway)
        # Whoever learns the models first and is known later could admit by a state that a drain, which
        # nobody waits for it to acknowledge, has already ended.
        gateway.reporter.start()
        await _either(gateway.reporter.known, stop)
        async with followed(kube, settings.namespaces, gateway.catalogue):  # also while open requests finish
            try:
                await server.start()
                await stop.wait()
            finally:
                await server.stop(hurry=hurry)


async def _either(*events: asyncio.Event) -> None:
    waits = {asyncio.create_task(event.wait()) for event in events}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _on_signal(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    (hurry if stop.is_set() else stop).set()
