"""Ports for programs that must be told theirs before they start.

A port that the kernel would choose is one that it may also give to any outgoing connection a moment
later, and a program that starts seconds after that can't bind it (seen: Ray's HAProxy, for good). So
ports come from below the kernel's own range, and none is handed out twice by one process.
"""

import random
import socket
import threading
from pathlib import Path

from gptoss_cli.local.errors import ProgramError

LOOPBACK = "127.0.0.1"
# Ray Serve takes 30000 to 31000 for replicas; well-known services sit below 10000.
_LOWEST, _HIGHEST = 10_000, 29_999
_TRIES = 10_000
_handed_out: set[int] = set()
_lock = threading.Lock()


def free_ports(count: int) -> list[int]:
    """Return `count` different TCP ports that nobody uses now and no outgoing connection will take."""
    chosen: list[int] = []
    highest = min(_HIGHEST, _first_of_the_kernel() - 1)
    lowest = min(_LOWEST, highest // 2)
    with _lock:
        for _ in range(_TRIES):
            if len(chosen) == count:
                return chosen
            port = random.randint(lowest, highest)  # noqa: S311  no secret
            if port not in _handed_out and _bindable(port):
                _handed_out.add(port)
                chosen.append(port)
    raise ProgramError(f"no {count} free TCP ports between {lowest} and {highest}")


def _bindable(port: int) -> bool:
    """Tell whether every interface has the port free: some programs can't be kept to loopback."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _first_of_the_kernel() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _HIGHEST + 1
