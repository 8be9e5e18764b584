"""What counts as a change of a source: another manifest, or versions that were seen before and now are others."""

import pytest

from gptoss_operator.plan.sources import has_changed, mark, to_compare_with

ONE, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
OLD = "12" * 32
"""A mark as it was written before marks named the manifest."""


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (mark(ONE, "1"), mark(ONE, "1"), False),
        (mark(ONE, "1"), mark(ONE, "2"), True),
        (mark(ONE, "1"), mark(ONE, None), False),
        (mark(ONE, None), mark(ONE, "1"), False),
        (mark(ONE, None), mark(ONE, None), False),
        (mark(ONE, None), mark(OTHER, None), True),
        (mark(ONE, "1"), mark(OTHER, None), True),
        (mark(ONE, None), mark(OTHER, "1"), True),
        ("unknown", mark(ONE, "1"), False),
        (OLD, mark(ONE, OLD), False),
        (OLD, mark(ONE, "34" * 32), True),
        (OLD, mark(ONE, None), False),
    ],
)
def test_a_change_is_what_was_seen_and_is_another_now(before: str, now: str, changed: bool) -> None:
    assert has_changed(before, now) is changed


def test_versions_that_can_be_seen_later_are_compared_with_from_then_on() -> None:
    denied_at_first = mark(ONE, None)
    learnt = to_compare_with(denied_at_first, mark(ONE, "1"))
    assert to_compare_with(learnt, mark(ONE, None)) == learnt, "nothing is forgotten while they can't be seen"
    assert not has_changed(learnt, mark(ONE, "1"))
    assert has_changed(learnt, mark(ONE, "2"))
    assert len(mark(ONE, "12" * 32)) <= 128, "status has a bound"
