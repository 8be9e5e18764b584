"""A pod that is told to go waits for the requests it works on, and for nothing else."""

import pytest

from gptoss_serving.drain import busy_connections, drain

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue\n"
SERVE, REPLICA, OTHER = "1F40", "7531", "0050"  # 8000, 30001, 80
GATEWAY, LOOPBACK = "0500A8C0", "0100007F"


def table(*connections: tuple[str, str, str]) -> str:
    """Lines of /proc/net/tcp: local port, peer's address, state."""
    lines = [f"   {i}: 0600A8C0:{port} {peer}:C350 {state} 0 0" for i, (port, peer, state) in enumerate(connections)]
    return HEADER + "\n".join(lines)


@pytest.mark.parametrize(
    ("connection", "count"),
    [
        ((SERVE, GATEWAY, "01"), 1),
        ((REPLICA, GATEWAY, "01"), 1),
        ((OTHER, GATEWAY, "01"), 0),
        ((SERVE, GATEWAY, "0A"), 0),
        ((SERVE, GATEWAY, "06"), 0),
        ((SERVE, LOOPBACK, "01"), 0),
        ((SERVE, "0000000000000000FFFF00000100007F", "01"), 0),
        ((SERVE, "00000000000000000000000001000000", "01"), 0),
        ((SERVE, "0000000000000000FFFF00000500A8C0", "01"), 1),
        ((SERVE, "B80D01200000000000000000000000 7F".replace(" ", ""), "01"), 1),
    ],
)
def test_counts_requests_from_elsewhere_only(connection: tuple[str, str, str], count: int) -> None:
    assert busy_connections([table(connection), HEADER]) == count


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waits_until_it_has_been_quiet_for_a_while() -> None:
    time, looks = Time(), iter([2, 0, 1, 0, 0, 0])
    assert drain(lambda: next(looks), limit_seconds=100, now=lambda: time.now, sleep=time.sleep)
    assert next(looks, None) is None
    assert time.now == 11


def test_gives_up_at_its_limit() -> None:
    time = Time()
    assert not drain(lambda: 1, limit_seconds=60, now=lambda: time.now, sleep=time.sleep)
    assert 60 <= time.now < 62
