"""Everything that can go wrong between us and the API server, typed once at the HTTP boundary.

KubeError
├── CredentialsError        no usable kubeconfig or service account; nothing was sent
├── StatusError             the API server answered, and said no
│   ├── Unauthorized        401: the token is unknown or has expired
│   ├── Forbidden           403: RBAC, quota, admission, or a namespace that is going away
│   ├── NotFound            404: the object (or its namespace) does not exist
│   ├── UnknownResource     404: the resource type is not served: its CRD is missing. Not "no objects"
│   ├── Conflict            409: another owner, a stale resourceVersion, another uid
│   │   └── AlreadyExists   409: create of a name that is taken
│   ├── Gone                410: history was compacted: list again
│   └── Invalid             400, 415, 422: the object is refused as it stands; trying again is no use
└── Transient               the outcome is unknown or the server is busy; try again later
    ├── Unreachable         connection refused, reset, TLS failure, or no answer in time: may have been done
    ├── ServerFailed        5xx, 408
    ├── TooManyRequests     429, with `retry_after` seconds
    └── WriteRefused        not sent: this process may not write now
"""

import json
from collections.abc import Mapping
from typing import Any

__all__ = [
    "AlreadyExists",
    "Conflict",
    "CredentialsError",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeError",
    "NotFound",
    "ServerFailed",
    "StatusError",
    "TooManyRequests",
    "Transient",
    "Unauthorized",
    "UnknownResource",
    "Unreachable",
    "WriteRefused",
    "error_from_response",
    "error_from_status",
]


class KubeError(Exception):
    """Any failure of the Kubernetes API or on the way to it."""


class CredentialsError(KubeError):
    """There is no way to log in: the message says which file or variable is at fault."""


class StatusError(KubeError):
    """The API server answered with a failure.

    ``status`` is the HTTP code, ``reason`` Kubernetes' word for it, ``causes`` the raw field causes
    (dicts with field, message, reason), and ``str()`` the server's sentence.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", causes: tuple[Mapping[str, Any], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes


class Unauthorized(StatusError):  # noqa: N818 - named as Kubernetes names it
    """The credentials were not accepted."""


class Forbidden(StatusError):  # noqa: N818 - named as Kubernetes names it
    """The identity may not do this."""


class NotFound(StatusError):  # noqa: N818 - named as Kubernetes names it
    """No such object."""


class UnknownResource(StatusError):  # noqa: N818 - named as Kubernetes names it
    """No such resource type: its CRD is not installed. It says nothing about objects."""


class Conflict(StatusError):  # noqa: N818 - named as Kubernetes names it
    """A guard (uid, resourceVersion, field ownership) did not hold."""


class AlreadyExists(Conflict):
    """The name is taken."""


class Gone(StatusError):  # noqa: N818 - named as Kubernetes names it
    """The resourceVersion or continue token has expired."""


class Invalid(StatusError):  # noqa: N818 - named as Kubernetes names it
    """The request or the object is refused as it stands."""


class Transient(KubeError):  # noqa: N818 - named as Kubernetes names it
    """Worth another try later. ``retry_after`` is the server's wish in seconds, where it has one."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(Transient):
    """No complete answer. A write may have been done all the same."""


class ServerFailed(Transient):
    """The API server failed on its side."""


class TooManyRequests(Transient):
    """The API server sheds load."""


class WriteRefused(Transient):
    """Nothing was sent: this process may not write now, because another one leads."""


def error_from_response(*, status: int, body: bytes, retry_after: str | None, request: str) -> KubeError:
    """Return the error for an HTTP answer of 400 or more; ``request`` names what was asked for."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    answer: Mapping[str, Any] = parsed if isinstance(parsed, dict) else {}
    if not answer:
        text = body[:512].decode(errors="replace").strip()
        answer = {"message": text or f"HTTP {status}"}
    return error_from_status({**answer, "code": status}, request=request, retry_after=_seconds(retry_after))


def error_from_status(answer: Mapping[str, Any], *, request: str, retry_after: float | None = None) -> KubeError:
    """Return the error for a ``Status`` object, as an answer's body or a watch's ERROR event carries it."""
    code = int(answer.get("code") or 500)
    reason = str(answer.get("reason") or "")
    details = answer.get("details") or {}
    message = f"{request}: {answer.get('message') or reason or f'HTTP {code}'}"
    if code == 429:
        return TooManyRequests(message, retry_after=retry_after or details.get("retryAfterSeconds"))
    if code == 500 and "failed to create typed patch object" in message:
        # Server-side apply reports a field that is not in the schema as its own failure (1.36).
        return Invalid(message, status=code, reason=reason)
    if code >= 500 or code == 408:
        return ServerFailed(message, retry_after=retry_after)
    kind = _BY_CODE.get(code, Invalid)
    if code == 404 and "kind" not in details:
        kind = UnknownResource
    elif code == 409 and reason == "AlreadyExists":
        kind = AlreadyExists
    return kind(message, status=code, reason=reason, causes=tuple(details.get("causes") or ()))


_BY_CODE: Mapping[int, type[StatusError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
}


def _seconds(text: str | None) -> float | None:
    """Read Retry-After in its form of seconds, the only one Kubernetes sends."""
    return float(text) if text and text.isdigit() else None
