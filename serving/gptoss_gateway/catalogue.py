"""Which models exist, by which names, and in what state: fed from GptOssDeployments, never from engines.

A model at zero is still here. Listeners are told on every change, in the same event-loop step in
which the change became known; drains rely on that (see ``admission``).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from gptoss_api.conditions import ConditionType, Reason
from gptoss_api.deployment import GptOssDeployment, GptOssDeploymentSpec
from gptoss_api.deployment_status import Condition, GptOssDeploymentStatus
from gptoss_api.engine import max_ongoing_requests
from gptoss_api.names import engine_model_id
from gptoss_gateway.errors import ForbiddenError, NotFoundError
from gptoss_gateway.keys import Caller

_log = logging.getLogger(__name__)

DEFAULT_RAMP = 32
"""Requests released at once where nothing says how many an engine works on at once."""
UNKNOWN_CAPACITY = 1_000_000
"""Where nothing says how many requests a replica takes: then only Ray's own queues bound them."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a model can't be had, and no waiting would change that."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One deployment as the gateway needs to know it.

    ``unattended`` is true while its status shows nobody at work on a start: demand changes that at once,
    if there is an operator.
    ``ramp`` is how many sequences one replica works on at once, ``capacity`` how many requests its
    replicas take together: more would queue in Ray's proxy, where no tenant is told from another.
    """

    uid: str
    namespace: str
    name: str
    served_name: str
    created: int
    cluster_name: str | None
    on_kuberay: bool | None
    may_sleep: bool
    wake_timeout_seconds: float
    max_held_requests: int
    ramp: int
    capacity: int
    engine_ready: bool
    draining_epoch: int | None
    unattended: bool
    refusal: Refusal | None
    manifest_digest: str | None
    last_wake_seconds: float | None
    wake_stage: str | None
    pull_progress: str | None

    @property
    def qualified_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def engine_id(self) -> str:
        """The engine's own id of this model."""
        return engine_model_id(self.namespace, self.name, self.uid)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "ServedModel":
        """Read a raw GptOssDeployment; pydantic's ValidationError says what is wrong with it."""
        deployment = GptOssDeployment.parse(raw)
        status = GptOssDeploymentStatus.model_validate(raw.get("status") or {})
        conditions = {condition.type: condition for condition in status.conditions}
        spec = deployment.spec
        asleep = conditions.get(ConditionType.SCALED_TO_ZERO)
        draining = asleep is not None and asleep.reason == Reason.DRAINING
        engine_ready = _is(conditions.get(ConditionType.ENGINE_READY), "True")
        return cls(
            uid=deployment.uid,
            namespace=deployment.namespace,
            name=deployment.name,
            served_name=deployment.served_name,
            created=_timestamp(raw["metadata"].get("creationTimestamp")),
            cluster_name=spec.substrate.ray_serve.cluster_name if spec.substrate and spec.substrate.ray_serve else None,
            on_kuberay=spec.substrate.kube_ray is not None if spec.substrate else None,
            may_sleep=spec.scaling.min_replicas == 0,
            wake_timeout_seconds=float(spec.scaling.wake_timeout_seconds),
            max_held_requests=spec.scaling.max_held_requests,
            ramp=_sequences(spec, status) or DEFAULT_RAMP,
            capacity=_capacity(spec, status),
            engine_ready=engine_ready,
            draining_epoch=(status.drain_epoch or 0) if draining else None,
            unattended=not engine_ready and _unattended(conditions),
            refusal=_refusal(
                suspended=spec.suspend or (asleep is not None and asleep.reason == Reason.SUSPENDED),
                engine_ready=engine_ready,
                conditions=conditions,
            ),
            manifest_digest=status.weights.manifest_digest if status.weights else None,
            last_wake_seconds=status.wake.last_seconds if status.wake else None,
            wake_stage=status.wake.stage if status.wake else None,
            pull_progress=status.pull.progress if status.pull else None,
        )


class Catalogue:
    """Every known model, by uid and by name."""

    def __init__(self) -> None:
        self.synced = False
        self._models: dict[str, ServedModel] = {}
        self._uids: dict[tuple[str, str], str] = {}
        self._claims: dict[str, set[str]] = {}
        self._listeners: list[Callable[[str], None]] = []

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have ``listener(uid)`` called after each change of a model, its disappearance included."""
        self._listeners.append(listener)

    def get(self, uid: str) -> ServedModel | None:
        """Return a model, or None once its deployment is gone."""
        return self._models.get(uid)

    def all(self) -> tuple[ServedModel, ...]:
        """Return every known model."""
        return tuple(self._models.values())

    def visible(self, caller: Caller) -> list[tuple[str, ServedModel]]:
        """Return what a caller may ask for, each with its best name: the bare one unless two claim it."""
        models = [model for model in self._models.values() if caller.may_see(model)]
        named = [
            (model.served_name if len(self._claimants(caller, model.served_name)) == 1 else None, model)
            for model in models
        ]
        return sorted((bare or model.qualified_name, model) for bare, model in named)

    def resolve(self, caller: Caller, name: str) -> ServedModel:
        """Return the model a caller means by ``name``.

        Raises:
            NotFoundError: it does not exist, or in a namespace that the caller is not bound to.
            ForbiddenError: the caller's namespaces have it, and its globs do not.
        """
        namespace, slash, own_name = name.partition("/")
        if slash:
            model = self._models.get(self._uids.get((namespace, own_name), ""))
            if model is not None and caller.may_see(model):
                return model
            forbidden = model if caller.is_bound_to(namespace) else None
        else:
            claimants = self._claimants(caller, name)
            if len(claimants) == 1:
                return claimants[0]
            if claimants:
                names = ", ".join(sorted(model.qualified_name for model in claimants))
                raise NotFoundError(
                    f"The model name {name!r} is claimed by more than one deployment: ask for one of {names}.",
                    code="model_name_ambiguous",
                    param="model",
                )
            claimed = (self._models[uid] for uid in sorted(self._claims.get(name, ())))
            forbidden = next((model for model in claimed if caller.is_bound_to(model.namespace)), None)
        if forbidden is not None:
            raise ForbiddenError(
                f"Your key may not use the model {name!r}: GET /v1/models lists those it may.", uid=forbidden.uid
            )
        raise NotFoundError(
            f"The model {name!r} does not exist or your key has no access to it: GET /v1/models lists what it may use.",
            code="model_not_found",
            param="model",
        )

    def on_change(self, raw: Mapping[str, Any]) -> None:
        """Take over an added or changed deployment."""
        metadata = raw["metadata"]
        if "deletionTimestamp" in metadata:
            self.on_delete(raw)
            return
        key = (metadata["namespace"], metadata["name"])
        try:
            model = ServedModel.parse(raw)
        except (ValidationError, KeyError, TypeError) as error:
            _log.error(
                "deployment not understood, its last state is kept",
                extra={"deployment": "/".join(key), "error": str(error)},
            )
            return
        previous = self._models.get(self._uids.get(key, ""))
        if previous is not None and previous.uid != model.uid:
            self._remove(previous)
            previous = None
        if previous == model:
            return
        if previous is not None:
            self._unclaim(previous)
        self._models[model.uid] = model
        self._uids[key] = model.uid
        self._claims.setdefault(model.served_name, set()).add(model.uid)
        self._tell(model.uid)

    def on_delete(self, raw: Mapping[str, Any]) -> None:
        """Take out a deployment that is gone or going."""
        model = self._models.get(raw["metadata"]["uid"])
        if model is not None:
            self._remove(model)

    def on_synced(self) -> None:
        """Note that everything that existed at start is known."""
        self.synced = True

    def _claimants(self, caller: Caller, name: str) -> list[ServedModel]:
        models = (self._models[uid] for uid in self._claims.get(name, ()))
        return [model for model in models if caller.may_see(model)]

    def _remove(self, model: ServedModel) -> None:
        self._unclaim(model)
        del self._models[model.uid]
        del self._uids[model.namespace, model.name]
        self._tell(model.uid)

    def _unclaim(self, model: ServedModel) -> None:
        claims = self._claims[model.served_name]
        claims.discard(model.uid)
        if not claims:
            del self._claims[model.served_name]

    def _tell(self, uid: str) -> None:
        for listener in self._listeners:
            listener(uid)


def _refusal(*, suspended: bool, engine_ready: bool, conditions: Mapping[str, Condition]) -> Refusal | None:
    if suspended:
        return Refusal(reason=Reason.SUSPENDED, message="it is suspended (spec.suspend)")
    if engine_ready:
        return None  # an older generation still serves
    ready, stalled = conditions.get(ConditionType.READY), conditions.get(ConditionType.STALLED)
    if ready is not None and _is(ready, "False") and _is(stalled, "True"):
        return Refusal(reason=ready.reason, message=ready.message)  # Stalled names the kind, Ready the cause
    return None


def _sequences(spec: GptOssDeploymentSpec, status: GptOssDeploymentStatus) -> int | None:
    """Return how many sequences one replica works on at once: what runs counts, then what is specified."""
    return (status.engine.max_num_seqs if status.engine else None) or spec.engine.max_num_seqs


def _capacity(spec: GptOssDeploymentSpec, status: GptOssDeploymentStatus) -> int:
    sequences = _sequences(spec, status)
    if sequences is None:
        return UNKNOWN_CAPACITY
    return max_ongoing_requests(spec, sequences) * max(1, status.replicas.ready if status.replicas else 1)


def _unattended(conditions: Mapping[str, Condition]) -> bool:
    asleep, moving = conditions.get(ConditionType.SCALED_TO_ZERO), conditions.get(ConditionType.RECONCILING)
    if asleep is None:
        return not conditions
    checked = not _is(conditions.get(ConditionType.READY), "Unknown")
    queued = _is(moving, "True") and moving is not None and moving.reason == Reason.WAITING_FOR_START
    return asleep.reason == Reason.IDLE and checked and not queued


def _is(condition: Condition | None, status: str) -> bool:
    return condition is not None and condition.status == status


def _timestamp(text: str | None) -> int:
    return int(datetime.fromisoformat(text).timestamp()) if text else 0
