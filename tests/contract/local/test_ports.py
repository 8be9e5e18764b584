"""Ports that stay free until the program that was told them binds them."""

import socket
from pathlib import Path

from gptoss_cli.local.ports import free_ports


def test_no_port_is_one_that_an_outgoing_connection_may_get():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(free_ports(50)) < first


def test_no_port_is_handed_out_twice():
    ports = free_ports(100) + free_ports(100)
    assert len(set(ports)) == 200


def test_no_port_that_somebody_listens_on():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        taken.listen()
        assert taken.getsockname()[1] not in free_ports(500)
