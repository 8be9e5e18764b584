"""Where a model's engine is reached: the one place that knows substrates. Never derived from a status."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptoss_api.clusters import RayCluster
from gptoss_api.gateway_token import token_to_send, tokens_of
from gptoss_api.kuberay import EngineAccess
from gptoss_api.names import GATEWAY_TOKEN_HEADER, route_prefix
from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.errors import ModelRefusedError, SettingsError


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An engine's base URL and the token its replicas ask for."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request to the engine."""
        return {GATEWAY_TOKEN_HEADER: self.token, "Accept-Encoding": "identity"}


class Upstreams:
    """Every engine that the settings allow to be reached."""

    def __init__(
        self, clusters: Iterable[RayCluster], *, default: str | None, kube_ray: EngineAccess | None = None
    ) -> None:
        self._clusters = {cluster.name: cluster for cluster in clusters}
        self._default = default
        self._tokens = {cluster.name: _TokenFile(cluster.gateway_token_file) for cluster in clusters}
        self._kube_ray = kube_ray
        self._kube_ray_token = _TokenFile(kube_ray.gateway_token_file) if kube_ray is not None else None

    def locate(self, model: ServedModel) -> Upstream:
        """Return where a model's engine answers, or will.

        Raises:
            ModelRefusedError: its cluster is unknown here or not for its namespace.
        """
        if model.on_kuberay or (model.cluster_name is None and self._default is None and self._kube_ray is not None):
            return self._on_kuberay(model)
        name = model.cluster_name or self._default
        cluster = self._clusters.get(name or "")
        if cluster is None:
            raise ModelRefusedError(
                f"{model.qualified_name!r} runs on the Ray cluster {name!r}, which this gateway's settings do "
                "not have: an administrator adds it to rayClusters.",
                code="UnknownCluster",
            )
        if not cluster.allows(model.namespace):
            raise ModelRefusedError(
                f"The Ray cluster {cluster.name!r} is not for namespace {model.namespace!r}: an administrator "
                "adds it to the cluster's allowedNamespaces.",
                code="NamespaceNotAllowed",
            )
        url = cluster.serve_url + route_prefix(model.namespace, model.name)
        return Upstream(url=url, token=self._tokens[cluster.name].value)

    def refresh(self) -> None:
        """Take over tokens that changed; called once a second, beside the event loop."""
        for token in self._tokens.values():
            token.refresh()
        if self._kube_ray_token is not None:
            self._kube_ray_token.refresh()

    def _on_kuberay(self, model: ServedModel) -> Upstream:
        if self._kube_ray is None or self._kube_ray_token is None:
            raise ModelRefusedError(
                f"{model.qualified_name!r} runs on KubeRay, which this gateway's settings do not have: an "
                "administrator adds kubeRay.",
                code="UnknownCluster",
            )
        return Upstream(url=self._kube_ray.engine_url(model.namespace, model.name), token=self._kube_ray_token.value)


class _TokenFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._tokens: tuple[str, ...] = ()
        self.value = ""
        try:
            self._read()
        except OSError as error:
            raise SettingsError(f"rayClusters: gatewayTokenFile {path}: can't be read: {error}") from error
        if not self.value:
            raise SettingsError(f"rayClusters: gatewayTokenFile {path}: is empty")

    def refresh(self) -> None:
        try:
            self._read()
        except OSError:  # being replaced: the token in hand stays
            return

    def _read(self) -> None:
        stat = self._path.stat()
        fingerprint = (stat.st_mtime_ns, stat.st_ino)
        if fingerprint != self._seen:
            self._tokens = tokens_of(self._path.read_text(encoding="utf-8")) or self._tokens
            self._seen = fingerprint
        if self._tokens:
            age_seconds = time.time() - stat.st_mtime
            self.value = token_to_send(self._tokens, sent=self.value, age_seconds=age_seconds)
