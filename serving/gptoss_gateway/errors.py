"""Everything that can go wrong in the gateway, and how clients are told.

GatewayError
├── SettingsError             the settings file or a file it names is wrong: the process does not start
├── UpstreamUnavailableError  an attempt failed before a byte of the answer: worth another attempt
├── EngineLostError           a connection to an engine broke, or what came over it is not HTTP
├── ClientLeftError           the client closed its connection: nobody is left to tell
└── RequestError              ends one request, in the shape its client library understands
    ├── BadRequestError 400 · UnauthorizedError 401 · NotFoundError 404 · TooSlowError 408 · TooLargeError 413
    ├── UnsupportedMediaError 415 · HeadTooLargeError 431
    ├── ForbiddenError 403       the key's globs exclude the model
    ├── LimitedError 429         the tenant asks for more than there is for it
    │   ├── TooManyHeldError        as many requests wait as may
    │   └── RateLimitedError        the tenant is at one of its own limits
    ├── ModelRefusedError 503    suspended, or can't start: no use in waiting
    ├── UnattendedError 503      nobody starts it: the operator does not react
    ├── WakeTimedOutError 503    waited as long as the deployment allows
    ├── TooBusyError 503         this process is at its bounds
    ├── NotWaitingError 503      its client did not want to wait any longer
    ├── ModelBusyError 503       awake, and its replicas had no place in time
    ├── NotReadyError 503        this process does not know the models yet
    ├── ShuttingDownError 503    this process ends
    ├── UpstreamFailedError 502  the engine's side broke
    └── RequestTooLongError 504
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar


class Dialect(Enum):
    """Which client library reads the answer."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


class GatewayError(Exception):
    """Root of the gateway's errors."""


class SettingsError(GatewayError):
    """Settings, or a file that they name, can't be used; the message names file and field."""


@dataclass(frozen=True, kw_only=True)
class EngineAnswer:
    """A complete answer of the engine that is not a success."""

    status: int
    body: bytes


class UpstreamUnavailableError(GatewayError):
    """An attempt ended before a byte of the answer reached the client.

    ``reached_engine`` is true when the engine may have begun to work on it; ``answer`` is what the
    engine said, if it said something a client can read.
    """

    def __init__(self, message: str, *, reached_engine: bool, answer: EngineAnswer | None = None) -> None:
        super().__init__(message)
        self.reached_engine = reached_engine
        self.answer = answer


class EngineLostError(GatewayError):
    """A connection to an engine ended before an answer did, or what came over it is not HTTP."""


class ClientLeftError(GatewayError):
    """The client closed its connection while it was read from or written to."""


class RequestError(GatewayError):
    """Ends one request. ``retry_after`` is in seconds; ``should_retry`` is told to OpenAI's clients."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"
    default_should_retry: ClassVar[bool | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = code or self.code
        self.param = param
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.default_should_retry is not None:
            headers["x-should-retry"] = "true" if self.default_should_retry else "false"
        return headers

    def body(self, dialect: Dialect) -> dict[str, Any]:
        """Return the error as a JSON document of the client's dialect."""
        error = {
            "message": self.message,
            "type": _ANTHROPIC_TYPES.get(self.status, "api_error") if dialect is Dialect.ANTHROPIC else self.type,
            "param": self.param,
            "code": self.error_code,
        }
        return {"type": "error", "error": error} if dialect is Dialect.ANTHROPIC else {"error": error}

    def event(self, dialect: Dialect) -> bytes:
        """Return the error as a server-sent event, for a stream whose headers are already sent."""
        return error_event(self.body(dialect), dialect)


class BadRequestError(RequestError):
    """The request itself is wrong."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class UnauthorizedError(RequestError):
    """No key, or one that nobody holds."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(RequestError):
    """The key is known, and may not use this model, whose deployment's ``uid`` is for the audit alone."""

    status = 403
    type = "permission_error"
    code = "model_not_allowed"

    def __init__(self, message: str, *, uid: str) -> None:
        super().__init__(message)
        self.uid = uid


class NotFoundError(RequestError):
    """No such route, or no such model for this key."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TooSlowError(RequestError):
    """The client took too long to send its body."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class TooLargeError(RequestError):
    """The body is larger than the gateway takes."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaError(RequestError):
    """The body is not plain JSON."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadTooLargeError(RequestError):
    """The request line and headers are larger than the gateway takes."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Limit(Enum):
    """What a refused request ran into, as metrics name it."""

    REQUESTS = "requests_per_minute"
    TOKENS = "tokens_per_minute"
    CONCURRENT = "concurrent"
    HELD_FOR_MODEL = "held_for_model"
    HELD_IN_ALL = "held_in_all"


class LimitedError(RequestError):
    """A tenant asked for more than there is for it."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, limit: Limit, tenant: str, retry_after: float, code: str | None = None) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.limit = limit
        self.tenant = tenant


class TooManyHeldError(LimitedError):
    """As many requests are held as may be."""

    code = "too_many_held_requests"


class RateLimitedError(LimitedError):
    """The tenant is at one of its limits; ``headers`` tell where it stands."""

    code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limit: Limit,
        tenant: str,
        retry_after: float,
        headers: Mapping[str, str],
        code: str | None = None,
    ) -> None:
        super().__init__(message, limit=limit, tenant=tenant, retry_after=retry_after, code=code)
        self._standing = headers

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error, the tenant's standing among them."""
        return {**self._standing, **super().headers}


class ModelRefusedError(RequestError):
    """The model is suspended or can't start; waiting would not help."""

    status = 503
    type = "service_unavailable_error"
    code = "model_unavailable"
    default_should_retry = False


class WakeTimedOutError(RequestError):
    """The model did not answer within the time that its deployment lets a client wait."""

    status = 503
    type = "service_unavailable_error"
    code = "model_waking"


class UnattendedError(RequestError):
    """Demand was reported and nothing happened: no operator acts for this model."""

    status = 503
    type = "service_unavailable_error"
    code = "operator_away"


class TooBusyError(RequestError):
    """This gateway process is at its bounds."""

    status = 503
    type = "service_unavailable_error"
    code = "gateway_busy"


class NotWaitingError(RequestError):
    """The client asked not to wait, or not so long; its library must not do it instead."""

    status = 503
    type = "service_unavailable_error"
    code = "model_waking"
    default_should_retry = False


class ModelBusyError(RequestError):
    """The model is awake, and its replicas had no place for the request in time."""

    status = 503
    type = "service_unavailable_error"
    code = "model_busy"


class NotReadyError(RequestError):
    """This gateway process has not read the catalogue yet."""

    status = 503
    type = "service_unavailable_error"
    code = "gateway_starting"


class ShuttingDownError(RequestError):
    """This gateway process ends; another one answers."""

    status = 503
    type = "service_unavailable_error"
    code = "gateway_stopping"


class UpstreamFailedError(RequestError):
    """The engine's side broke."""

    status = 502
    type = "server_error"
    code = "upstream_failed"


class RequestTooLongError(RequestError):
    """The answer took longer than any request may."""

    status = 504
    type = "server_error"
    code = "request_too_long"


def error_event(document: Mapping[str, Any], dialect: Dialect) -> bytes:
    """Return an error's JSON document, ours or an engine's, as a server-sent event."""
    if dialect is Dialect.OPENAI:
        return b"data: " + _dump(document) + b"\n\n"
    if dialect is Dialect.RESPONSES:
        error = document["error"]
        code = error.get("code")
        flat = {
            "type": "error",
            "code": None if code is None else str(code),
            "message": error.get("message"),
            "param": error.get("param"),
        }
        document = {**flat, "sequence_number": 0, **document}
    return b"event: error\ndata: " + _dump(document) + b"\n\n"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
