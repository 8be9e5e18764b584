"""Connections that look at the address they reached before they send a byte to it.

A name is resolved when it is checked and again when it is connected to; what it means may change in between.
"""

import logging
import socket
import ssl
from typing import Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from gptoss_weights.errors import SourceNotAllowedError
from gptoss_weights.sources.endpoint import is_forbidden

_CONNECTIONS: Final = 32
_HOSTS: Final = 8


def connection_pools() -> urllib3.PoolManager:
    """Return pools of connections, none of which reaches a link-local address or a cloud's metadata service.

    What follows a question mark in an address may be a credential: these connections log it nowhere.
    Certificates are checked against the system's authorities, or those of ``SSL_CERT_FILE``.
    """
    logging.getLogger("urllib3.connectionpool").addFilter(_without_queries)
    pools = urllib3.PoolManager(num_pools=_HOSTS, maxsize=_CONNECTIONS, ssl_context=ssl.create_default_context())
    pools.pool_classes_by_scheme = {"http": _CheckedHTTPPool, "https": _CheckedHTTPSPool}
    return pools


def checked(connected: socket.socket) -> socket.socket:
    """Return a socket that leads to where sources may lie; close any other.

    Raises:
        SourceNotAllowedError: it leads to a link-local address or a cloud's metadata service.
    """
    if is_forbidden(str(connected.getpeername()[0])):
        connected.close()
        raise SourceNotAllowedError(
            "a host of the weights' source leads to a link-local or metadata address; correct the settings"
        )
    return connected


class _CheckedHTTP(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return checked(super()._new_conn())


class _CheckedHTTPS(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return checked(super()._new_conn())


class _CheckedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _CheckedHTTP


class _CheckedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedHTTPS


def _without_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(each.partition("?")[0] if isinstance(each, str) else each for each in record.args)
    return True
