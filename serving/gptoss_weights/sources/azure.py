"""Weights in Azure Blob Storage: a prefix of a container, in the storage account that an administrator names.

A blob is read by ordered ranges, each pinned to the ETag that the pull began with.
"""

import base64
import binascii
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import parse_qs

import requests
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError
from azure.storage.blob import ContainerClient

from gptoss_api.names import CREDENTIALS_SECRET
from gptoss_weights.errors import (
    AccessDeniedError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceUnavailableError,
    ThrottledError,
    WeightsError,
)
from gptoss_weights.location import Location
from gptoss_weights.sources.azure_identity import WorkloadCredential
from gptoss_weights.sources.azure_transport import AzureTransport
from gptoss_weights.sources.endpoint import can_be_overheard, check_endpoint
from gptoss_weights.sources.protocol import ObjectVersion
from gptoss_weights.sources.retry import asked_wait, retrying
from gptoss_weights.sources.settings import (
    AZURE_ACCOUNT_VARIABLE,
    AZURE_KEY_VARIABLE,
    AZURE_SAS_VARIABLE,
    PARALLEL_FILES_VARIABLE,
    SourceSettings,
)

# The library holds a range in memory, twice while it hands it out: so many at a time, whatever the number of files.
_RANGE_BYTES: Final = 4 * 1024 * 1024
_RANGES_AT_ONCE: Final = 12
_CHUNK_BYTES: Final = 256 * 1024
_LARGEST_REQUEST: Final = 2**40
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_TOKEN: Final = re.compile(r"\??[!-~]{1,4096}")
# https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key: "no older than 15 minutes"
_MOST_SKEW: Final = timedelta(minutes=15)
_NO_CONTAINER: Final = frozenset({"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"})


class AzureSource:
    """A prefix of a container."""

    def __init__(self, location: Location, *, settings: SourceSettings) -> None:
        self._prefix = "".join(f"{segment}/" for segment in location.segments)
        self._endpoint = _endpoint(settings)
        self._token = _checked_token(settings.azure_sas_token, self._endpoint)
        self._max_attempts = settings.max_attempts
        self._room = threading.BoundedSemaphore(_RANGES_AT_ONCE)
        self._transport = AzureTransport(settings)
        self._workload: WorkloadCredential | None = None
        self._container = ContainerClient(
            self._endpoint,
            location.bucket,
            credential=self._credential(settings),
            transport=self._transport,
            retry_total=0,  # ours are in retry.py, one policy for requests and streams
            permit_redirects=False,
            max_single_get_size=_LARGEST_REQUEST,  # a range is one request: we choose how long it is
            http_logging_level=logging.DEBUG,
        )

    def stat(self, name: str) -> ObjectVersion:
        """Return size and ETag of a blob."""
        return retrying(self._max_attempts)(self._stat, name)

    def read_small(self, name: str, *, limit: int) -> bytes:
        """Return a whole blob of at most ``limit`` bytes."""
        return retrying(self._max_attempts)(self._read_small, name, limit)

    def stream(self, name: str, *, version: ObjectVersion, offset: int = 0) -> Iterator[bytes]:
        """Yield a blob's bytes from ``offset`` on, of exactly this version."""
        return self.stretch(name, version=version, offset=offset, end=version.size)

    def stretch(self, name: str, *, version: ObjectVersion, offset: int, end: int) -> Iterator[bytes]:
        """Yield a blob's bytes from ``offset`` up to ``end``, of exactly this version."""
        while offset < end:
            with self._room:
                found = self._range(name, version, offset, end)
                offset += len(found)
                # Who waits for the next range holds a piece of this one, and no more.
                for start in range(0, len(found), _CHUNK_BYTES):
                    yield found[start : start + _CHUNK_BYTES]
                del found

    def close(self) -> None:
        """Close the connections, and end the ranges that other threads still wait for."""
        self._transport.shut()
        if self._workload is not None:
            self._workload.close()

    def _credential(
        self, settings: SourceSettings
    ) -> AzureSasCredential | AzureNamedKeyCredential | WorkloadCredential:
        if self._token is not None:
            return AzureSasCredential(self._token)
        key = (settings.azure_account_key or "").strip()
        if not key and settings.azure_workload is not None:
            if not self._endpoint.startswith("https://"):
                raise AccessDeniedError(
                    "the object store's endpoint is http://, over which no token of a workload's identity is sent; "
                    "use https://"
                )
            self._workload = WorkloadCredential(settings.azure_workload, settings)
            return self._workload
        if not key:
            raise AccessDeniedError(
                f"there are no credentials for the object store; set {AZURE_SAS_VARIABLE} or {AZURE_KEY_VARIABLE} in "
                f"the Secret {CREDENTIALS_SECRET}, or in the node's environment"
            )
        with suppress(binascii.Error, ValueError):
            if base64.b64decode(key, validate=True):
                return AzureNamedKeyCredential(str(settings.azure_account), key)
        raise AccessDeniedError(f"{AZURE_KEY_VARIABLE} is no key of a storage account; write its base64 text alone")

    def _stat(self, name: str) -> ObjectVersion:
        with self._source_errors(name):
            found = self._container.get_blob_client(self._prefix + name).get_blob_properties()
            return ObjectVersion(size=found.size, etag=str(found.etag))

    def _read_small(self, name: str, limit: int) -> bytes:
        with self._source_errors(name):
            try:
                found = self._container.download_blob(
                    self._prefix + name, offset=0, length=limit + 1, decompress=False
                ).readall()
            except HttpResponseError as error:
                if error.status_code == 416:  # an empty blob has no range at all
                    return b""
                raise
        if len(found) > limit:
            raise ForbiddenContentError(f"{name} is longer than {limit} bytes", file=name)
        return found

    def _range(self, name: str, version: ObjectVersion, offset: int, end: int) -> bytes:
        length = min(_RANGE_BYTES, end - offset)
        with self._source_errors(name):
            answer = self._container.download_blob(
                self._prefix + name,
                offset=offset,
                length=length,
                etag=version.etag,
                match_condition=MatchConditions.IfNotModified,
                decompress=False,
            )
            found = answer.readall()
        # Servers that ignore If-Match exist; what they send is judged by what they say it is.
        if str(answer.properties.etag) != version.etag or len(found) != length:
            raise SourceChangedError(f"{name} was replaced while it was being read", file=name)
        return found

    @contextmanager
    def _source_errors(self, name: str) -> Iterator[None]:
        # Azure's messages quote addresses, with their tokens, and answers: none goes on, not even as a cause.
        try:
            yield
        except HttpResponseError as error:
            raise self._typed(name, error) from None
        except AzureError as error:
            cause = getattr(error, "inner_exception", None)
            if isinstance(error, ServiceRequestError) and isinstance(cause, requests.exceptions.SSLError):
                raise SourceError(
                    "the certificate of the object store is not trusted; name the file with its authority in "
                    "SSL_CERT_FILE",
                    file=name,
                ) from None
            raise SourceUnavailableError(
                f"{name} can't be read from the object store ({type(error).__name__})", file=name
            ) from None
        except (requests.RequestException, OSError, ValueError) as error:  # ValueError: headers that make no sense
            raise SourceUnavailableError(
                f"{name} can't be read from the object store ({type(error).__name__})", file=name
            ) from None
        except SourceError as error:
            if error.file is None:
                error.message, error.file = f"{name}: {error.message}", name
            raise

    def _typed(self, name: str, error: HttpResponseError) -> WeightsError:
        headers: Mapping[str, str] = getattr(error.response, "headers", {})
        status, code = error.status_code or 0, headers.get("x-ms-error-code", "")
        if 300 <= status < 400:
            return SourceNotAllowedError(
                f"the object store redirects {name}, which is not followed; correct its endpoint", file=name
            )
        if status in (401, 403):
            return self._denied(name, status, headers.get("Date", ""))
        if code in _NO_CONTAINER:
            return MissingFileError("the container does not exist; correct spec.model.uri", file=name)
        if status == 404:
            return MissingFileError(f"{name} is not at the source; upload it", file=name)
        if status in (412, 416):
            return SourceChangedError(f"{name} was replaced while it was being read", file=name)
        if status == 409 and code == "BlobArchived":
            return SourceError(f"{name} is in the archive tier; move it to a tier that can be read", file=name)
        if status == 429 or code == "ServerBusy":
            return ThrottledError(
                f"the object store throttles requests (status {status}) for {name}; "
                f"raise its limits, or lower {PARALLEL_FILES_VARIABLE}",
                file=name,
                seconds=asked_wait(headers),
            )
        if status == 408 or status >= 500:
            return SourceUnavailableError(f"the object store answers with status {status} for {name}", file=name)
        return SourceError(
            f"the object store answers with status {status} for {name}; check account and endpoint", file=name
        )

    def _denied(self, name: str, status: int, date: str) -> AccessDeniedError:
        """Say why: Azure has one code for an expired token, a wrong clock and a wrong signature."""
        now = datetime.now(UTC)
        its_now = _date(date) or now
        if self._token is None and abs(its_now - now) > _MOST_SKEW:
            return AccessDeniedError(
                "this machine's clock differs too much from the object store's; synchronise it (NTP)", file=name
            )
        begin, end = _validity(self._token or "")
        if end is not None and end <= its_now:
            return AccessDeniedError(
                f"the token for the object store has expired; renew {AZURE_SAS_VARIABLE}", file=name
            )
        if begin is not None and its_now < begin:
            return AccessDeniedError(
                f"the token for the object store counts only later; make {AZURE_SAS_VARIABLE} with an earlier start "
                "(st), or synchronise the clock of the machine that makes it (NTP)",
                file=name,
            )
        return AccessDeniedError(
            f"the object store refuses to hand out {name} (status {status}); "
            "check the credentials, and that they may read this container (permission r) from this network",
            file=name,
        )


def _endpoint(settings: SourceSettings) -> str:
    if settings.azure_account is None or not _ACCOUNT.fullmatch(settings.azure_account):
        raise SourceNotAllowedError(
            "az:// needs the name of a storage account, 3 to 24 lower-case letters and digits; an administrator sets "
            f"weightSources.azure.account and {AZURE_ACCOUNT_VARIABLE}"
        )
    endpoint = settings.azure_endpoint or f"https://{settings.azure_account}.blob.core.windows.net"
    check_endpoint(endpoint)
    return endpoint.rstrip("/")


def _checked_token(token: str | None, endpoint: str) -> str | None:
    if token is None or not (token := token.strip()):
        return None
    if not _TOKEN.fullmatch(token) or not parse_qs(token.removeprefix("?")).get("sig"):
        raise AccessDeniedError(
            f"{AZURE_SAS_VARIABLE} is no shared access signature; write the token alone, without an address"
        )
    if can_be_overheard(endpoint):
        raise AccessDeniedError(
            "the object store's endpoint is http://, over which no token is sent; "
            f"use https://, or {AZURE_KEY_VARIABLE}"
        )
    return token.removeprefix("?")


def _validity(token: str) -> tuple[datetime | None, datetime | None]:
    """Return from when and until when a token says that it counts."""
    said = parse_qs(token)
    begin, end = (_instant(said.get(name, [""])[0]) for name in ("st", "se"))
    return begin, end


def _instant(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
