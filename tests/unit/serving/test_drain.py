"""A pod that is told to go waits for the requests it works on, and for nothing else."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from gptoss_serving import drain as drains
from gptoss_serving.drain import drain, is_replaced_proxy_left, is_unsent, proxy_is_busy, replicas_are_busy
from gptoss_serving.in_flight import InFlight, seconds_without_request

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue\n"
LONG_AGO = time.time() - 3600


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waits_until_it_has_been_quiet_for_a_while() -> None:
    clock, looks = Time(), iter([True, False, True, *[False] * 6])
    assert drain(lambda: next(looks), limit_seconds=100, now=lambda: clock.now, sleep=clock.sleep)
    assert next(looks, None) is None
    assert clock.now == 14


def test_gives_up_at_its_limit() -> None:
    clock = Time()
    assert not drain(lambda: True, limit_seconds=60, now=lambda: clock.now, sleep=clock.sleep)
    assert 60 <= clock.now < 62


def test_replicas_are_busy_until_the_last_request_of_any_of_them_has_ended(tmp_path: Path) -> None:
    assert seconds_without_request(tmp_path) == float("inf"), "no replica was ever here"
    one, other = InFlight(tmp_path), InFlight(tmp_path)
    _last_worked(tmp_path, LONG_AGO)
    assert not replicas_are_busy(tmp_path)

    with one.request():
        _last_worked(tmp_path, LONG_AGO)
        assert replicas_are_busy(tmp_path), "however long its next token takes"
        with one.request(), other.request():
            pass
        _last_worked(tmp_path, LONG_AGO)
        assert replicas_are_busy(tmp_path), "another request of the same replica is still there"
    assert replicas_are_busy(tmp_path), "a request ended just now, and its connection may bring the next"
    _last_worked(tmp_path, LONG_AGO)
    assert not replicas_are_busy(tmp_path)


def test_a_request_that_fails_is_over(tmp_path: Path) -> None:
    requests = InFlight(tmp_path)
    with pytest.raises(ValueError, match="broken"), requests.request():
        raise ValueError("broken")
    _last_worked(tmp_path, LONG_AGO)
    assert not replicas_are_busy(tmp_path)


def test_a_replica_that_dies_at_work_keeps_nobody_waiting(tmp_path: Path) -> None:
    program = "import os, pathlib, sys; from gptoss_serving.in_flight import InFlight; "
    program += "InFlight(pathlib.Path(sys.argv[1])).request().__enter__(); os._exit(0)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    _last_worked(tmp_path, LONG_AGO)
    assert not replicas_are_busy(tmp_path)


def _metrics(*, current: tuple[int, ...], ages: tuple[int, ...]) -> str:
    """As HAProxy writes them."""
    lines = [
        "# HELP haproxy_backend_current_sessions Number of current sessions.",
        "# TYPE haproxy_backend_current_sessions gauge",
    ]
    lines += [f'haproxy_backend_current_sessions{{proxy="http-{i}"}} {count}' for i, count in enumerate(current)]
    lines += ["# TYPE haproxy_backend_last_session_seconds gauge"]
    lines += [f'haproxy_backend_last_session_seconds{{proxy="http-{i}"}} {age}' for i, age in enumerate(ages)]
    return "\n".join([*lines, 'haproxy_frontend_current_sessions{proxy="http_frontend"} 7', ""])


@pytest.mark.parametrize(
    ("text", "busy"),
    [
        (_metrics(current=(0, 0), ages=(-1, 60)), False),
        (_metrics(current=(0, 1), ages=(-1, 60)), True),
        (_metrics(current=(0, 0), ages=(-1, 2)), True),
        (_metrics(current=(0, 0), ages=(0, 60)), True),
        ("", True),
        ("not { metrics", True),
    ],
)
def test_a_proxy_is_busy_with_requests_and_not_with_connections(text: str, busy: bool) -> None:
    with _telling(text) as port:
        assert proxy_is_busy(port) is busy


def test_a_proxy_that_does_not_run_is_not_busy() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not proxy_is_busy(bound.getsockname()[1])


def test_a_proxy_that_does_not_answer_may_be_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "_ANSWER_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert proxy_is_busy(silent.getsockname()[1])


@pytest.mark.parametrize(
    ("command_lines", "left"),
    [
        ([], False),
        ([b"/opt/haproxy\0-db\0-f\0c.cfg\0", b"python\0-m\0haproxy\0"], False),
        ([b"/opt/haproxy\0-db\0", b"", b"/opt/haproxy\0-db\0-sf\0007\0"], True),
    ],
)
def test_a_replaced_proxy_runs_until_its_last_stream_has_ended(command_lines: list[bytes], left: bool) -> None:
    assert is_replaced_proxy_left(command_lines) is left


@pytest.mark.parametrize(
    ("port", "state", "unsent", "waits"),
    [
        (30001, "01", "00000000", False),
        (30001, "01", "000000A0", True),
        (30001, "04", "000000A0", True),
        (8265, "01", "000000A0", False),
    ],
)
def test_an_answer_that_its_reader_has_not_taken_yet_is_waited_for(
    port: int, state: str, unsent: str, waits: bool
) -> None:
    line = f"   0: 0600A8C0:{port:04X} 0500A8C0:C350 {state} {unsent}:00000000 00:00000000"
    assert is_unsent([HEADER + line, HEADER]) is waits


def _last_worked(folder: Path, moment: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (moment, moment))


@contextmanager
def _telling(text: str) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        log_message: Callable[..., None] = lambda *_: None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
