"""A real Ray for tests, and what they ask of it: deploy an application, wait for it, talk to it."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gptoss_api.application import ServingArguments, WeightsArguments, server_deployment_name
from gptoss_api.names import GATEWAY_TOKEN_HEADER, application_name, engine_model_id, route_prefix
from gptoss_cli.local.programs import Program, Programs
from gptoss_cli.local.ray_head import RayHead

GATEWAY_TOKEN = "the-gateways-token"
STANDIN = "tests.engine.standin:build"
REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 240.0
SECONDS = 180.0
"""How long a busy machine may take for what takes seconds: a deadline costs nothing where all is well."""


@contextmanager
def started_ray_head(base: Path, *, weights_root: Path, **environment: str) -> Iterator[RayHead]:
    """Run a supervised Ray that ends with this process, however that ends."""
    head = RayHead.prepare(
        base,
        gateway_tokens=(GATEWAY_TOKEN,),
        file_roots=(weights_root,),
        python_path=(REPOSITORY,),
        environment=environment,
    )
    programs = Programs(base / "run", attached=True)
    programs.start(Program(name="ray", command=head.command(), environment={}, grace_seconds=30))
    try:
        programs.wait("ray", head.ready, seconds=START_SECONDS)
        yield head
    finally:
        programs.stop("ray")


@dataclass(frozen=True, kw_only=True)
class KilledRay:
    """A Ray that was killed. What it served may go on answering for a moment, and its status is read later."""

    head: RayHead
    processes: frozenset[int]

    def wait_for_the_next(self) -> None:
        """Wait until the supervisor has cleaned up and its next Ray takes applications.

        The killed one's dashboard goes on answering until it is cleaned up: only what answers while the
        next control store runs, which starts after that, is the next Ray's answer.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._is_followed() or not self.head.ready():
            assert time.monotonic() < deadline, f"Ray did not come back: {sorted(_pids(self.head))} run"
            time.sleep(0.2)

    def _is_followed(self) -> bool:
        running = _pids(self.head)
        return bool(running) and not running & self.processes


def kill_ray(head: RayHead) -> KilledRay:
    """SIGKILL what makes a Ray one: its control store and its node's daemon."""
    killed = KilledRay(head=head, processes=_pids(head))
    assert killed.processes
    for pid in killed.processes:
        os.kill(pid, signal.SIGKILL)
    return killed


@contextmanager
def new_engines(head: RayHead) -> Iterator[list[str]]:
    """List the titles of the vLLM processes that start under this Ray, at whatever moment in between."""
    before = _engines(head)  # an earlier test's engine drains for half a minute
    seen: list[str] = []
    ended = threading.Event()

    def watch() -> None:
        known = set(before)
        while not ended.wait(0.2):
            found = _engines(head)
            seen.extend(title for process, title in found.items() if process not in known)
            known.update(found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def _engines(head: RayHead) -> dict[int, str]:
    return processes(head, "VLLM::")


def processes(head: RayHead, title: str) -> dict[int, str]:
    """Return the titles that begin so, of the processes under this Ray, by process id."""
    titles = {}
    for daemon in _pids(head):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(daemon).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    titles[process.pid] = " ".join(process.cmdline()).strip()
    return {pid: found for pid, found in titles.items() if found.startswith(title)}


def _pids(head: RayHead) -> frozenset[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
            if str(head.temporary) in line and line.partition("\0")[0].endswith(("gcs_server", "raylet")):
                found.append(int(entry.name))
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply over HTTP."""

    status: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Applications:
    """The applications of one Ray, as a test sees them."""

    def __init__(self, head: RayHead) -> None:
        self.head = head
        self._wanted: dict[str, dict[str, Any]] = {}

    def put(self, name: str, *, weights: WeightsArguments, import_path: str = STANDIN, **engine: Any) -> str:
        """Declare an application besides the others; return its name."""
        arguments = ServingArguments(
            installation="test",
            namespace="ml",
            name=name,
            model_id=engine_model_id("ml", name, "uid"),
            weights=weights,
            tensor=1,
            engine=engine,
        )
        application = application_name("test", "ml", name)
        self._wanted[application] = {
            "name": application,
            "route_prefix": route_prefix("ml", name),
            "import_path": import_path,
            "args": arguments.wire(),
            "deployments": [
                {
                    "name": server_deployment_name(arguments.model_id),
                    "autoscaling_config": {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 8},
                    "max_surge_percent": 100,
                }
            ],
        }
        self.head.request("PUT", {"applications": list(self._wanted.values())})
        return application

    def scale(self, application: str, replicas: int) -> None:
        """Have Ray run this many replicas of an application."""
        (server,) = self._wanted[application]["deployments"]
        server["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
        self.head.request("PUT", {"applications": list(self._wanted.values())})

    def remove(self, application: str) -> None:
        """Take an application away and wait until it is gone."""
        self._wanted.pop(application, None)
        self.head.request("PUT", {"applications": list(self._wanted.values())})
        self.until(lambda: application not in self.all(), what=f"{application} is gone")

    def forget_all(self) -> None:
        """Take every application away. Not waited for: a replica drains for half a minute, and names are not reused."""
        self._wanted.clear()
        with contextlib.suppress(OSError):  # a test may have killed this Ray just now
            self.head.request("PUT", {"applications": []})

    def all(self) -> dict[str, Any]:
        """What Ray says of its applications. While its controller is busy or starts again, it may answer late."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self.head.request("GET").get("applications") or {}
            except (OSError, ValueError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.25)

    def wait(self, application: str, status: str, *, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait until an application has a status; return Ray's details of it."""
        found: dict[str, Any] = {}

        def has_it() -> bool:
            found.clear()
            found.update(self.all().get(application, {}))
            return found.get("status") == status

        self.until(has_it, seconds=seconds, what=f"{application} is {status}")
        return found

    def wait_for_answer(self, name: str, *, seconds: float = SECONDS) -> None:
        """RUNNING is not answering: wait for the model list itself."""
        self.until(lambda: self.ask(name, "/v1/models").status == 200, seconds=seconds, what=f"{name} answers")

    def ask(
        self, name: str, path: str, body: Any = None, *, token: str | None = GATEWAY_TOKEN, seconds: float = SECONDS
    ) -> Answer:
        """Send a request through HAProxy; a broken connection is status 0."""
        headers = {"Content-Type": "application/json"} | ({GATEWAY_TOKEN_HEADER: token} if token else {})
        request = urllib.request.Request(
            f"{self.head.serve_url}{route_prefix('ml', name)}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                return Answer(status=reply.status, text=reply.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(status=error.code, text=error.read().decode())
        except (OSError, http.client.HTTPException) as error:
            return Answer(status=0, text=repr(error))

    def until(self, reached: Callable[[], object], *, seconds: float = SECONDS, what: str) -> None:
        """Wait for what can only be asked for; what Ray says of its applications goes into the failure."""
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{json.dumps(self.all(), indent=1)[:6000]}")
            time.sleep(0.25)


def messages(details: dict[str, Any]) -> str:
    """All that Ray says about an application."""
    return "\n".join([str(details.get("message")), *(str(d.get("message")) for d in details["deployments"].values())])
