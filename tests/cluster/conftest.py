"""One cluster for all tests here, apart from the control plane of the others: a scheduler touches every pod."""

import itertools
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.controlplane import started_control_plane

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    plane = started_control_plane(tmp_path_factory.mktemp("cluster"))
    built = Cluster(plane)
    with built.controllers(), built.kubelets():
        yield built
    plane.stop()


@pytest.fixture
def space(cluster: Cluster) -> Iterator[str]:
    """A namespace whose pods are gone afterwards."""
    name = f"space-{next(_numbers)}"
    cluster.plane.kubectl("create", "namespace", name)
    yield name
    cluster.plane.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=0", "--force")
    cluster.plane.kubectl("delete", "namespace", name, "--wait=false")
