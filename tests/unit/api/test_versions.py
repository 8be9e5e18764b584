"""Versions that are too old, and those of which that can't be said."""

import pytest

from gptoss_api.versions import is_older


@pytest.mark.parametrize("version", ["1.6.2", "v1.6.2", "v1.0", "0.9.0", "v1.6.0-rc.1"])
def test_an_older_minor_release_is_older(version: str) -> None:
    assert is_older(version, "1.7.0")


@pytest.mark.parametrize("version", ["1.7.0", "v1.7.0-rc.0", "v1.10.2", "2.0.0", "nightly", "", "v1", "build-1.6.0"])
def test_the_same_a_newer_or_an_unknown_one_is_not(version: str) -> None:
    assert not is_older(version, "1.7.0")
