"""Fixtures that several tiers share: the control plane, the object store, ports."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gptoss_cli.local.assets import object_store_program
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.object_store import ObjectStore, S3Access
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.programs import Programs
from tests.controlplane import empty_namespace, install_crds, started_control_plane

_numbers = itertools.count(1)

# How long an example takes says how busy the machine is, not whether it is right.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real etcd and kube-apiserver (RBAC, static tokens), without our CRDs."""
    plane = started_control_plane(tmp_path_factory.mktemp("control-plane"))
    yield plane
    plane.stop()


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> list[str]:
    """Our CRDs, installed and established; returns their names."""
    return install_crds(control_plane)


@pytest.fixture(scope="session")
def kubeconfig(control_plane: ControlPlane) -> Path:
    """The administrator's kubeconfig."""
    return control_plane.kubeconfig


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace of this test's own; our objects in it are deleted afterwards."""
    name = f"test-{next(_numbers)}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    empty_namespace(control_plane, name)
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def object_store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server with one bucket."""
    folder = tmp_path_factory.mktemp("object-store")
    store = ObjectStore(
        folder / "data", binary=object_store_program(), programs=Programs(folder / "run", attached=True)
    )
    store.start()
    yield store
    store.stop()


@pytest.fixture(scope="session")
def object_store(object_store_server: ObjectStore) -> S3Access:
    """How to reach that server: endpoint, bucket, keys, `environment()`, `client()`, `uri(prefix)`."""
    return object_store_server.access


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture(autouse=True, scope="session")
def _no_ambient_credentials() -> None:
    """No test reaches a cluster or a store of the person who runs it."""
    azure = [name for name in os.environ if name.startswith("AZURE_STORAGE_")]
    aws = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3")
    for name in ("KUBECONFIG", *aws, *azure):
        os.environ.pop(name, None)


def pytest_configure(config: pytest.Config) -> None:
    """Markers of tests that `make test-fast` leaves out."""
    config.addinivalue_line("markers", "slow: builds or installs something (tens of seconds)")
