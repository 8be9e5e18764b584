"""The chart, an object store and signed weights in the cluster that KUBECONFIG names; all of it goes in the end."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_cli.local import tiny_model
from gptoss_weights.sign import generate_key, sign_folder
from tests.e2e.cluster import Cluster
from tests.e2e.house import SUBJECT, House, upload
from tests.e2e.site import Site

_ENVIRONMENT = dict(os.environ)
"""As it was given: other tests' fixtures take KUBECONFIG away, so that no test reaches a cluster by chance."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here is quick, and a hang must not last for ever."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def site() -> Site:
    """What we are told of the cluster; tests fail, and don't skip, if that is too little."""
    try:
        return Site.from_environment(_ENVIRONMENT)
    except ValueError as error:
        lacking = str(error)
    pytest.fail(f"end-to-end tests need a cluster: {lacking}", pytrace=False)


@pytest.fixture(scope="session")
def cluster(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with KubeRay in it."""
    cluster = Cluster(kubeconfig=site.kubeconfig, folder=tmp_path_factory.mktemp("cluster"))
    known = cluster.kubectl("api-resources", "--api-group=ray.io", "-o", "name")
    if "rayservices.ray.io" not in known.split():
        pytest.fail(f"the cluster of {site.kubeconfig} has no KubeRay: install 1.7 or later", pytrace=False)
    return cluster


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tiny gpt-oss with a signature, and its signer's public key."""
    folder = tmp_path_factory.mktemp("weights")
    model = Path(shutil.copytree(tiny_model.make(tiny_model.default_folder()).path, folder / SUBJECT))
    pair = generate_key(folder / "signing.key")
    sign_folder(model, model=SUBJECT, key=pair.private_key)
    return model, pair.public_key.read_text()


@pytest.fixture(scope="session")
def ground(site: Site, cluster: Cluster) -> Iterator[House]:
    """Where the product goes; nothing of it is left in the end."""
    house = House(site=site, cluster=cluster)
    if found := house.remains():
        pytest.fail(f"something of the product is in the cluster already: {', '.join(sorted(found))}", pytrace=False)
    try:
        yield house
    finally:
        house.uninstall()
        house.clear()


@pytest.fixture
def house(ground: House, signed: tuple[Path, str]) -> House:
    """The installed product, a trusted key, and the weights in the store."""
    model, public_key = signed
    if not ground.is_installed():
        ground.install()
        with ground.store() as access:
            upload(access, model, SUBJECT)
        ground.trust(public_key)
    return ground
