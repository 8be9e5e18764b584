"""Signed models and pulls of them."""

import re

import pytest

from gptoss_weights.limits import PullLimits
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings, ahead
from gptoss_weights.sources.file import FileSource
from tests.contract.weights.faults import served_by
from tests.contract.weights.proxy import proxy
from tests.unit.weights.builders import MODEL, model

__all__ = ["proxy", "served_by"]


SHARD = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
SERVED = {"config.json", "tokenizer.json", "model.safetensors.index.json", SHARD, SECOND}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Retries need not really wait."""
    monkeypatch.setattr("gptoss_weights.sources.retry._FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture(autouse=True)
def _no_cloning(monkeypatch):
    """Local files are streams, which tests break, whatever the file system under them can."""
    monkeypatch.setattr(FileSource, "clone", lambda *_, **__: False)


@pytest.fixture
def weights(tmp_path):
    """A signed folder, with its signature's digest."""
    made = model(tmp_path / "weights")
    made.digest = made.sign().manifest.digest
    return made


@pytest.fixture
def uploaded(object_store, weights, request):
    """The signed model in the real server, under a prefix of this test's own."""
    prefix = re.sub(r"[^a-z0-9_]+", "-", request.node.name.lower())
    client = object_store.client()
    for path in weights.folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), object_store.bucket, f"{prefix}/{path.relative_to(weights.folder)}")
    return prefix


def settings_for(access, **changes) -> SourceSettings:
    values = {
        "s3_endpoint": access.endpoint,
        "s3_region": access.region,
        "s3_access_key_id": access.access_key,
        "s3_secret_access_key": access.secret_key,
        **changes,
    }
    return SourceSettings(**values)


def small_ranges(monkeypatch, length) -> None:
    """Read ranges of this length, and think that they are worth it whatever the clock says."""
    sizes = {"RANGE_BYTES": 1, "_LARGE_BYTES": 2, "_PROBE_BYTES": 1, "_TRIAL_BYTES": 4, "_ALONE_BYTES": 8, "_WORTH": 0}
    for name, times in sizes.items():
        monkeypatch.setattr(ahead, name, times * length)


@pytest.fixture
def ranged(monkeypatch):
    """Limits of pulls by ranges so small that a test's model has many."""
    small_ranges(monkeypatch, 256 * 1024)
    return PullLimits(parallel_files=8, spare_bytes=0)


def nothing_is_visible(tmp_path) -> bool:
    """Whether the folder that `pulled` pulls into gives nothing out."""
    return list((tmp_path / "private" / "ready").iterdir()) == []


@pytest.fixture
def pulled(tmp_path, weights):
    """Pull that model into one private folder: `pulled(...)` returns what `pull` does."""

    def once(
        uri=None,
        *,
        digest=None,
        subject=MODEL,
        limits=None,
        settings=None,
        progress=None,
        directory=None,
        revision=None,
    ):
        return pull(
            uri or f"file://{weights.folder}",
            revision=revision,
            manifest_digest=digest or weights.digest,
            subject=subject,
            directory=directory or tmp_path / "private",
            settings=settings or SourceSettings(file_roots=(tmp_path,)),
            progress=progress,
            limits=limits or PullLimits(spare_bytes=0),
        )

    return once
