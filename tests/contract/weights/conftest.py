"""Signed models and pulls of them."""

import pytest

from gptoss_weights.materialise import PullLimits, pull
from gptoss_weights.sources import SourceSettings
from tests.contract.weights.faults import served_by
from tests.unit.weights.builders import MODEL, model

__all__ = ["served_by"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Retries need not really wait."""
    monkeypatch.setattr("gptoss_weights.sources.retry._FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def weights(tmp_path):
    """A signed folder, with its signature's digest."""
    made = model(tmp_path / "weights")
    made.digest = made.sign().manifest.digest
    return made


@pytest.fixture
def pulled(tmp_path, weights):
    """Pull that model into one private folder: `pulled(...)` returns what `pull` does."""

    def once(uri=None, *, digest=None, subject=MODEL, limits=None, settings=None, progress=None, directory=None):
        return pull(
            uri or f"file://{weights.folder}",
            manifest_digest=digest or weights.digest,
            subject=subject,
            directory=directory or tmp_path / "private",
            settings=settings or SourceSettings(file_roots=(tmp_path,)),
            progress=progress,
            limits=limits or PullLimits(spare_bytes=0),
        )

    return once
