"""Weights in S3 or whatever speaks its protocol."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)

from gptoss_weights.errors import (
    AccessDeniedError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceUnavailableError,
)
from gptoss_weights.location import Location
from gptoss_weights.sources.endpoint import check_endpoint
from gptoss_weights.sources.protocol import ObjectVersion
from gptoss_weights.sources.retry import retrying
from gptoss_weights.sources.settings import PARALLEL_FILES_VARIABLE, SourceSettings

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

# As fast as larger ones, and many files at a time stay small in memory.
_CHUNK_BYTES: Final = 256 * 1024
_CONNECTIONS: Final = 32
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/\d+")
_DENIED_CODES: Final = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "XAdminUserNotFound",  # versitygw, of an unknown access key; with status 404
    }
)
# HEAD has no body, so botocore gives the status as the code.
_MISSING_CODES: Final = frozenset({"NoSuchKey", "NotFound", "404", ""})
_EXPIRED_CODES: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_SKEWED_CODES: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_THROTTLED_CODES: Final = frozenset(
    {"SlowDown", "SlowDownRead", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
)
_BUSY_CODES: Final = frozenset({"RequestTimeout", "ServiceUnavailable", "InternalError"})
_TAKES_ON_A_ROLE: Final = "AssumeRoleWithWebIdentity"
_NO_CREDENTIALS: Final = (
    "there are no credentials for the object store, or half of them; set both AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)
_NO_CREDENTIALS_ERRORS: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
_ERROR_CODE: Final = re.compile(r"[A-Za-z]{1,64}")


class S3Source:
    """A prefix of a bucket. Reads are pinned to the ETag that the pull began with."""

    def __init__(self, location: Location, *, settings: SourceSettings) -> None:
        self._bucket = location.bucket
        self._prefix = "".join(f"{segment}/" for segment in location.segments)
        with _setting_errors():
            self._client = _client(settings)
        self._max_attempts = settings.max_attempts
        self._lock = threading.Lock()
        self._open: set[StreamingBody] = set()
        self._closed = False

    def stat(self, name: str) -> ObjectVersion:
        """Return size and ETag of an object."""
        return retrying(self._max_attempts)(self._stat, name)

    def read_small(self, name: str, *, limit: int) -> bytes:
        """Return a whole object of at most ``limit`` bytes."""
        return retrying(self._max_attempts)(self._read_small, name, limit)

    def stream(self, name: str, *, version: ObjectVersion, offset: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes from ``offset`` on, of exactly this version."""
        return self.stretch(name, version=version, offset=offset, end=version.size)

    def stretch(self, name: str, *, version: ObjectVersion, offset: int, end: int) -> Iterator[bytes]:
        """Yield an object's bytes from ``offset`` up to ``end``, of exactly this version."""
        last = "" if end == version.size else str(end - 1)
        with _source_errors(name):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + name, IfMatch=version.etag, Range=f"bytes={offset}-{last}"
            )
            with closing(answer["Body"]) as body, self._listed(body, name):
                _check_answer(answer, name, version, offset, end)
                while chunk := body.read(_CHUNK_BYTES):
                    yield chunk

    def close(self) -> None:
        """Close the connections, and end the streams that other threads still wait for."""
        with self._lock:
            self._closed = True
            for body in self._open:
                # urllib3's way to wake a reader; botocore hides the response, and closing it waits for the reader.
                with suppress(ValueError, RuntimeError, OSError):
                    body._raw_stream.shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        self._client.close()

    @contextmanager
    def _listed(self, body: "StreamingBody", name: str) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise SourceUnavailableError(f"the source of {name} was closed", file=name)
            self._open.add(body)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(body)

    def _stat(self, name: str) -> ObjectVersion:
        with _source_errors(name):
            found = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            return ObjectVersion(size=_told(found, "ContentLength", name), etag=_told(found, "ETag", name))

    def _read_small(self, name: str, limit: int) -> bytes:
        with _source_errors(name):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            with closing(answer["Body"]) as body:
                # Without an amount the library compares what came with what was told, and without that there is no end.
                told = answer.get("ContentLength", limit + 1)
                content = body.read() if told <= limit else body.read(limit + 1)
        if len(content) > limit:
            raise ForbiddenContentError(f"{name} is longer than {limit} bytes", file=name)
        return content


def _client(settings: SourceSettings) -> "S3Client":
    # Importing boto3 takes a third of a second, which a file:// source need not pay.
    import boto3
    import botocore.session
    from botocore.config import Config

    from gptoss_weights.sources.s3_connections import check_connections

    if settings.s3_endpoint is not None:
        check_endpoint(settings.s3_endpoint)
    if bool(settings.s3_access_key_id) != bool(settings.s3_secret_access_key):
        raise AccessDeniedError(_NO_CREDENTIALS)
    config = Config(
        signature_version="s3v4",
        # Retries are ours (see retry.py), one policy for requests and streams.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        # SHA-256 is checked against the manifest; a second checksum only costs time.
        response_checksum_validation="when_required",
        # The endpoint is an administrator's; a stray ~/.aws/config must not move it.
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # the stubs lag behind
    )
    core = botocore.session.get_session()
    # Of the token service that a workload's identity is shown to, whose client botocore makes for itself.
    core.set_default_client_config(
        Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
        )
    )
    session = boto3.session.Session(
        botocore_session=core,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=settings.s3_secret_access_key,
        aws_session_token=settings.s3_session_token,
        region_name=settings.s3_region or ("us-east-1" if settings.s3_endpoint else None),
    )
    client = session.client("s3", endpoint_url=settings.s3_endpoint, config=config)
    check_connections(client)
    return client


def _told(answer: Any, what: str, name: str) -> Any:
    """Return what every answer of S3's says of an object."""
    if what not in answer:
        header = {"ContentLength": "Content-Length"}.get(what, what)
        raise SourceError(
            f"the object store does not say the {header} of {name}; check that the endpoint speaks S3, and that no "
            "proxy before it takes headers away or compresses answers",
            file=name,
        )
    return answer[what]


def _check_answer(answer: Any, name: str, version: ObjectVersion, offset: int, end: int) -> None:
    # Servers that ignore If-Match or Range exist; what they send is judged by what they say it is.
    if _told(answer, "ETag", name) != version.etag:
        raise SourceChangedError(f"{name} was replaced while it was being read", file=name)
    if _told(answer, "ContentLength", name) != end - offset:
        raise SourceError(f"the object store does not answer range requests for {name}", file=name)
    served = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if offset and (served is None or int(served[1]) != offset):
        raise SourceError(f"the object store answered another range of {name} than asked for", file=name)


@contextmanager
def _setting_errors() -> Iterator[None]:
    """Type what botocore finds wrong before it asks anybody: it reads variables and files while it makes a client."""
    try:
        yield
    except _NO_CREDENTIALS_ERRORS as error:
        raise AccessDeniedError(_NO_CREDENTIALS) from error
    except BotoCoreError as error:
        raise SourceError(
            f"no client for the object store can be made of these settings ({type(error).__name__}); correct "
            "AWS_REGION, AWS_PROFILE, and the files that AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE name"
        ) from error


@contextmanager
def _source_errors(name: str) -> Iterator[None]:
    # Messages of botocore quote addresses and answers: none goes on, not even as a cause. The type says enough.
    try:
        yield
    except ClientError as error:
        raise _typed(name, error) from None
    except _NO_CREDENTIALS_ERRORS:
        raise AccessDeniedError(_NO_CREDENTIALS, file=name) from None
    except (BotoCoreError, OSError) as error:
        # botocore wraps what its connections raise.
        refused = error.kwargs.get("error") if isinstance(error, BotoCoreError) else None
        if isinstance(refused, SourceNotAllowedError):
            raise SourceNotAllowedError(refused.message, file=name) from None
        raise SourceUnavailableError(
            f"{name} can't be read from the object store ({type(error).__name__})", file=name
        ) from None


def _without_role(name: str, status: int, code: str) -> SourceError:
    """Say why a token service gave no credentials for a workload's identity."""
    told = f"{code}, status {status}" if _ERROR_CODE.fullmatch(code) else f"status {status}"
    if code in _THROTTLED_CODES | _BUSY_CODES | {"IDPCommunicationError"} or status == 429 or status >= 500:
        return SourceUnavailableError(f"the token service of the object store can't answer now ({told})", file=name)
    return AccessDeniedError(
        f"the token service of the object store does not let this workload take on its role ({told}); check the role's "
        "name and its trust policy: the cluster's issuer, the audience, and the subject "
        "system:serviceaccount:<namespace>:<name>",
        file=name,
    )


def _typed(name: str, error: ClientError) -> SourceError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if error.operation_name == _TAKES_ON_A_ROLE:
        return _without_role(name, status, code)
    if code in _EXPIRED_CODES:
        return AccessDeniedError(
            "the credentials for the object store have expired; renew them, or let the node take its own by role",
            file=name,
        )
    if code in _SKEWED_CODES:
        return AccessDeniedError(
            "this machine's clock differs too much from the object store's; synchronise it (NTP)", file=name
        )
    if code in _DENIED_CODES or status in (401, 403):
        return AccessDeniedError(
            f"the object store refuses to hand out {name} (status {status}); "
            "check the credentials, and that they may read this prefix",
            file=name,
        )
    if code == "NoSuchBucket":
        return MissingFileError("the bucket does not exist; correct spec.model.uri", file=name)
    if status == 404 and code in _MISSING_CODES:
        return MissingFileError(f"{name} is not at the source; upload it", file=name)
    if status in (412, 416):
        return SourceChangedError(f"{name} was replaced while it was being read", file=name)
    if code in _THROTTLED_CODES or status == 429:
        return SourceUnavailableError(
            f"the object store throttles requests (status {status}) for {name}; "
            f"raise its limits, or lower {PARALLEL_FILES_VARIABLE}",
            file=name,
        )
    if code in _BUSY_CODES or status >= 500:
        return SourceUnavailableError(f"the object store answers with status {status} for {name}", file=name)
    return SourceError(
        f"the object store answers with status {status} for {name}; check endpoint and region", file=name
    )
