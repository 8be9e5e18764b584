"""``python -m gptoss_serving.drain``: waits until nobody speaks to this pod's engine any more.

Kubernetes runs it before it tells Ray to end, and Ray ends at once. Meanwhile the pod is taken out of
its Service, so no new requests come. Connections are counted instead of requests: a stream is one, and
an idle one is closed by its client within seconds.
"""

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gptoss_api.kuberay import SERVE_PORT
from gptoss_api.names import MAX_REQUEST_SECONDS

REPLICA_PORTS = range(30000, 31000)
"""Where replicas listen themselves. Source: Ray Serve's RAY_SERVE_DIRECT_INGRESS_MIN/MAX_HTTP_PORT."""
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
_MAPPED_4 = "0000000000000000FFFF0000"
_LOOPBACK_6 = "00000000000000000000000001000000"
_SETTLE_SECONDS = 5.0
"""For the news that this pod is going to reach every node's proxy."""
_QUIET_LOOKS = 3
_LOOK_SECONDS = 1.0


def busy_connections(tables: Iterable[str]) -> int:
    """Count open connections from elsewhere to Serve's port or a replica's, in tables as /proc/net/tcp holds them."""
    return sum(_counts(line) for table in tables for line in table.splitlines()[1:])


def drain(
    look: Callable[[], int],
    *,
    limit_seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until it has been quiet for a few looks. False if that did not come within the limit."""
    deadline = now() + limit_seconds
    sleep(_SETTLE_SECONDS)
    quiet = 0
    while quiet < _QUIET_LOOKS:
        if now() >= deadline:
            return False
        quiet = quiet + 1 if look() == 0 else 0
        sleep(_LOOK_SECONDS)
    return True


def _counts(line: str) -> bool:
    fields = line.split()
    if len(fields) < 4 or fields[3] != _ESTABLISHED:
        return False
    port = int(fields[1].rpartition(":")[2], 16)
    return (port == SERVE_PORT or port in REPLICA_PORTS) and not _is_loopback(fields[2].rpartition(":")[0])


def _is_loopback(address: str) -> bool:
    """Tell whether an address of such a table (words in little-endian order) is the pod's own loopback."""
    plain = address.removeprefix(_MAPPED_4)
    return address == _LOOPBACK_6 or (len(plain) == 8 and plain.endswith("7F"))


def main() -> int:
    """Wait for this pod; 1 if connections were still open in the end."""
    return 0 if drain(lambda: busy_connections(_read()), limit_seconds=MAX_REQUEST_SECONDS) else 1


def _read() -> list[str]:
    return [table.read_text() for table in _TABLES if table.exists()]


if __name__ == "__main__":
    sys.exit(main())
