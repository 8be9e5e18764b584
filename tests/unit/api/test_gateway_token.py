"""Another token between gateway and replicas: whoever learns of it when, no replica refuses what is sent."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_api.gateway_token import RETAIN_SECONDS, SETTLE_SECONDS, token_to_send, tokens_of

OLD, BOTH, NEW = ("old",), ("new", "old"), ("new",)
Change = tuple[int, tuple[str, ...]]
ABOVE: tuple[Change, ...] = ((0, BOTH), (900, NEW))
"""The new token is written above the old one, which is taken away a quarter of an hour later."""
REPLACED: tuple[Change, ...] = ((0, NEW),)
END, STEP = 2000, 10
LOOKS_AND_WRITES = 20
lags = st.integers(0, 120)
"""Seconds that a node takes to mount a changed Secret or ConfigMap."""


def seen(changes: tuple[Change, ...], now: int, lag: int) -> tuple[tuple[str, ...], int]:
    """Return the tokens in a file where changes arrive so late, and when it was written."""
    found: tuple[tuple[str, ...], int] = (OLD, -(10**6))
    for at, tokens in changes:
        if now >= at + lag:
            found = tokens, at + lag
    return found


def refused(changes: tuple[Change, ...], gateway: int, operator: int, replica: int, restart: int | None) -> list[int]:
    """Return the seconds in which a gateway sends what a replica does not accept."""
    found, sent, written_at = [], "old", -(10**6)
    counted = {"old": 0}
    accepted_at: list[frozenset[str]] = []
    for now in range(0, END, STEP):
        counted |= dict.fromkeys(seen(changes, now, operator)[0], now)
        accepted_at.append(frozenset(each for each, at in counted.items() if now - at <= RETAIN_SECONDS))
        tokens, changed_at = seen(changes, now, gateway)
        if restart is not None and restart <= now < restart + STEP:
            sent, written_at = "", restart
        if restart is not None and restart <= now < restart + gateway:
            # A new pod gets what the Secret holds then, and later changes as late as ever.
            tokens = seen(changes, restart, 0)[0]
        written_at = max(written_at, changed_at)
        sent = token_to_send(tokens, sent=sent, age_seconds=now - written_at)
        if sent not in accepted_at[max(0, now - LOOKS_AND_WRITES - replica) // STEP]:
            found.append(now)
    assert sent == "new"
    return found


@settings(max_examples=60, deadline=None)
@given(lags, lags, lags, st.none() | st.integers(1, END - 400))
def test_a_token_written_above_the_old_one_is_never_refused(
    gateway: int, operator: int, replica: int, restart: int | None
) -> None:
    """Gateways may start anew at any time: their file is young then, and they have sent nothing yet."""
    assert refused(ABOVE, gateway, operator, replica, restart) == []


@settings(max_examples=30, deadline=None)
@given(lags, lags, lags)
def test_a_token_in_the_place_of_the_old_one_is_not_refused_while_nothing_restarts(
    gateway: int, operator: int, replica: int
) -> None:
    assert refused(REPLACED, gateway, operator, replica, None) == []


def test_a_file_holds_a_token_a_line() -> None:
    assert tokens_of("new\n\n  old\r\n") == ("new", "old")
    assert tokens_of("one") == ("one",)
    assert tokens_of(" \n") == ()


def test_the_token_that_was_sent_goes_on_while_the_file_is_young() -> None:
    young = SETTLE_SECONDS - 1
    assert token_to_send(("old", "new"), sent="old", age_seconds=young) == "old"
    assert token_to_send(NEW, sent="old", age_seconds=young) == "old"
    assert token_to_send(BOTH, sent="", age_seconds=young) == "old"
    assert token_to_send(BOTH, sent="old", age_seconds=SETTLE_SECONDS) == "new"
    assert token_to_send(BOTH, sent="old", age_seconds=-5) == "old", "a clock that was set back"
