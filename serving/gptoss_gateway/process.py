"""The process: one gateway between Kubernetes and the sockets, from start to SIGTERM."""

import asyncio
import logging
import os
import resource
import signal
from pathlib import Path

from gptoss_gateway.app import Gateway
from gptoss_gateway.keys import Anonymous, KeyFile
from gptoss_gateway.kubernetes import KubernetesReports, counted, followed, new_identity
from gptoss_gateway.server import Server, Sockets
from gptoss_gateway.settings import GatewaySettings
from gptoss_kube.client import Kube

_log = logging.getLogger(__name__)

FILES_BESIDE_REQUESTS = 256
"""Open files that are no request's: listeners, probes, the API server, keys."""


async def run(settings: GatewaySettings, *, kubeconfig: Path | None, sockets: Sockets | None = None) -> None:
    """Serve until SIGTERM, SIGINT or the end of a lifeline; a second signal ends the grace.

    Raises:
        SettingsError, KubeError, OSError: the gateway can't start.
    """
    _allow_open_files(2 * settings.limits.max_connections + FILES_BESIDE_REQUESTS)
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, stop, hurry)
    if sockets is not None:
        asyncio.get_running_loop().add_reader(sockets.lifeline, _on_lifeline, sockets.lifeline, stop)
    async with Kube(kubeconfig=kubeconfig, user_agent="gptoss-gateway") as kube:
        gateway = Gateway(
            settings,
            identity=new_identity(),
            keys=KeyFile(settings.keys_file) if settings.keys_file else Anonymous(),
            store=KubernetesReports(kube, namespace=settings.system_namespace),
        )
        server = Server(gateway, sockets=sockets)
        # Whoever learns the models first and is known later could admit by a state that a drain, which
        # nobody waits for it to acknowledge, has already ended.
        gateway.reporter.start()
        await _either(gateway.reporter.known, stop)
        async with (
            counted(kube, settings.system_namespace, gateway.census),
            followed(kube, settings.namespaces, gateway.catalogue),  # also while open requests finish
        ):
            try:
                await server.start()
                await server.serve(stop)
            finally:
                await server.stop(hurry=hurry)


async def _either(*events: asyncio.Event) -> None:
    waits = {asyncio.create_task(event.wait()) for event in events}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _allow_open_files(wanted: int) -> None:
    """Raise this process' own limit: a request needs a file for its client and one for its engine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if unlimited else min(wanted, hard), hard))
    if not unlimited and hard < wanted:
        _log.warning(
            "fewer open files are allowed than limits.maxConnections needs: raise the limit or lower maxConnections",
            extra={"allowed": hard, "needed": wanted},
        )


def _on_lifeline(lifeline: int, stop: asyncio.Event) -> None:
    if not os.read(lifeline, 4096):
        asyncio.get_running_loop().remove_reader(lifeline)
        stop.set()


def _on_signal(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    (hurry if stop.is_set() else stop).set()
