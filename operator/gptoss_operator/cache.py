"""What the API server holds, as last heard: raw objects without managedFields, and the few indexes needed.

Raw dictionaries take a fraction of the memory that models would; a reconcile parses the one object
it looks at. An older version never replaces a newer one, so answers to writes can be put in at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from gptoss_operator.keys import DeploymentKey

Raw = dict[str, Any]


class Kind(StrEnum):
    """Kinds that the operator watches."""

    DEPLOYMENT = "GptOssDeployment"
    POLICY = "WeightTrustPolicy"
    REPORT = "GatewayReport"
    NAMESPACE = "Namespace"


Identity = tuple[str, str]
"""Namespace ("" for cluster-scoped kinds) and name."""


class Cache:
    """Objects by kind and identity."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Identity, Raw]] = {kind: {} for kind in Kind}
        self._claims: dict[tuple[str, str], set[DeploymentKey]] = defaultdict(set)
        self.policies_version = 0
        """Grows whenever a policy, or what it has accepted, changes."""

    def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """Return an object, or None if there is none."""
        return self._objects[kind].get((namespace, name))

    def all(self, kind: Kind) -> Iterator[Raw]:
        """Iterate over a snapshot of all objects of a kind, by identity."""
        return iter([raw for _, raw in sorted(self._objects[kind].items())])

    def snapshot(self, kind: Kind) -> Mapping[Identity, Raw]:
        """Return what is known of a kind now."""
        return dict(self._objects[kind])

    def put(self, kind: Kind, raw: Mapping[str, Any], *, unless_older: bool = True) -> bool:
        """Take an object in. False if it is known already, or older than what is known under its name."""
        lean = _lean(kind, raw)
        identity = identity_of(lean)
        known = self._objects[kind].get(identity)
        if known is not None and (known == lean or (unless_older and _version(lean) < _version(known))):
            return False
        self._objects[kind][identity] = lean
        self._reindex(kind, identity, known, lean)
        return True

    def remove(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> bool:
        """Forget an object; with a uid only that very one. False if it was not known."""
        known = self._objects[kind].get((namespace, name))
        if known is None or (uid is not None and known["metadata"].get("uid") != uid):
            return False
        del self._objects[kind][(namespace, name)]
        self._reindex(kind, (namespace, name), known, None)
        return True

    def claimants(self, namespace: str, served_name: str) -> list[DeploymentKey]:
        """Return the deployments of a namespace that claim a served name, in order."""
        return sorted(self._claims.get((namespace, served_name), ()))

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Return a namespace's labels; every namespace has its name as one."""
        raw = self.get(Kind.NAMESPACE, "", namespace)
        labels = (raw or {}).get("metadata", {}).get("labels") or {}
        return {"kubernetes.io/metadata.name": namespace, **labels}

    def _reindex(self, kind: Kind, identity: Identity, before: Raw | None, after: Raw | None) -> None:
        if kind is Kind.DEPLOYMENT:
            key = DeploymentKey(*identity)
            for raw, change in ((before, set.discard), (after, set.add)):
                if raw is not None:
                    change(self._claims[(identity[0], served_name(raw))], key)
            for raw in (before, after):
                if raw is not None and not self._claims[(identity[0], served_name(raw))]:
                    del self._claims[(identity[0], served_name(raw))]
        elif kind is Kind.POLICY and _decisive(before) != _decisive(after):
            self.policies_version += 1


def served_name(raw: Mapping[str, Any]) -> str:
    """Return the bare name that a raw GptOssDeployment claims."""
    model = (raw.get("spec") or {}).get("model") or {}
    return str(model.get("servedName") or raw["metadata"]["name"])


def identity_of(raw: Mapping[str, Any]) -> Identity:
    """Return under which namespace and name a raw object is known."""
    metadata = raw["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _decisive(policy: Raw | None) -> Any:
    """What of a policy decisions depend on: its specification, and the releases that were accepted."""
    known = policy or {}
    return known.get("spec"), (known.get("status") or {}).get("releases")


def _version(raw: Mapping[str, Any]) -> int:
    version = str(raw["metadata"].get("resourceVersion") or "0")
    return int(version) if version.isdigit() else 0


def _lean(kind: Kind, raw: Mapping[str, Any]) -> Raw:
    metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
    if kind is Kind.NAMESPACE:
        kept = ("name", "uid", "labels", "resourceVersion")
        return {"metadata": {name: metadata[name] for name in kept if name in metadata}}
    return {**raw, "metadata": metadata}
