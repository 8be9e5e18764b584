"""Streams that are longer than what carries them: replicas and HAProxy come and go meanwhile."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import urlsplit

import psutil
import pytest

from gptoss_api.application import ROUTER_DEPLOYMENT
from gptoss_api.names import GATEWAY_TOKEN_HEADER, route_prefix
from gptoss_cli.local.ray_head import RayHead
from tests.engine.conftest import SignedFolder
from tests.engine.ray import GATEWAY_TOKEN, SECONDS, Applications

pytestmark = pytest.mark.timeout(1200)
MARGIN_SECONDS = 15.0


def test_streams_outlive_rays_hard_stop_of_the_proxies_that_scaling_replaced(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    """Whenever a replica comes or goes, Ray starts another HAProxy. The one before takes no connections any more and
    ends whatever it still carries once its hard stop has passed: two minutes later, unless Ray is told otherwise.

    Here a scale-up replaces the proxy of one stream and a scale-down that of another, which also takes the replica of
    one of them away. Both go on for longer than Ray's default after that, in the very processes that were replaced:
    without our setting those would be gone.
    """
    head = applications.head
    application = applications.put("long", weights=signed("long").weights)
    applications.wait(application, "RUNNING")
    applications.wait_for_answer("long")

    with ExitStack() as stack:
        first = stack.enter_context(_Stream(head, "long"))
        applications.scale(application, 2)
        applications.until(first.proxy_is_replaced, what="the scale-up replaced the first stream's proxy")
        second = stack.enter_context(_stream_of_another_replica(applications, "long", than=first))
        applications.scale(application, 1)
        leaving = ["RUNNING", "STOPPING"]
        applications.until(lambda: _states(applications, application) == leaving, what="a replica is on its way out")
        applications.until(second.proxy_is_replaced, what="the scale-down replaced the second stream's proxy")

        until = time.monotonic() + _rays_default_hard_stop() + MARGIN_SECONDS
        while time.monotonic() < until:
            assert first.goes_on()
            assert second.goes_on()
        assert first.proxy_is_replaced()
        assert second.proxy_is_replaced()


class _Stream:
    """An endless stream through HAProxy, and the process that carries it."""

    def __init__(self, head: RayHead, name: str) -> None:
        serve = urlsplit(head.serve_url)
        self._port = serve.port
        self._connection = http.client.HTTPConnection(str(serve.hostname), serve.port, timeout=SECONDS)
        ask = {"model": "any", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        body = json.dumps({**ask, "chunks": 100_000, "pace": 0.5})
        path = f"{route_prefix('ml', name)}/v1/chat/completions"
        self._connection.request("POST", path, body, {GATEWAY_TOKEN_HEADER: GATEWAY_TOKEN})
        port = self._connection.sock.getsockname()[1]
        self._reply = self._connection.getresponse()
        self._proxy = _holder(head, port)
        self.replica = str(self._next()["system_fingerprint"])

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def goes_on(self) -> bool:
        """Take the next piece; False when the stream has ended."""
        return bool(self._next())

    def proxy_is_replaced(self) -> bool:
        """Tell whether the process that carries this stream leaves new connections to another."""
        return not any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == self._port
            for each in self._proxy.net_connections("tcp")
        )

    def _next(self) -> dict[str, object]:
        for line in self._reply:
            if line.startswith(b"data: {"):
                return dict(json.loads(line[6:]))
        return {}


def _stream_of_another_replica(applications: Applications, name: str, *, than: _Stream) -> _Stream:
    found: list[_Stream] = []

    def came() -> bool:
        stream = _Stream(applications.head, name)
        if stream.replica == than.replica:
            stream.__exit__()
            return False
        found.append(stream)
        return True

    applications.until(came, what="a stream of the other replica")
    return found[0]


def _holder(head: RayHead, client_port: int) -> psutil.Process:
    """Return the HAProxy that took a connection."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or ()
        if line and line[0].endswith("haproxy") and any(str(head.temporary) in each for each in line):
            for each in process.net_connections("tcp"):
                if each.raddr and each.raddr.port == client_port:
                    return process
    raise AssertionError(f"no HAProxy of this Ray has the connection from port {client_port}")


def _states(applications: Applications, application: str) -> list[str]:
    deployments = applications.all()[application]["deployments"]
    (server,) = (each for name, each in deployments.items() if name != ROUTER_DEPLOYMENT)
    return sorted(replica["state"] for replica in server["replicas"])


def _rays_default_hard_stop() -> int:
    """Ask the pinned Ray, in a process that is not told otherwise."""
    source = "from ray.serve._private.constants import RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S as seconds; print(seconds)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    python = [sys.executable, "-c", source]
    done = subprocess.run(python, env=environment, capture_output=True, text=True, timeout=SECONDS, check=True)
    return int(done.stdout.split()[-1])
