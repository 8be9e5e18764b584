"""Which tokens replicas accept: those of the file, and for a while those that were in it."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from gptoss_api.conditions import Reason
from gptoss_api.gateway_token import RETAIN_SECONDS
from gptoss_operator import gateway_tokens
from gptoss_operator.gateway_tokens import AcceptedTokens
from tests.contract.operator.house import ManualClock


def hashed(*tokens: str) -> tuple[str, ...]:
    return tuple(sorted(hashlib.sha256(token.encode()).hexdigest() for token in tokens))


def write(file: Path, text: str) -> None:
    """At once, as a kubelet does."""
    new = file.with_name("new")
    new.write_text(text)
    new.replace(file)


async def counting(accepted: AcceptedTokens) -> tuple[str, ...]:
    await accepted.look()
    return accepted.hashes()


def said(accepted: AcceptedTokens) -> str:
    fault = accepted.fault()
    assert fault is not None
    assert fault[0] == Reason.GATEWAY_TOKEN_UNREADABLE
    assert "kubeRay.gatewayTokenFile" in fault[1]
    return fault[1]


async def test_a_token_counts_a_while_longer_than_it_is_in_the_file(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", ManualClock()
    accepted = AcceptedTokens(file, clock=clock)
    write(file, "old\n")
    assert await counting(accepted) == hashed("old")
    write(file, "new\nold\n")
    assert await counting(accepted) == hashed("new", "old")
    clock.time += RETAIN_SECONDS * 3
    assert await counting(accepted) == hashed("new", "old"), "in the file for as long as it stands there"
    write(file, "new\n")
    clock.time += RETAIN_SECONDS
    assert await counting(accepted) == hashed("new", "old")
    clock.time += 1
    assert await counting(accepted) == hashed("new")


async def test_a_file_without_a_token_lets_nobody_in_and_is_told(tmp_path: Path) -> None:
    write(tmp_path / "token", " \n")
    accepted = AcceptedTokens(tmp_path / "token", clock=ManualClock())
    assert await counting(accepted) == ()
    assert "holds no token" in said(accepted)
    write(tmp_path / "token", "a token")
    assert await counting(accepted) == hashed("a token")
    assert accepted.fault() is None


async def test_what_was_known_counts_for_as_long_as_the_file_is_gone(tmp_path: Path) -> None:
    file, clock = tmp_path / "token", ManualClock()
    accepted = AcceptedTokens(file, clock=clock)
    write(file, "known")
    await accepted.look()
    file.unlink()
    clock.time += RETAIN_SECONDS * 3
    assert await counting(accepted) == hashed("known")
    assert "can't be read (FileNotFoundError)" in said(accepted)
    write(file, "another")
    assert await counting(accepted) == hashed("another")
    assert accepted.fault() is None


async def test_a_file_that_hangs_holds_nothing_else_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    accepted = AcceptedTokens(file, clock=ManualClock())
    write(file, "known")
    await accepted.look()
    file.unlink()
    os.mkfifo(file)  # whoever opens it waits, as on a file system that does not answer
    monkeypatch.setattr(gateway_tokens, "_READ_SECONDS", 0.05)
    async with asyncio.timeout(120):
        for _ in range(2):
            assert await counting(accepted) == hashed("known")
            assert "can't be read in time" in said(accepted)
        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        write(file, "another")
        while accepted.fault() is not None:
            await accepted.look()
    assert accepted.hashes() == hashed("another", "known")


async def test_each_change_is_told_once_and_the_end_of_a_token_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock, told = tmp_path / "token", ManualClock(), asyncio.Queue[tuple[tuple[str, ...], bool]]()
    monkeypatch.setattr(gateway_tokens, "LOOK_SECONDS", 0.0)
    write(file, "old")
    accepted = AcceptedTokens(file, clock=clock)
    await accepted.look()
    following = asyncio.create_task(
        accepted.follow(lambda: told.put_nowait((accepted.hashes(), accepted.fault() is None)))
    )
    async with asyncio.timeout(120):
        await asyncio.sleep(0)
        write(file, "new\nold\n")
        assert await told.get() == (hashed("new", "old"), True)
        write(file, "\n")
        assert await told.get() == (hashed("new", "old"), False)
        write(file, "new\n")
        assert await told.get() == (hashed("new", "old"), True)
        clock.time += RETAIN_SECONDS + 1
        assert await told.get() == (hashed("new"), True)
        assert told.empty()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
