"""Tell people what happened to an object, as ``kubectl describe`` and ``kubectl events`` show it.

The same fact about the same object is one Event: its name is derived from what it says, and a repetition
raises the count of its series.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from gptoss_kube.client import TIMEOUT_SECONDS, Kube, Object
from gptoss_kube.errors import AlreadyExists, NotFound
from gptoss_kube.resources import EVENTS

MAX_NOTE_LENGTH = 1024
"""Longest note that events.k8s.io/v1 accepts, in bytes of UTF-8 whatever its message says (1.36)."""


async def record(
    kube: Kube,
    *,
    regarding: Mapping[str, Any],
    reason: str,
    note: str,
    action: str,
    controller: str,
    instance: str,
    kind: Literal["Normal", "Warning"] = "Normal",
    now: datetime | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> None:
    """Create an Event about a raw object, or count it once more; ``note`` is cut at 1,024 bytes.

    ``reason`` and ``action`` are CamelCase words of at most 128 characters, ``controller`` a qualified name
    (also the field manager), ``instance`` the process. Events of cluster-scoped objects go to ``default``.
    """
    when = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    event = _event(regarding, reason, _cut(note), action, controller, instance, kind, when)
    metadata = event["metadata"]
    manager = controller.rpartition("/")[2]
    for _ in range(2):  # an Event that expires between create and patch is created after all
        try:
            await kube.create(event, resource=EVENTS, field_manager=manager, timeout=timeout)
        except AlreadyExists:
            pass
        else:
            return
        try:
            known = await kube.get(EVENTS, metadata["name"], namespace=metadata["namespace"], timeout=timeout)
            series = {"count": (known.get("series") or {}).get("count", 1) + 1, "lastObservedTime": when}
            await kube.merge_patch(
                EVENTS,
                metadata["name"],
                {"series": series},
                namespace=metadata["namespace"],
                field_manager=manager,
                timeout=timeout,
            )
        except NotFound:
            continue
        return


def _event(
    regarding: Mapping[str, Any],
    reason: str,
    note: str,
    action: str,
    controller: str,
    instance: str,
    kind: str,
    when: str,
) -> Object:
    about = regarding["metadata"]
    fingerprint = hashlib.sha256("\n".join((about["uid"], controller, kind, reason, note)).encode()).hexdigest()[:16]
    reference = {
        "apiVersion": regarding["apiVersion"],
        "kind": regarding["kind"],
        "name": about["name"],
        "uid": about["uid"],
    }
    if namespace := about.get("namespace"):
        reference["namespace"] = namespace
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{about['name'][:236]}.{fingerprint}", "namespace": namespace or "default"},
        "eventTime": when,
        "regarding": reference,
        "reason": reason,
        "note": note,
        "type": kind,
        "action": action,
        "reportingController": controller,
        "reportingInstance": instance[:128],
    }


def _cut(note: str) -> str:
    raw = note.encode()
    if len(raw) <= MAX_NOTE_LENGTH:
        return note
    return raw[: MAX_NOTE_LENGTH - 3].decode(errors="ignore") + "…"
