"""Which tokens replicas accept: those of the file, and for a while those that were in it."""

import asyncio
import hashlib
from pathlib import Path

import pytest

from gptoss_api.gateway_token import RETAIN_SECONDS
from gptoss_operator import gateway_tokens
from gptoss_operator.gateway_tokens import AcceptedTokens
from gptoss_operator.settings import SettingsError
from tests.contract.operator.house import ManualClock


def hashed(*tokens: str) -> tuple[str, ...]:
    return tuple(sorted(hashlib.sha256(token.encode()).hexdigest() for token in tokens))


def write(file: Path, text: str) -> None:
    """At once, as a kubelet does."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


def test_a_token_counts_a_while_longer_than_it_is_in_the_file(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", ManualClock()
    accepted = AcceptedTokens(file, clock=clock)
    write(file, "old\n")
    assert accepted.hashes() == hashed("old")
    write(file, "new\nold\n")
    assert accepted.hashes() == hashed("new", "old")
    clock.time += RETAIN_SECONDS * 3
    assert accepted.hashes() == hashed("new", "old"), "in the file for as long as it stands there"
    write(file, "new\n")
    clock.time += RETAIN_SECONDS
    assert accepted.hashes() == hashed("new", "old")
    clock.time += 1
    assert accepted.hashes() == hashed("new")


def test_a_file_without_a_token_lets_nobody_in(tmp_path: Path) -> None:
    write(tmp_path / "token", " \n")
    with pytest.raises(SettingsError, match="holds no token: write one"):
        AcceptedTokens(tmp_path / "token", clock=ManualClock()).hashes()


async def test_each_change_is_told_once_and_the_end_of_a_token_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock, told = tmp_path / "token", ManualClock(), asyncio.Queue[tuple[str, ...]]()
    monkeypatch.setattr(gateway_tokens, "LOOK_SECONDS", 0.0)
    write(file, "old")
    accepted = AcceptedTokens(file, clock=clock)
    accepted.hashes()
    following = asyncio.create_task(accepted.follow(lambda: told.put_nowait(accepted.hashes())))
    async with asyncio.timeout(120):
        await asyncio.sleep(0)
        write(file, "new\nold\n")
        assert await told.get() == hashed("new", "old")
        write(file, "\n")
        await asyncio.sleep(0.01)
        write(file, "new\n")
        clock.time += RETAIN_SECONDS + 1
        assert await told.get() == hashed("new")
        assert told.empty()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
