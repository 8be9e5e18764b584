"""Who may speak to a deployment's pods, and to whom they may speak.

Serve's port, the replicas' own, Ray's metrics and HAProxy's statistics know no password, so these
policies are their only guard beside the gateway's token. Addresses of clouds' metadata services are
never reachable, but for DNS: on some clouds one of them is the resolver.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from gptoss_api.kuberay import SERVE_PORT
from gptoss_api.pull_report import REPORT_PORT
from gptoss_operator.kuberay_settings import Peer
from gptoss_operator.plan.rayservice.credentials import token_service
from gptoss_operator.plan.rayservice.pods import DASHBOARD_PORT, METRICS_PORT
from gptoss_operator.plan.rayservice.workload import HEAD, ROLE_LABEL, WORKER, KubeRaySite, Raw, Workload
from gptoss_weights.sources.endpoint import METADATA_SERVICES

_HAPROXY_METRICS_PORT = 9101
_LINK_LOCAL = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))
_ANYWHERE_BUT_METADATA: list[Raw] = [
    {"ipBlock": {"cidr": cidr, "except": [str(each) for each in sorted(excepted)]}}
    for cidr, excepted in (
        ("0.0.0.0/0", [each for each in (*METADATA_SERVICES, *_LINK_LOCAL) if isinstance(each, IPv4Network)]),
        ("::/0", [each for each in (*METADATA_SERVICES, *_LINK_LOCAL) if isinstance(each, IPv6Network)]),
    )
]


def network_policies(workload: Workload, site: KubeRaySite) -> list[Raw]:
    """Return the policies of head and workers."""
    return [
        _policy(workload, site, HEAD, reaches=_control_ports(workload, site)),
        _policy(workload, site, WORKER, reaches=_store_ports(workload, site)),
    ]


def _control_ports(workload: Workload, site: KubeRaySite) -> tuple[int, ...]:
    """Return the ports of what a head needs beside its workers."""
    store = site.settings.gcs_store_of(workload.namespace)
    redis = (store.port,) if store is not None else ()
    return tuple(sorted({*redis, *(site.settings.network.api_server_ports if workload.autoscales else ())}))


def _store_ports(workload: Workload, site: KubeRaySite) -> tuple[int, ...]:
    """Return the ports of what weights may come from. A claim is mounted by the node, so its pods need none."""
    if workload.scheme == "file":
        return ()
    endpoints = {
        port
        for endpoint in (site.s3_endpoint, site.azure_endpoint, site.hf_endpoint, token_service(workload, site))
        for port in _endpoint_port(endpoint)
    }
    downloads = {int(port) for _, _, port in (host.partition(":") for host in site.hf_download_hosts) if port}
    return tuple(sorted({*site.settings.network.egress_ports, *endpoints, *downloads}))


def _policy(workload: Workload, site: KubeRaySite, role: str, *, reaches: tuple[int, ...]) -> Raw:
    network, system = site.settings.network, site.system_namespace
    gateway = network.gateway or Peer(namespace=system, pod_labels={"app.kubernetes.io/component": "gateway"})
    operator = network.operator or Peer(namespace=system, pod_labels={"app.kubernetes.io/component": "operator"})
    itself = [{"podSelector": {"matchLabels": workload.identity}}]
    ingress: list[Raw] = [
        {"from": itself},
        {"from": [_peer(gateway), _peer(operator)], "ports": _tcp(SERVE_PORT)},
    ]
    if role == HEAD:
        ingress.append({"from": [_peer(network.kuberay)], "ports": _tcp(SERVE_PORT, DASHBOARD_PORT)})
    if role == WORKER:
        ingress.append({"from": [_peer(operator)], "ports": _tcp(REPORT_PORT)})
    if network.prometheus is not None:
        ingress.append({"from": [_peer(network.prometheus)], "ports": _tcp(METRICS_PORT, _HAPROXY_METRICS_PORT)})
    egress: list[Raw] = [
        {"to": itself},
        {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
    ]
    if reaches:
        egress.append({"to": _ANYWHERE_BUT_METADATA, "ports": _tcp(*reaches)})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": workload.metadata(f"{workload.name}-{role}"),
        "spec": {
            "podSelector": {"matchLabels": {**workload.identity, ROLE_LABEL: role}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _peer(peer: Peer) -> Raw:
    found: Raw = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": peer.namespace}}}
    if peer.pod_labels:
        found["podSelector"] = {"matchLabels": dict(sorted(peer.pod_labels.items()))}
    return found


def _tcp(*ports: int) -> list[Raw]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _endpoint_port(endpoint: str | None) -> tuple[int, ...]:
    if endpoint is None:
        return ()
    url = urlsplit(endpoint)
    return (url.port or (80 if url.scheme == "http" else 443),)
