"""`Prefer: wait`, as RFC 7240 has it."""

import pytest

from gptoss_gateway.patience import patience


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["wait=0"], 0),
        (["WAIT = 10"], 10),
        (['wait="7"'], 7),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=3"], 3),
        (["wait=1, wait=2"], 1),
        (["wait=5; foo=bar"], 5),
        (["wait"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=soon, wait=4"], 4),
        (["await=4"], None),
        (["wait=99999999999999999999"], None),
    ],
)
def test_the_first_wait_that_is_understood_counts(headers, seconds):
    assert patience(headers) == seconds
