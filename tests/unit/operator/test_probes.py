"""Engines are asked beside the reconcile."""

import asyncio

from gptoss_operator.substrates.probes import Probes


class Engines:
    def __init__(self) -> None:
        self.answers: dict[str, bool] = {}
        self.asked: list[str] = []
        self.hanging = asyncio.Event()

    async def ask(self, prefix: str) -> bool:
        self.asked.append(prefix)
        if prefix == "/hangs":
            await self.hanging.wait()
        return self.answers.get(prefix, False)


async def test_one_that_hangs_delays_no_other() -> None:
    engines, news = Engines(), asyncio.Event()
    engines.answers["/quick"] = True
    probes = Probes(ask=engines.ask, news=news.set)
    probes.look({"hangs": "/hangs", "quick": "/quick"})
    async with asyncio.timeout(60):
        await news.wait()
    assert probes.answering("quick") is True
    assert probes.answering("hangs") is None
    probes.look({"hangs": "/hangs", "quick": "/quick"})
    await probes.close()
    assert engines.asked.count("/hangs") == 1


async def test_one_silence_may_be_the_networks_two_are_the_engines() -> None:
    engines = Engines()
    engines.answers["/a"] = True
    heard: asyncio.Queue[bool | None] = asyncio.Queue()
    probes = Probes(ask=engines.ask, news=lambda: heard.put_nowait(probes.answering("a")))
    async with asyncio.timeout(60):
        probes.look({"a": "/a"})
        assert await heard.get() is True
        engines.answers["/a"] = False
        while heard.empty():
            assert probes.answering("a") is True
            probes.look({"a": "/a"})
            await asyncio.sleep(0)
    assert await heard.get() is False
    assert engines.asked.count("/a") == 3
    await probes.close()


async def test_a_steady_engine_that_answers_is_asked_only_now_and_then(monkeypatch) -> None:
    engines = Engines()
    engines.answers["/a"] = True
    heard: asyncio.Queue[bool | None] = asyncio.Queue()
    probes = Probes(ask=engines.ask, news=lambda: heard.put_nowait(probes.answering("a")))

    async def look(*, steady: bool) -> int:
        probes.look({"a": "/a"}, steady={"a"} if steady else set())
        for _ in range(5):
            await asyncio.sleep(0)
        return engines.asked.count("/a")

    assert [await look(steady=True) for _ in range(3)] == [1, 1, 1]
    assert await look(steady=False) == 2
    monkeypatch.setattr("gptoss_operator.substrates.probes._STEADY_SECONDS", 0.0)
    engines.answers["/a"] = False
    assert await look(steady=True) == 3
    monkeypatch.undo()
    assert await look(steady=True) == 4, "one that did not answer is asked again at once"
    assert probes.answering("a") is False
    await probes.close()


async def test_what_is_gone_is_forgotten_and_its_late_answer_too() -> None:
    engines = Engines()
    engines.answers["/hangs"] = True
    probes = Probes(ask=engines.ask, news=lambda: None)
    probes.look({"a": "/hangs"})
    await asyncio.sleep(0)
    probes.look({})
    engines.hanging.set()
    await probes.close()
    assert probes.answering("a") is None


async def test_a_question_that_fails_is_no_answer_and_is_asked_again() -> None:
    asked: asyncio.Queue[str] = asyncio.Queue()

    async def ask(prefix: str) -> bool:
        asked.put_nowait(prefix)
        raise RecursionError("an answer of a million brackets")

    probes = Probes(ask=ask, news=lambda: None)
    async with asyncio.timeout(60):
        for _ in range(2):
            while asked.empty():
                probes.look({"a": "/a"})
                await asyncio.sleep(0)
            asked.get_nowait()
        while probes.answering("a") is not False:  # noqa: ASYNC110 - one turn of the loop away
            await asyncio.sleep(0)
    await probes.close()
