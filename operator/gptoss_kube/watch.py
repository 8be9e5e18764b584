"""A copy of one collection that stays true: list, then watch, and list again whenever in doubt.

A watch alone loses deletions when history is compacted or the API server restarts: the new list simply
lacks the object. So every list is compared with the copy, and what it lacks is reported as deleted.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import aiohttp

from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import KubeError, ServerFailed, Unreachable, error_from_status
from gptoss_kube.resources import Resource

_log = logging.getLogger(__name__)

STALL_SECONDS = 70.0
"""A stream without a word for so long is dead: the server sends a bookmark about once a minute."""

_WATCH_SECONDS = (300, 600)
_BACKOFF_SECONDS = (0.1, 10.0)


class Informer:
    """Follows a resource while its context is open, and calls back in order, one call at a time.

    With a ``name`` it follows that one object, for which rights on that name are enough.

    ``on_change`` gets a new or changed object, ``on_delete`` the last known state of one that is gone; an
    object recreated under its name is first deleted, then changed. Objects are raw dicts without
    managedFields and belong to the informer: do not change them. Callbacks must be quick; one that raises
    is logged and passed over. ``keep`` returns what to keep of an object, metadata in any case.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        name: str | None = None,
        on_change: Callable[[Object], None],
        on_delete: Callable[[Object], None],
        keep: Callable[[Object], Object] | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.synced = asyncio.Event()
        """Set once the first complete list is in; it stays set while the server is away."""
        self.last_error: KubeError | None = None
        """Why the copy is not being followed right now; None while it is."""
        self._kube = kube
        self._resource = resource
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = f"metadata.name={name}" if name else None
        self._on_change = on_change
        self._on_delete = on_delete
        self._lean = keep
        self._stall_seconds = stall_seconds
        self._objects: dict[tuple[str, str], Object] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"informer-{self._resource.plural}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def resource(self) -> Resource:
        """What it follows."""
        return self._resource

    @property
    def follows(self) -> bool:
        """Whether the copy is complete, and kept true right now."""
        return self.synced.is_set() and self.last_error is None

    @property
    def objects(self) -> Mapping[tuple[str, str], Object]:
        """The copy, by (namespace, name); the namespace of a cluster-scoped object is empty."""
        return self._objects

    async def _run(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._list_and_watch()
            except KubeError as error:
                self.last_error = error
                _log.warning("following %s: %s", self._resource.plural, error)
            except Exception as error:  # noqa: BLE001 - an answer we can't read must not end the following for ever
                self.last_error = ServerFailed(f"watch {self._resource.plural}: {error!r}")
                _log.exception("following %s", self._resource.plural)
            failures = 1 if time.monotonic() - started > _BACKOFF_SECONDS[1] else failures + 1
            least, most = _BACKOFF_SECONDS
            await asyncio.sleep(min(most, least * 2**failures) * random.uniform(0.5, 1.0))  # noqa: S311

    async def _list_and_watch(self) -> None:
        """List once, then watch until something is in doubt; that something is raised."""
        listing = await self._kube.list(
            self._resource,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self._replace(listing.items)
        version = listing.resource_version
        while True:
            started = time.monotonic()
            version = await self._watch(version)
            if time.monotonic() - started < 1.0:  # a server that sheds its watches: no hot loop
                await asyncio.sleep(random.uniform(0.5, 1.0))  # noqa: S311

    async def _watch(self, version: str) -> str:
        """Follow one stream to its regular end and return the version to go on from."""
        query = {
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*_WATCH_SECONDS)),  # noqa: S311
        }
        if self._label_selector:
            query["labelSelector"] = self._label_selector
        if self._field_selector:
            query["fieldSelector"] = self._field_selector
        async with self._kube.watch_lines(self._resource, namespace=self._namespace, query=query) as lines:
            self._heard()
            while line := await self._next_line(lines):
                event = json.loads(line)
                self._heard()
                if event["type"] == "ERROR":
                    raise error_from_status(event["object"], request=f"watch {self._resource.plural}")
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._forget(_key(event["object"]))
                elif event["type"] != "BOOKMARK":
                    self._keep(event["object"])
        return version

    async def _next_line(self, lines: aiohttp.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await lines.readline()
        except TimeoutError as error:
            raise Unreachable(f"watch {self._resource.plural}: silent for {self._stall_seconds:g} s") from error

    def _heard(self) -> None:
        self.last_error = None

    def _replace(self, items: Iterable[Object]) -> None:
        listed = {_key(item): item for item in items}
        for key in [key for key in self._objects if key not in listed]:
            self._forget(key)
        for item in listed.values():
            self._keep(item)
        self._heard()
        self.synced.set()

    def _keep(self, obj: Object) -> None:
        key = _key(obj)
        metadata = obj["metadata"]
        metadata.pop("managedFields", None)
        known = self._objects.get(key)
        if known is not None:
            if known["metadata"].get("uid") != metadata.get("uid"):
                self._forget(key)
            elif known["metadata"].get("resourceVersion") == metadata.get("resourceVersion"):
                return
        kept = self._lean(obj) if self._lean is not None else obj
        self._objects[key] = kept
        self._call(self._on_change, kept)

    def _forget(self, key: tuple[str, str]) -> None:
        gone = self._objects.pop(key, None)
        if gone is not None:
            self._call(self._on_delete, gone)

    def _call(self, callback: Callable[[Object], None], obj: Object) -> None:
        try:
            callback(obj)
        except Exception:  # noqa: BLE001 - one object's trouble must not end the following of all others
            _log.exception("callback for %s %s", self._resource.kind, _key(obj))


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]
