"""The one Kubernetes client: raw objects in and out, any kind, a deadline on every call, typed errors.

It sends through `kubernetes.aio`'s ApiClient (TLS, pool, credentials) but none of its generated methods,
which refuse valid answers: a server-side apply that creates returns None there.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio.client import ApiClient

from gptoss_kube.credentials import Connection, Credentials
from gptoss_kube.errors import (
    Conflict,
    Gone,
    KubeError,
    ServerFailed,
    Unauthorized,
    Unreachable,
    WriteRefused,
    error_from_response,
)
from gptoss_kube.resources import Resource

Object = dict[str, Any]
"""A raw object, as JSON has it."""

TIMEOUT_SECONDS = 10.0
"""Default deadline of one request."""

_PAGE = 500
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A complete list and the resourceVersion to watch from."""

    items: Sequence[Object]
    resource_version: str


class Kube:
    """A client for one API server. Use it as an async context manager.

    Every method raises the errors of ``gptoss_kube.errors``; ``timeout`` is in seconds and covers one
    request from start to the last byte. After Unreachable a write may have been done.

    ``write_seconds`` is asked before every request that changes something, for how long it may take at most; 0
    refuses it with WriteRefused before anything is sent. That fences whoever is not, or no longer, the leader.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        user_agent: str = "gptoss",
        write_seconds: Callable[[], float] | None = None,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._user_agent = user_agent
        self._write_seconds = write_seconds

    async def __aenter__(self) -> Self:
        self._credentials = await Credentials.load(self._kubeconfig, context=self._context)
        self._api: Any = ApiClient(self._credentials.configuration)
        self._api.user_agent = self._user_agent
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def connection(self) -> Connection:
        """Return fresh log-in data, for kopf."""
        return await self._credentials.connection()

    async def get(
        self, resource: Resource, name: str, *, namespace: str | None = None, timeout: float = TIMEOUT_SECONDS
    ) -> Object:
        """Read one object from the server (not from its cache)."""
        return await self._send("GET", resource.path(namespace=namespace, name=name), timeout=timeout)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        resource_version: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Listing:
        """Read all objects, page by page; ``timeout`` is each page's.

        ``resource_version="0"`` takes the server's cache: cheap, perhaps a little old. The result is
        complete or an error, never a part. Items carry apiVersion and kind.
        """
        path = resource.path(namespace=namespace)
        query: dict[str, str] = {}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        if resource_version is not None:
            query["resourceVersion"] = resource_version
        items: list[Object] = []
        asked = {**query, "limit": str(_PAGE)}
        while True:
            try:
                page = await self._send("GET", path, query=asked, timeout=timeout)
            except Gone:
                if "continue" not in asked:
                    raise
                items, asked = [], query  # history was compacted between two pages: all of it at once
                continue
            items += [
                {"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in page.get("items") or ()
            ]
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return Listing(items=items, resource_version=metadata["resourceVersion"])
            # A token stands for the version of its first page.
            asked = {name: value for name, value in asked.items() if name != "resourceVersion"}
            asked["continue"] = metadata["continue"]

    async def apply(
        self,
        obj: Mapping[str, Any],
        *,
        resource: Resource,
        field_manager: str,
        force: bool = True,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Object:
        """Create or change an object by server-side apply; return what is stored.

        ``metadata.uid`` and ``metadata.resourceVersion`` in ``obj`` are guards: with a uid an absent or
        recreated object is a Conflict instead of being created anew, with a resourceVersion a changed one is.
        Applying what is there already writes nothing and keeps the resourceVersion.
        """
        return await self._apply(obj, resource, None, field_manager, force=force, timeout=timeout)

    async def apply_status(
        self,
        obj: Mapping[str, Any],
        *,
        resource: Resource,
        field_manager: str,
        force: bool = True,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Object:
        """Apply ``obj["status"]``; guards as for ``apply``, and an absent object is NotFound.

        The API server ignores a uid in a custom resource's status (it copies the old metadata first) but
        minds the resourceVersion. So a uid alone costs a GET: its resourceVersion becomes the guard.
        """
        metadata = obj["metadata"]
        uid = metadata.get("uid")
        if not uid or metadata.get("resourceVersion"):
            return await self._apply(obj, resource, "status", field_manager, force=force, timeout=timeout)
        for attempt in (1, 2, 3):
            name, namespace = metadata["name"], metadata.get("namespace")
            current = (await self.get(resource, name, namespace=namespace, timeout=timeout))["metadata"]
            if current["uid"] != uid:
                raise Conflict(f"{resource.kind} {name} was recreated: its uid is {current['uid']}, not {uid}")
            guarded = {**obj, "metadata": {**metadata, "resourceVersion": current["resourceVersion"]}}
            try:
                return await self._apply(guarded, resource, "status", field_manager, force=force, timeout=timeout)
            except Conflict:
                if attempt == 3:
                    raise
        raise AssertionError("unreachable")

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: Mapping[str, Any],
        *,
        namespace: str | None = None,
        field_manager: str,
        subresource: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Object:
        """Merge a JSON patch (null deletes a key) into an existing object."""
        path = resource.path(namespace=namespace, name=name, subresource=subresource)
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        return await self._send("PATCH", path, query=query, body=patch, content_type=_MERGE, timeout=timeout)

    async def create(
        self, obj: Mapping[str, Any], *, resource: Resource, field_manager: str, timeout: float = TIMEOUT_SECONDS
    ) -> Object:
        """Create an object; AlreadyExists if its name is taken."""
        path = resource.path(namespace=obj["metadata"].get("namespace"))
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        return await self._send("POST", path, query=query, body=obj, timeout=timeout)

    async def replace(
        self,
        obj: Mapping[str, Any],
        *,
        resource: Resource,
        field_manager: str,
        subresource: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Object:
        """Put a whole object in place of the stored one; its resourceVersion, if given, is a guard."""
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        path = _object_path(obj, resource, subresource)
        return await self._send("PUT", path, query=query, body=obj, timeout=timeout)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """Delete an object; Conflict where it is not the one with this uid or resourceVersion any more."""
        guards = {"uid": uid, "resourceVersion": resource_version}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if preconditions := {key: value for key, value in guards.items() if value}:
            body["preconditions"] = preconditions
        await self._send("DELETE", resource.path(namespace=namespace, name=name), body=body, timeout=timeout)

    @asynccontextmanager
    async def watch_lines(
        self, resource: Resource, *, namespace: str | None, query: Mapping[str, str], timeout: float = TIMEOUT_SECONDS
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """Open a watch and yield its stream of JSON lines; ``timeout`` covers the opening only.

        For ``gptoss_kube.watch``, which knows when a stream has stalled and what to do then.
        """
        path = resource.path(namespace=namespace)
        with _network_errors(f"watch {path}"):
            async with asyncio.timeout(timeout):
                response = await self._open("GET", path, {**query, "watch": "true"}, None, "application/json", None)
            try:
                if response.status >= 400:
                    async with asyncio.timeout(timeout):
                        raise await _failure(response, f"watch {path}")
                yield response.content
            finally:
                response.close()

    async def _apply(
        self,
        obj: Mapping[str, Any],
        resource: Resource,
        subresource: str | None,
        field_manager: str,
        *,
        force: bool,
        timeout: float,
    ) -> Object:
        metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj, "metadata": metadata}
        query = {"fieldManager": field_manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        path = _object_path(obj, resource, subresource)
        return await self._send("PATCH", path, query=query, body=body, content_type=_APPLY, timeout=timeout)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        timeout: float,
    ) -> Object:
        """Send one request within its deadline; log in anew and send again once after a 401."""
        try:
            return await self._send_once(method, path, query, body, content_type, timeout)
        except Unauthorized:
            if not await self._credentials.refresh():
                raise
        return await self._send_once(method, path, query, body, content_type, timeout)

    async def _send_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        timeout: float,
    ) -> Object:
        request = f"{method} {path}"
        if method != "GET" and self._write_seconds is not None:
            timeout = min(timeout, self._write_seconds())
            if timeout <= 0:
                raise WriteRefused(f"{request}: not sent, for this process may not write now")
        with _network_errors(request, deadline=timeout):
            async with asyncio.timeout(timeout):
                response = await self._open(method, path, query, body, content_type, timeout)
                try:
                    if response.status >= 400:
                        raise await _failure(response, request)
                    answer = json.loads(await response.read())
                finally:
                    response.release()
        if not isinstance(answer, dict):
            raise ServerFailed(f"{request}: the answer is not a JSON object")
        return answer

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        total: float | None,
    ) -> aiohttp.ClientResponse:
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        wrapped = await self._api.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=total))
        response: aiohttp.ClientResponse = wrapped.response
        return response


class _network_errors:  # noqa: N801 - reads as a statement
    """Turn the HTTP library's failures into Unreachable, the cancellation of our task excepted."""

    def __init__(self, request: str, *, deadline: float | None = None) -> None:
        self._request = request
        self._deadline = deadline

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError):
            within = f" within {self._deadline:g} s" if self._deadline else " in time"
            raise Unreachable(f"{self._request}: no answer{within}") from error
        if isinstance(error, ValueError):
            raise ServerFailed(f"{self._request}: the answer is not JSON") from error
        if isinstance(error, (aiohttp.ClientError, OSError)):
            raise Unreachable(f"{self._request}: {error or type(error).__name__}") from error


async def _failure(response: aiohttp.ClientResponse, request: str) -> KubeError:
    return error_from_response(
        status=response.status,
        body=await response.read(),
        retry_after=response.headers.get("Retry-After"),
        request=request,
    )


def _object_path(obj: Mapping[str, Any], resource: Resource, subresource: str | None) -> str:
    metadata = obj["metadata"]
    return resource.path(namespace=metadata.get("namespace"), name=metadata["name"], subresource=subresource)
