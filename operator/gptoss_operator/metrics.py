"""What the operator measures. Series of a deployment end with it."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gptoss_api.deployment_status import Condition, PullStatus, WeightsStatus
from gptoss_operator.keys import DeploymentKey

_STATUSES = ("True", "False", "Unknown")
_WAKE_BUCKETS = (0.01, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "gptoss_operator_reconciles", "Reconciles by kind and result.", ["kind", "result"], registry=self.registry
        )
        self.leads = Gauge("gptoss_operator_leads", "1 if this replica may write now.", registry=self.registry)
        self.queue_depth = Gauge("gptoss_operator_queue_depth", "Keys that wait.", registry=self.registry)
        self.wake_seconds = Histogram(
            "gptoss_operator_wake_seconds",
            "Seconds of a wake by stage: demand, put, deploying, engineReady, and total.",
            ["stage"],
            buckets=_WAKE_BUCKETS,
            registry=self.registry,
        )
        self.trust_checks = Counter(
            "gptoss_operator_trust_checks",
            "Checks of signature and policy by result: Trusted, SignerWaived in mode Audit, or the reason against it.",
            ["result"],
            registry=self.registry,
        )
        self.cluster_reachable = Gauge(
            "gptoss_operator_ray_cluster_reachable",
            "1 if the Ray cluster answers.",
            ["cluster"],
            registry=self.registry,
        )
        self.cluster_writes = Counter(
            "gptoss_operator_ray_cluster_writes", "Configurations written to Ray.", ["cluster"], registry=self.registry
        )
        self.events_lost = Counter(
            "gptoss_operator_events_lost",
            "Events about deployments that were not recorded, for want of a right or of an answer.",
            registry=self.registry,
        )
        self._watches = Gauge(
            "gptoss_operator_watches",
            "1 while the copy of these objects is complete and kept true, 0 for example for want of a right.",
            ["resource"],
            registry=self.registry,
        )
        self._conditions = Gauge(
            "gptoss_deployment_condition",
            "1 for the status that a condition of a deployment has.",
            ["namespace", "name", "type", "status"],
            registry=self.registry,
        )
        self._weights = Gauge(
            "gptoss_deployment_weights",
            "1 for who vouches for the weights of a deployment: policy, authority, fingerprint of the key, and the "
            "certificate's identity, if there was one; mode is Audit where the signer was waived.",
            ["namespace", "name", "policy", "authority", "signer", "identity", "mode"],
            registry=self.registry,
        )
        self._pull_bytes = Gauge(
            "gptoss_deployment_pull_bytes",
            "Bytes of a pull that runs, where nodes tell it: `total`, and of those `done`, which are verified.",
            ["namespace", "name", "part"],
            registry=self.registry,
        )
        self._pulling: set[DeploymentKey] = set()
        self._known: dict[DeploymentKey, set[tuple[str, str]]] = {}
        self._vouching: dict[DeploymentKey, tuple[str, str, str, str, str]] = {}

    def follow(self, watches: Callable[[], Mapping[str, bool]]) -> None:
        """Show whether each kind of ``watches``, by its plural name, is followed: asked whenever somebody scrapes."""
        for resource in watches():
            self._watches.labels(resource).set_function(partial(_follows, watches, resource))

    def count_wake(self, timings: Iterable[tuple[str, float]], seconds: float | None) -> None:
        """Count stages of a wake that ended, and the wake itself if it did, by their seconds."""
        for stage, each in timings:
            self.wake_seconds.labels(stage).observe(each)
        if seconds is not None:
            self.wake_seconds.labels("total").observe(seconds)

    def tell_conditions(self, key: DeploymentKey, conditions: Iterable[Condition]) -> None:
        """Show a deployment's conditions."""
        known = self._known.setdefault(key, set())
        for condition in conditions:
            for status in _STATUSES:
                known.add((condition.type, status))
                self._conditions.labels(key.namespace, key.name, condition.type, status).set(condition.status == status)

    def tell_weights(self, key: DeploymentKey, weights: WeightsStatus | None) -> None:
        """Show who vouches for a deployment's weights."""
        told = _vouching(weights) if weights is not None else None
        before = self._vouching.get(key)
        if told == before:
            return
        if before is not None:
            self._weights.remove(key.namespace, key.name, *before)
            del self._vouching[key]
        if told is not None:
            self._weights.labels(key.namespace, key.name, *told).set(1)
            self._vouching[key] = told

    def tell_pull(self, key: DeploymentKey, pull: PullStatus | None) -> None:
        """Show how far a deployment's pull is; its series end with the pull."""
        if pull is not None and pull.bytes_done is not None and pull.bytes_total is not None:
            self._pulling.add(key)
            self._pull_bytes.labels(key.namespace, key.name, "done").set(pull.bytes_done)
            self._pull_bytes.labels(key.namespace, key.name, "total").set(pull.bytes_total)
        elif key in self._pulling:
            self._pulling.discard(key)
            for part in ("done", "total"):
                self._pull_bytes.remove(key.namespace, key.name, part)

    def forget(self, key: DeploymentKey) -> None:
        """Remove a deployment's series."""
        self.tell_weights(key, None)
        self.tell_pull(key, None)
        for name, status in self._known.pop(key, set()):
            self._conditions.remove(key.namespace, key.name, name, status)


def _follows(watches: Callable[[], Mapping[str, bool]], resource: str) -> float:
    return float(watches()[resource])


def _vouching(weights: WeightsStatus) -> tuple[str, str, str, str, str]:
    mode = "Audit" if weights.signer_waived is not None else "Enforce"
    return weights.policy, weights.authority, weights.signer, weights.identity or "", mode
