"""Connections of botocore's that look at the address they reached, as those of the other sources do.

botocore has no setting for its connections, so the classes that its session makes them of are replaced, for the one
client that reads objects: the services that give a node its role lie at link-local addresses by design.
"""

import socket
from typing import TYPE_CHECKING

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from gptoss_weights.sources.connections import checked

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def check_connections(client: "S3Client") -> None:
    """Have every connection of a client, through a proxy or after a redirect too, checked before a byte is sent."""
    session = client._endpoint.http_session  # type: ignore[attr-defined]  # noqa: SLF001
    session._pool_classes_by_scheme.update(http=_CheckedHTTPPool, https=_CheckedHTTPSPool)  # noqa: SLF001


class _CheckedHTTP(AWSHTTPConnection):
    def _new_conn(self) -> socket.socket:
        return checked(super()._new_conn())


class _CheckedHTTPS(AWSHTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return checked(super()._new_conn())


class _CheckedHTTPPool(AWSHTTPConnectionPool):
    ConnectionCls = _CheckedHTTP


class _CheckedHTTPSPool(AWSHTTPSConnectionPool):
    ConnectionCls = _CheckedHTTPS
