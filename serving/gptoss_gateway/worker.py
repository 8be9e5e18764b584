"""``python -m gptoss_gateway.worker``: one of several gateway processes behind the same socket, started by ``crew``.

Its orders come on standard input, one JSON line, so that all of a crew go by the same settings file. The
input's end means that whoever gave them is gone: the worker stops as if it had been told to.
"""

import asyncio
import socket
import sys
from pathlib import Path

import click
import uvloop
from pydantic import ValidationError

from gptoss_api.model import StrictModel
from gptoss_gateway import logs
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.process import run
from gptoss_gateway.server import Sockets
from gptoss_gateway.settings import GatewaySettings
from gptoss_kube.errors import KubeError

CANNOT_START = 78
"""Exit status of a worker that could not start and said why (EX_CONFIG of sysexits.h)."""


class Orders(StrictModel):
    """What a worker needs to know."""

    settings: GatewaySettings
    kubeconfig: Path | None
    log_level: str
    listen_fd: int
    """The listening socket for clients, inherited."""
    admin_socket: Path
    """Where to listen for questions about health and metrics."""


def main() -> None:
    """Serve until SIGTERM or the end of standard input."""
    try:
        orders = Orders.model_validate_json(sys.stdin.buffer.readline())
        logs.configure(orders.log_level)
        sockets = Sockets(
            clients=socket.socket(fileno=orders.listen_fd), admin=orders.admin_socket, lifeline=sys.stdin.fileno()
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(orders.settings, kubeconfig=orders.kubeconfig, sockets=sockets))
    except (SettingsError, KubeError, OSError, ValidationError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()
