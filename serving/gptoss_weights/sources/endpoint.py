"""Endpoints that may be asked: never a cloud's metadata service, whatever name it goes by."""

import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from gptoss_weights.errors import SourceNotAllowedError, SourceUnavailableError

METADATA_SERVICES: Final = tuple(
    map(
        ipaddress.ip_network,
        ("fd00:ec2::/32", "fd20:ce::254/128", "100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32"),
    )
)
"""Of clouds, outside the link-local ranges: AWS and Google over IPv6, Alibaba Cloud, Oracle, and Azure's WireServer
(https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16). Network policies keep pods
from them too."""
# IPv4 inside IPv6: a translator's well-known prefix (RFC 6052), and the old form without one.
_EMBEDDING: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def check_endpoint(endpoint: str) -> None:
    """Check the URL of an object store or a hub.

    Raises:
        SourceNotAllowedError: it is no http(s) URL, holds credentials, or leads to a link-local address.
        SourceUnavailableError: its host can't be resolved.
    """
    try:
        url = urlsplit(endpoint)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise SourceNotAllowedError("the endpoint of a weights' source is not a URL; correct the settings") from error
    if url.scheme not in ("http", "https") or not host or url.username or url.password or url.query or url.fragment:
        raise SourceNotAllowedError(
            "the endpoint of a weights' source must be http(s)://host[:port] without credentials; correct the settings"
        )
    try:
        found = socket.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceUnavailableError("the endpoint of a weights' source can't be resolved") from error
    for *_, address in found:
        if is_forbidden(str(address[0])):
            raise SourceNotAllowedError(
                "the endpoint of a weights' source leads to a link-local or metadata address; correct the settings"
            )


def can_be_overheard(endpoint: str) -> bool:
    """Tell whether what is sent to a URL crosses a network unencrypted."""
    url = urlsplit(endpoint)
    return url.scheme != "https" and url.hostname not in _LOOPBACK


def is_forbidden(text: str) -> bool:
    """Tell whether an address is one that no source ever lies at: link-local, or a cloud's metadata service."""
    address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
    unusual = address.is_link_local or address.is_multicast or address.is_unspecified
    return unusual or any(address in network for network in METADATA_SERVICES)


def _embedded(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback:
        return address
    if any(address in network for network in _EMBEDDING):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address
