"""Helm, and stand-ins for kinds that other operators bring."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from tests.apiserver.chart.helm import Helm

_MONITORING = {"servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}


@pytest.fixture(scope="session")
def helm(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The real Helm, talking to the test control plane as its administrator."""
    return Helm(folder=tmp_path_factory.mktemp("helm"), plane=control_plane)


@pytest.fixture
def released(helm: Helm, namespace: str) -> Iterator[str]:
    """A namespace whose release is uninstalled afterwards."""
    yield namespace
    helm.uninstall(namespace)


@pytest.fixture(scope="session")
def monitoring_kinds(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ServiceMonitor and its like, without their schema: Prometheus' operator is not part of this."""
    items = [
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.monitoring.coreos.com"},
            "spec": {
                "group": "monitoring.coreos.com",
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                ],
            },
        }
        for plural, kind in _MONITORING.items()
    ]
    path = tmp_path_factory.mktemp("monitoring") / "crds.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    control_plane.kubectl("apply", "-f", str(path))
    names = [f"crd/{plural}.monitoring.coreos.com" for plural in _MONITORING]
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=150s", *names)
    return path
