"""Bounds come from the node's environment, and a wrong one is named."""

import pytest

from gptoss_weights.errors import StorageError
from gptoss_weights.limits import PullLimits
from gptoss_weights.sources.ahead import RANGE_BYTES


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), ("1", 1), ("214748364800", 200 * 1024**3), ("200Gi", 200 * 1024**3), ("1Ti", 1024**4)],
)
def test_the_bound_of_the_folder(text, size):
    assert PullLimits.from_environment({"GPTOSS_WEIGHTS_MAX_BYTES": text}).folder_max_bytes == size


@pytest.mark.parametrize("text", ["0", "-1", "200GB", "1.5Gi", "all", "200 Gi", "٣"])
def test_a_bound_that_is_none_is_named(text):
    with pytest.raises(StorageError, match="GPTOSS_WEIGHTS_MAX_BYTES"):
        PullLimits.from_environment({"GPTOSS_WEIGHTS_MAX_BYTES": text})


def test_files_at_once():
    assert PullLimits.from_environment({"GPTOSS_WEIGHTS_PARALLEL_FILES": "8"}).parallel_files == 8
    assert 4 <= PullLimits.from_environment({}).parallel_files <= 16
    for text in ("0", "65", "many", "-1"):
        with pytest.raises(StorageError, match="GPTOSS_WEIGHTS_PARALLEL_FILES"):
            PullLimits.from_environment({"GPTOSS_WEIGHTS_PARALLEL_FILES": text})


def test_ranges_ahead():
    assert PullLimits.from_environment({}).ranges_ahead == 8
    assert PullLimits.from_environment({"GPTOSS_WEIGHTS_RANGES_AHEAD": "0"}).ranges_ahead == 0
    for text in ("17", "many", "-1"):
        with pytest.raises(StorageError, match="GPTOSS_WEIGHTS_RANGES_AHEAD"):
            PullLimits.from_environment({"GPTOSS_WEIGHTS_RANGES_AHEAD": text})


def test_what_is_ahead_fits_into_the_memory_of_a_pull():
    most = PullLimits.from_environment({"GPTOSS_WEIGHTS_RANGES_AHEAD": "16"}).ranges_ahead
    assert most * RANGE_BYTES <= 128 * 1024**2
