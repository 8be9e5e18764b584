"""A leak is told from warming up, waves and outliers."""

import math
import random

import pytest
from benchmarks.trend import Bound, slope, trend

MEMORY = Bound(share=0.03, amount=4.0)
TIMES = [10.0 * number for number in range(60)]


def noisy(*, leak: float = 0.0, wave: float = 0.0, outliers: float = 0.0) -> list[float]:
    chance = random.Random(7)
    return [
        100.0
        + leak * time / TIMES[-1]
        + wave * math.sin(time / 10)
        + chance.uniform(-1, 1)
        + (outliers if chance.random() < 0.1 else 0.0)
        for time in TIMES
    ]


def test_the_slope_of_a_line_is_the_lines():
    assert slope(TIMES, [5 - 2 * time for time in TIMES]) == pytest.approx(-2)


@pytest.mark.parametrize("shape", [{}, {"wave": 20.0}, {"outliers": 300.0}, {"leak": 5.0}, {"leak": -50.0}])
def test_what_stays_or_swings_or_shrinks_does_not_grow(shape):
    assert not trend(TIMES, noisy(**shape), MEMORY).grows


@pytest.mark.parametrize("shape", [{"leak": 10.0}, {"leak": 20.0, "wave": 10.0}, {"leak": 20.0, "outliers": 300.0}])
def test_a_leak_grows_whatever_else_there_is(shape):
    found = trend(TIMES, noisy(**shape), MEMORY)
    assert found.grows
    assert found.growth == pytest.approx(shape["leak"], rel=0.35)


def test_thirds_are_compared_by_their_medians():
    found = trend(range(9), [10, 10, 99, 15, 15, 15, 20, 0, 20], MEMORY)
    assert (found.first, found.last, found.ratio) == (10, 20, 2)


def test_a_series_of_noughts_stands_still():
    found = trend(range(6), [0] * 6, Bound(share=0.0, amount=0.0))
    assert (found.ratio, found.grows) == (1, False)


def test_two_samples_are_no_series():
    with pytest.raises(ValueError, match="three"):
        trend([0, 1], [1, 2], MEMORY)
