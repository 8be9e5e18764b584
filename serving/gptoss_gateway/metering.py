"""What the gateway counts. Series carry a deployment's namespace and name, and go when it goes."""

import collections
import socket
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.certificate import Certificate
from gptoss_gateway.demand import Place
from gptoss_gateway.errors import LimitedError, RequestError
from gptoss_gateway.queues import Queues
from gptoss_gateway.usage import Usage

_MODEL = ("namespace", "model")
MAX_TENANTS = 500
"""Tenants with series of their own, the first that were seen; a keys file may have thousands."""
OTHER_TENANTS = "(others)"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 3600)


class Metering:
    """The process' metrics. Nothing is counted for a deployment that is gone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._known: dict[str, tuple[str, str]] = {}
        self._requests = Counter(
            "gptoss_gateway_requests",
            "Requests that ended, by the status a client saw; code 000 means that it left before one.",
            (*_MODEL, "route", "code"),
            registry=self.registry,
        )
        self._refused = Counter(
            "gptoss_gateway_refused_requests",
            "Requests refused before a model was found, by status.",
            ("code",),
            registry=self.registry,
        )
        self._limited = Counter(
            "gptoss_gateway_limited_requests",
            "Requests answered 429, by tenant and by the limit they ran into.",
            ("tenant", "limit"),
            registry=self.registry,
        )
        self._tenants: set[str] = set()
        self._hold_seconds = Histogram(
            "gptoss_gateway_hold_seconds",
            "Time that requests were held for an engine.",
            _MODEL,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "gptoss_gateway_tokens",
            "Tokens, as the engine counted them, or estimated by the gateway where it did not (source).",
            (*_MODEL, "tenant", "kind", "source"),
            registry=self.registry,
        )
        self._breaks = Counter(
            "gptoss_gateway_upstream_breaks",
            "Answers that the engine's side cut short after bytes had reached the client.",
            _MODEL,
            registry=self.registry,
        )
        self._retries = Counter(
            "gptoss_gateway_upstream_retries",
            "Attempts that failed before a byte had reached the client and were made again.",
            _MODEL,
            registry=self.registry,
        )

        self._audit_losses = Counter(
            "gptoss_gateway_audit_losses", "Audit lines that were not written.", registry=self.registry
        )
        self._failed_handshakes = Counter(
            "gptoss_gateway_failed_handshakes",
            "TLS handshakes that clients did not end, or that failed.",
            registry=self.registry,
        )

    def handshake_failed(self) -> None:
        """Count a client that did not get through its TLS handshake."""
        self._failed_handshakes.inc()

    def watch_certificate(self, certificate: Certificate) -> None:
        """Show how long the certificate lasts and whether its files can be used, read when somebody looks."""
        self.registry.register(_Validity(certificate))

    def audit_lost(self) -> None:
        """Count an audit line that was not written."""
        self._audit_losses.inc()

    def watch_places(self, places: Callable[[], Iterable[tuple[ServedModel, int, int]]]) -> None:
        """Show the gauges of waiting and in-flight requests, read when somebody looks."""
        self.registry.register(_Places(places))

    def watch_tenants(self, places: Callable[[], Mapping[tuple[str, Place], int]]) -> None:
        """Show how many requests of each tenant wait and are in flight, read when somebody looks."""
        self.registry.register(_TenantPlaces(places, self._tenant))

    def watch_queues(self, sockets: Callable[[], Iterable[socket.socket]]) -> None:
        """Show how many connections wait at listening sockets, read when somebody looks."""
        self.registry.register(Queues(sockets))

    def watch_processes(self, count: Callable[[], int]) -> None:
        """Show among how many processes tenants' limits are divided, read when somebody looks."""
        processes = Gauge(
            "gptoss_gateway_processes",
            "Gateway processes that take requests, as this one knows of them: tenants' limits are divided by it.",
            registry=self.registry,
        )
        processes.set_function(count)

    def watch_tasks(self, count: Callable[[], int]) -> None:
        """Show how many tasks the event loop has, read when somebody looks."""
        tasks = Gauge(
            "gptoss_gateway_tasks",
            "Tasks of the event loop: a few of its own, and some for each open connection and request.",
            registry=self.registry,
        )
        tasks.set_function(count)

    def meet(self, model: ServedModel) -> None:
        """Start to count for a deployment."""
        self._known[model.uid] = (model.namespace, model.name)

    def forget(self, uid: str) -> None:
        """Remove every series of a deployment that is gone."""
        labels = self._known.pop(uid, None)
        if labels is None or labels in self._known.values():
            return
        series = dict(zip(_MODEL, labels, strict=True))
        for metric in (self._requests, self._hold_seconds, self._tokens, self._breaks, self._retries):
            metric.remove_by_labels(series)

    def request_ended(self, model: ServedModel, *, route: str, status: int | None) -> None:
        """Count one request of a known model."""
        if model.uid in self._known:
            code = "000" if status is None else str(status)
            self._requests.labels(model.namespace, model.name, route, code).inc()

    def request_refused(self, status: int) -> None:
        """Count one request that never came as far as a model."""
        self._refused.labels(str(status)).inc()

    def note_limit(self, error: RequestError) -> None:
        """Count one request that was refused, if a tenant's share being used up is why."""
        if isinstance(error, LimitedError):
            self._limited.labels(self._tenant(error.tenant), error.limit.value).inc()

    def held(self, model: ServedModel, seconds: float) -> None:
        """Count the end of one wait."""
        if model.uid in self._known:
            self._hold_seconds.labels(model.namespace, model.name).observe(seconds)

    def tokens(self, model: ServedModel, tenant: str, usage: Usage) -> None:
        """Count the tokens of one answer."""
        if model.uid not in self._known:
            return
        for kind in ("input", "cached", "output", "reasoning"):
            if count := getattr(usage, kind):
                source = "gateway" if usage.estimated else "engine"
                self._tokens.labels(model.namespace, model.name, self._tenant(tenant), kind, source).inc(count)

    def broke(self, model: ServedModel) -> None:
        """Count one answer that was cut short."""
        if model.uid in self._known:
            self._breaks.labels(model.namespace, model.name).inc()

    def retried(self, model: ServedModel) -> None:
        """Count one attempt that is made again."""
        if model.uid in self._known:
            self._retries.labels(model.namespace, model.name).inc()

    def expose(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _tenant(self, name: str) -> str:
        """Return a tenant's label; those beyond a bound share one."""
        if name not in self._tenants and len(self._tenants) < MAX_TENANTS:
            self._tenants.add(name)
        return name if name in self._tenants else OTHER_TENANTS


class _Validity(Collector):
    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "gptoss_gateway_certificate_expiry_timestamp_seconds",
            "End of the validity of the certificate that clients are shown, since the epoch.",
            value=self._certificate.expires_at,
        )
        yield GaugeMetricFamily(
            "gptoss_gateway_certificate_stale",
            "1 while the certificate's files can't be used and the last good one stays in force.",
            value=self._certificate.is_stale,
        )


class _Places(Collector):
    def __init__(self, places: Callable[[], Iterable[tuple[ServedModel, int, int]]]) -> None:
        self._places = places

    def collect(self) -> Iterable[GaugeMetricFamily]:
        held = GaugeMetricFamily("gptoss_gateway_held_requests", "Requests held for an engine now.", labels=_MODEL)
        flying = GaugeMetricFamily(
            "gptoss_gateway_in_flight_requests", "Requests that an engine is answering now.", labels=_MODEL
        )
        for model, waiting, in_flight in self._places():
            held.add_metric((model.namespace, model.name), waiting)
            flying.add_metric((model.namespace, model.name), in_flight)
        yield held
        yield flying


class _TenantPlaces(Collector):
    def __init__(self, places: Callable[[], Mapping[tuple[str, Place], int]], label: Callable[[str], str]) -> None:
        self._places = places
        self._label = label

    def collect(self) -> Iterable[GaugeMetricFamily]:
        shown = GaugeMetricFamily(
            "gptoss_gateway_tenant_requests",
            "Requests of a tenant that are held (waiting) or being answered (in flight) now.",
            labels=("tenant", "place"),
        )
        counts: collections.Counter[tuple[str, str]] = collections.Counter()
        for (tenant, place), count in self._places().items():
            counts[self._label(tenant), place.value] += count
        for labels, count in counts.items():
            shown.add_metric(labels, count)
        yield shown
