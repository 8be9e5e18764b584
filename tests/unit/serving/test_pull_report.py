"""A node tells how far its pull is, and a pull does not depend on it."""

from pathlib import Path

import pytest

from gptoss_api.application import WeightsArguments
from gptoss_api.pull_report import MAX_REPORT_BYTES, PullReport, report_name
from gptoss_serving.pull_report import told
from gptoss_weights.materialise import PullProgress
from tests.builders import DIGEST

WEIGHTS = WeightsArguments(uri="s3://models/a", manifest_digest=DIGEST, subject="a")


def at(done: int, total: int = 1000) -> PullProgress:
    return PullProgress(bytes_done=done, bytes_total=total, files_done=1, files_total=3)


def read(folder: Path) -> PullReport:
    raw = (folder / report_name(DIGEST)).read_bytes()
    assert len(raw) <= MAX_REPORT_BYTES
    return PullReport.model_validate_json(raw)


def test_tells_every_two_seconds_with_the_rate_of_late_and_leaves_nothing(tmp_path: Path) -> None:
    now = [50.0]
    with told(WEIGHTS, folder=tmp_path, clock=lambda: now[0]) as progress:
        progress(at(100))
        first = read(tmp_path)
        assert (first.bytes_done, first.bytes_total, first.files_done, first.files_total) == (100, 1000, 1, 3)
        assert first.bytes_per_second is None, "one moment has no rate"
        now[0] += 1
        progress(at(150))
        assert read(tmp_path) == first, "too early"
        now[0] += 1
        progress(at(200))
        assert (read(tmp_path).bytes_done, read(tmp_path).bytes_per_second) == (200, 50)
        for _ in range(15):
            now[0] += 2
            progress(at(200))
        last = read(tmp_path)
        assert last.bytes_per_second == 0, "nothing has come for half a minute"
        assert last.beat > first.beat
        now[0] += 2
        progress(at(20))
        assert read(tmp_path).bytes_per_second is None, "another pass begins"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_pull_leaves_nothing_either(tmp_path: Path) -> None:
    def pull() -> None:
        with told(WEIGHTS, folder=tmp_path) as progress:
            progress(at(100))
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        pull()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_nothing_stops_no_pull(tmp_path: Path) -> None:
    with told(WEIGHTS, folder=tmp_path / "missing") as progress:
        progress(at(100))


def test_outside_of_ray_nobody_is_told() -> None:
    with told(WEIGHTS) as progress:
        progress(at(100))
