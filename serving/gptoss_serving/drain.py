"""``python -m gptoss_serving.drain``: waits until this pod works on no request any more.

Kubernetes runs it before it tells Ray to end, and Ray ends at once. Meanwhile the pod is taken out of its
Service, so no new requests come. Requests are counted, not connections: HAProxy, KubeRay's health check and
gateways keep idle ones open, and a pod that waited for those would hold its GPUs for minutes.
"""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_serving.in_flight import seconds_without_request

RAY_LOGS: Final = Path("/tmp/ray/session_latest/logs")  # noqa: S108 - a volume of this pod alone
HAPROXY_METRICS_PORT: Final = 9101
"""Source: Ray Serve's RAY_SERVE_HAPROXY_METRICS_PORT."""
REPLICA_PORTS: Final = range(30000, 31000)
"""Where replicas listen themselves. Source: Ray Serve's RAY_SERVE_DIRECT_INGRESS_MIN/MAX_HTTP_PORT."""
QUIET_SECONDS: Final = 5.0
"""Longer than a gateway keeps an idle connection: none sends a request on one that is about to break."""
_SETTLE_SECONDS: Final = 5.0
"""For the news that this pod is going to reach every node's proxy."""
_LOOK_SECONDS: Final = 1.0
_QUIET_LOOKS: Final = 1 + round(QUIET_SECONDS / _LOOK_SECONDS)
_ANSWER_SECONDS: Final = 5.0


def drain(
    is_busy: Callable[[], bool],
    *,
    limit_seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until it has been quiet for as long as QUIET_SECONDS. False if that did not come within the limit."""
    deadline = now() + limit_seconds
    sleep(_SETTLE_SECONDS)
    quiet = 0
    while quiet < _QUIET_LOOKS:
        if now() >= deadline:
            return False
        quiet = 0 if is_busy() else quiet + 1
        sleep(_LOOK_SECONDS)
    return True


def replicas_are_busy(ray_logs: Path = RAY_LOGS) -> bool:
    """Tell whether a replica of this node works on a request, or did a moment ago."""
    return seconds_without_request(ray_logs) < QUIET_SECONDS


def proxy_is_busy(metrics_port: int = HAPROXY_METRICS_PORT) -> bool:
    """Tell whether this node's HAProxy passes a request on, to whichever node, or did a moment ago.

    One that doesn't run has none. One that runs and doesn't tell may have some.
    """
    try:
        samples = _samples(metrics_port)
    except ConnectionRefusedError:
        return False
    except (OSError, HTTPException, ValueError):
        return True
    sessions = [sample.value for sample in samples if sample.name == "haproxy_backend_current_sessions"]
    ages = [sample.value for sample in samples if sample.name == "haproxy_backend_last_session_seconds"]
    return not sessions or any(sessions) or any(0 <= age < QUIET_SECONDS for age in ages)


def _samples(metrics_port: int) -> list[Sample]:
    connection = HTTPConnection("127.0.0.1", metrics_port, timeout=_ANSWER_SECONDS)
    with closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def is_replaced_proxy_left(command_lines: Iterable[bytes]) -> bool:
    """Tell whether an HAProxy that has been replaced still runs, which it does until its last stream has ended."""
    return sum(line.partition(b"\0")[0].rpartition(b"/")[2] == b"haproxy" for line in command_lines) > 1


def is_unsent(tables: Iterable[str]) -> bool:
    """Tell whether bytes of an answer still wait for their reader, in tables as /proc/net/tcp holds them."""
    return any(_waits(line) for table in tables for line in table.splitlines()[1:])


def _waits(line: str) -> bool:
    fields = line.split()
    if len(fields) < 5:
        return False
    port = int(fields[1].rpartition(":")[2], 16)
    return port in REPLICA_PORTS and int(fields[4].partition(":")[0], 16) > 0


def main() -> int:
    """Wait for this pod; 1 if it still worked on a request in the end."""
    return 0 if drain(_is_busy, limit_seconds=MAX_REQUEST_SECONDS) else 1


def _is_busy() -> bool:
    return replicas_are_busy() or proxy_is_busy() or is_replaced_proxy_left(_command_lines()) or is_unsent(_tables())


def _command_lines() -> Iterable[bytes]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield file.read_bytes()
        except OSError:
            continue  # it has ended


def _tables() -> Iterable[str]:
    return [table.read_text() for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]


if __name__ == "__main__":
    sys.exit(main())
