"""Connections that clients have opened and no process has taken yet, as the kernel tells."""

import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gptoss_gateway.acceptor import queue

_COUNTS = Path("/proc/net/netstat")
_OVERFLOWS = "ListenOverflows"


class Queues(Collector):
    """The queues of listening sockets. Nothing is told where the kernel does not."""

    def __init__(self, sockets: Callable[[], Iterable[socket.socket]], *, counts: Path = _COUNTS) -> None:
        self._sockets = sockets
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Look at the sockets."""
        found = [told for each in self._sockets() if (told := queue(each)) is not None]
        if found:
            yield GaugeMetricFamily(
                "gptoss_gateway_untaken_connections",
                "Connections that clients have opened and that wait to be taken.",
                value=sum(told.waiting for told in found),
            )
            yield GaugeMetricFamily(
                "gptoss_gateway_untaken_connections_limit",
                "How many connections may wait to be taken; those beyond are turned away and try again after a second.",
                value=sum(told.bound for told in found),
            )
        overflows = _overflows(self._counts)
        if overflows is not None:
            yield CounterMetricFamily(
                "gptoss_gateway_untaken_connection_overflows",
                "Connections that were turned away because too many waited: of this network namespace, "
                "which is the pod's unless it has the node's.",
                value=overflows,
            )


def _overflows(counts: Path) -> int | None:
    """Return the count of /proc/net/netstat, pairs of lines with names and values; None where there is none."""
    try:
        lines = counts.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        told = dict(zip(names.split(), values.split(), strict=False))
        if _OVERFLOWS in told:
            return int(told[_OVERFLOWS])
    return None
