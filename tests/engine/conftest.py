"""Fixtures of the tests that run a real Ray: one for the whole session, signed weights, its applications."""

import contextlib
import itertools
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptoss_api.application import WeightsArguments
from gptoss_cli.local import tiny_model
from gptoss_cli.local.ray_head import RayHead
from gptoss_weights.sign import KeyPair, generate_key, sign_folder
from tests.engine.ray import Applications, started_ray_head
from tests.engine.store import Store, started_store

_numbers = itertools.count(1)
# Of the control store, dashboard and its agent, clients, Serve and its fall-back, HAProxy's statistics and metrics,
# and the first replica.
_RAYS_OWN_PORTS = (6379, 8265, 52365, 10001, 8000, 8500, 9500, 8404, 9101, 30000)


@dataclass(frozen=True, kw_only=True)
class SignedFolder:
    """A signed copy of the tiny model."""

    folder: Path
    weights: WeightsArguments

    def sign(self, *, key: KeyPair, subject: str | None = None) -> None:
        """Sign it again, as whoever holds that key."""
        (self.folder / "model.sig").unlink(missing_ok=True)
        sign_folder(self.folder, model=subject or self.weights.subject, key=key.private_key)

    def flip_a_byte(self, name: str) -> None:
        """Change one byte in the middle of a file, as a broken disk or an attacker would."""
        file = self.folder / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.fixture(scope="session")
def weights_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder under which the session's Ray may read ``file://`` weights."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The object store of the session's Ray, which a test can have answer slowly."""
    with started_store(tmp_path_factory.mktemp("store")) as started:
        yield started


@pytest.fixture(scope="session")
def _others_ports() -> Iterator[None]:
    """The ports that Ray takes unless it is told others, taken: by another Ray, as often on a developer's machine."""
    with contextlib.ExitStack() as stack:
        for port in _RAYS_OWN_PORTS:
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody else has it already: as good
                listener.bind(("", port))
                listener.listen()
        yield


@pytest.fixture(scope="session")
def ray_head(
    tmp_path_factory: pytest.TempPathFactory, weights_root: Path, store: Store, _others_ports: None
) -> Iterator[RayHead]:
    """A real, supervised Ray with token authentication and Serve on a port of its own."""
    base = tmp_path_factory.mktemp("ray")
    with started_ray_head(base, weights_root=weights_root, **store.environment()) as head:
        yield head


@pytest.fixture(scope="session")
def _applications(ray_head: RayHead) -> Applications:
    return Applications(ray_head)


@pytest.fixture
def applications(_applications: Applications) -> Iterator[Applications]:
    """That Ray's applications; what a test declared goes when it ends."""
    yield _applications
    _applications.forget_all()


@pytest.fixture
def signing_key(tmp_path: Path) -> KeyPair:
    """The key that signs this test's weights."""
    return generate_key(tmp_path / "signing.key")


@pytest.fixture
def signed(weights_root: Path, signing_key: KeyPair, request: pytest.FixtureRequest) -> Callable[..., SignedFolder]:
    """Makes signed copies of the tiny gpt-oss under the weights root."""

    def make(name: str, *, subject: str = "gpt-oss-tiny") -> SignedFolder:
        made = signed_copy(weights_root, name, key=signing_key, subject=subject)
        request.addfinalizer(lambda: shutil.rmtree(made.folder))
        return made

    return make


def signed_copy(weights_root: Path, name: str, *, key: KeyPair, subject: str = "gpt-oss-tiny") -> SignedFolder:
    """Make a signed copy of the tiny gpt-oss under the weights root."""
    model = tiny_model.make(tiny_model.default_folder()).path
    # Never one place twice: a node that has a verified copy from there does not look at it again.
    folder = weights_root / f"{name}-{next(_numbers)}"
    shutil.copytree(model, folder)
    manifest = sign_folder(folder, model=subject, key=key.private_key).manifest
    weights = WeightsArguments(uri=f"file://{folder}", manifest_digest=manifest.digest, subject=subject)
    return SignedFolder(folder=folder, weights=weights)
