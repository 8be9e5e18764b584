"""Connections that queue at a listening socket: how fast they are taken, by whom, and where they show."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import uvloop

from gptoss_gateway import acceptor
from gptoss_gateway.acceptor import MOST_AT_ONCE, Acceptor, Queue, queue
from gptoss_gateway.queues import Queues
from tests.contract.gateway.house import eventually, model_object
from tests.contract.gateway.test_tls import authority, secret, tls  # noqa: F401 - two of them are fixtures

CROWD = 400
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@contextlib.contextmanager
def crowd(listening: socket.socket, size: int) -> Iterator[None]:
    """Clients who have connected to a socket that nobody takes them from."""
    with contextlib.ExitStack() as clients:
        for _ in range(size):
            clients.enter_context(socket.create_connection(listening.getsockname()))
        until(lambda: waiting(listening) == size)
        yield


def waiting(listening: socket.socket) -> int:
    told = queue(listening)
    assert told is not None
    return told.waiting


def until(holds: Callable[[], bool]) -> None:
    """Wait for the kernel, without a step of the event loop."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Taken:
    """What an acceptor took."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __call__(self, accepted: socket.socket, host: str) -> None:
        assert host == "127.0.0.1"
        self.sockets.append(accepted)

    @contextlib.asynccontextmanager
    async def by_one_at(self, listening: socket.socket) -> AsyncIterator[None]:
        taking = Acceptor(listening.dup(), self)
        try:
            yield
        finally:
            taking.close()
            for each in self.sockets:
                each.close()


@LOOPS
def test_a_crowd_is_taken_within_a_few_rounds_of_the_event_loop(new_loop: NewLoop):
    async def rounds() -> int:
        count, taken = 0, Taken()
        with socket.create_server(("127.0.0.1", 0), backlog=CROWD) as listening, crowd(listening, CROWD):
            async with taken.by_one_at(listening):
                while len(taken.sockets) < CROWD:
                    await asyncio.sleep(0)
                    count += 1
            return count

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert CROWD / MOST_AT_ONCE < runner.run(rounds()) < CROWD / 8


@LOOPS
def test_who_looks_first_leaves_half_of_a_crowd_to_others(new_loop: NewLoop):
    async def shares() -> tuple[int, int]:
        first, second = Taken(), Taken()
        with socket.create_server(("127.0.0.1", 0), backlog=32) as listening, crowd(listening, 32):
            async with first.by_one_at(listening), second.by_one_at(listening):
                while len(first.sockets) + len(second.sockets) < 32:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                return len(first.sockets), len(second.sockets)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert min(runner.run(shares())) >= 8


class Short(socket.socket):
    """A listening socket of a process that has no file left for another connection, for a while."""

    refusals = 2

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@LOOPS
def test_a_shortage_of_files_passes_and_nobody_who_waits_is_lost(new_loop: NewLoop, monkeypatch, caplog):
    monkeypatch.setattr(acceptor, "_BREATH_SECONDS", 0.01)

    async def take() -> None:
        taken = Taken()
        with socket.create_server(("127.0.0.1", 0)) as opened, crowd(opened, 3):
            short = Short(fileno=opened.dup().detach())
            taking = Acceptor(short, taken)
            await eventually(lambda: len(taken.sockets) == 3)
            taking.close()
            for each in taken.sockets:
                each.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(take())
    assert [record.message for record in caplog.records] == ["no connection can be accepted"] * 2


async def test_one_that_closes_in_a_shortage_does_not_look_again(monkeypatch):
    monkeypatch.setattr(acceptor, "_BREATH_SECONDS", 0.05)
    loop, looked_again = asyncio.get_running_loop(), asyncio.Event()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, fault: faults.append(fault))
    with socket.create_server(("127.0.0.1", 0)) as opened, crowd(opened, 1):
        short = Short(fileno=opened.dup().detach())
        short.refusals = 1_000_000
        taking = Acceptor(short, lambda *_: None)
        await eventually(lambda: short.refusals < 1_000_000)
        taking.close()
        loop.call_later(0.05, looked_again.set)  # after what would have looked again
        await looked_again.wait()
    assert faults == []


def test_who_waits_is_a_metric_and_so_is_who_was_turned_away():
    def value(name: str) -> float:
        return next(sample.value for family in told.collect() for sample in family.samples if sample.name == name)

    with socket.create_server(("127.0.0.1", 0), backlog=1) as listening, contextlib.ExitStack() as clients:
        told = Queues(lambda: (listening,))
        before = value("gptoss_gateway_untaken_connection_overflows_total")
        for _ in range(8):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listening.getsockname())
        until(lambda: value("gptoss_gateway_untaken_connection_overflows_total") > before)
        until(lambda: queue(listening) == Queue(waiting=2, bound=1))  # the kernel takes one more than its bound
        assert value("gptoss_gateway_untaken_connections") == 2
        assert value("gptoss_gateway_untaken_connections_limit") == 1


def test_nothing_is_told_of_a_socket_that_is_closed_or_by_a_kernel_that_does_not_count(tmp_path):
    closed = socket.create_server(("127.0.0.1", 0))
    closed.close()
    assert list(Queues(lambda: (closed,), counts=tmp_path / "none").collect()) == []


@pytest.mark.parametrize("secure", [False, True])
async def test_a_gateway_tells_who_waits(house, authority, secret, secure):  # noqa: F811
    house.apply(model_object("serving"))
    server = await house.open_gateway(**({"tls": tls(secret)} if secure else {}))

    def told() -> float | None:
        return server.gateway.metering.registry.get_sample_value("gptoss_gateway_untaken_connections")

    assert told() == 0
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    with socket.create_connection(address), socket.create_connection(address):
        until(lambda: told() == 2)
        await eventually(lambda: told() == 0)
