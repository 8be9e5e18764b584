"""One machine's Ray with Serve ready for applications, supervised: it starts again when it is killed.

    python -m gptoss_cli.local.ray_head --base DIR --dashboard-port N --serve-port N …

``RayHead`` says how to start that and how to reach it; the process itself owns Ray. What others get
wrong and what is handled here: a killed Ray leaves its HAProxy, which holds the Serve port so that the
next one can't start, and files in shared memory; Serve takes its host and port only at its first
start, so that start is made here; what can't be bound to loopback asks for Ray's token.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_cli.local.errors import ProgramError
from gptoss_cli.local.folders import cache_folder, private_folder, write_private
from gptoss_cli.local.ports import LOOPBACK, free_ports

GATEWAY_TOKENS_FILE = "gateway-tokens"
_START_SECONDS = 90.0
_STOP_SECONDS = 4.0
_RESTART_SECONDS = (0.5, 15.0)
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
_LONGEST_PARENT = 16
_PROXY_FOLDER, _SCRATCH_FOLDER = "h", "t"
_SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - where the kernel keeps it
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_PORT_NAMES = (
    *("gcs", "dashboard", "serve", "fallback", "stats", "metrics", "fallback_grpc", "agent", "export"),
    "client",  # nobody asks for it, but Ray starts its server anyhow, and ends as a whole if the port is taken
)


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """How to start one machine's Ray, and how to reach it.

    Attributes:
        base: private folder for token, logs and verified weights. Ray's own temporary folder is
            another, short one: HAProxy takes 97 characters for its socket's path, of which Ray uses 58.
        ports: by name; ``dashboard`` and ``serve`` are what others connect to.
        environment: what Ray's nodes get besides this module's own, such as credentials of an object store.
        file_roots: folders under which ``file://`` weights may be read.
        python_path: folders from which applications may be imported (tests).
    """

    base: Path
    ports: Mapping[str, int]
    environment: Mapping[str, str] = field(default_factory=dict)
    file_roots: tuple[Path, ...] = ()
    python_path: tuple[Path, ...] = ()
    cpus: int = 4

    @classmethod
    def prepare(
        cls,
        base: Path,
        *,
        gateway_tokens: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        file_roots: tuple[Path, ...] = (),
        python_path: tuple[Path, ...] = (),
        ports: Mapping[str, int] | None = None,
    ) -> "RayHead":
        """Make the folder with Ray's token and the hashes of the gateways' tokens; choose free ports."""
        private_folder(base)
        private_folder(base / "weights")
        if not (base / "token").exists():
            write_private(base / "token", secrets.token_urlsafe(32))
        hashes = [f"sha256:{hashlib.sha256(token.encode()).hexdigest()}\n" for token in gateway_tokens]
        write_private(base / GATEWAY_TOKENS_FILE, "".join(hashes))
        settings = {
            "environment": dict(environment or {}),
            "fileRoots": [str(root) for root in file_roots],
            "pythonPath": [str(folder) for folder in python_path],
        }
        write_private(base / "node.json", json.dumps(settings))  # it may hold a store's credentials
        return cls(
            base=base,
            ports=ports or dict(zip(_PORT_NAMES, free_ports(len(_PORT_NAMES)), strict=True)),
            environment=dict(environment or {}),
            file_roots=file_roots,
            python_path=python_path,
        )

    @property
    def dashboard_url(self) -> str:
        """Address of Ray's dashboard and its REST interface; asks for the token."""
        return f"http://{LOOPBACK}:{self.ports['dashboard']}"

    @property
    def serve_url(self) -> str:
        """Address of Serve's proxy; replicas ask for the gateway's token."""
        return f"http://{LOOPBACK}:{self.ports['serve']}"

    @property
    def token_file(self) -> Path:
        """File with Ray's bearer token, for its owner alone."""
        return self.base / "token"

    @property
    def token(self) -> str:
        """Ray's bearer token."""
        return self.token_file.read_text().strip()

    @property
    def temporary(self) -> Path:
        """Ray's own folder: the same for the same base, and short."""
        digest = hashlib.sha256(f"{os.getuid()} {self.base.absolute()}".encode()).hexdigest()[:8]
        parent = tempfile.gettempdir()
        return Path(parent if len(parent) <= _LONGEST_PARENT else "/tmp") / f"gptoss-{digest}"  # noqa: S108 - made 0700

    def command(self) -> list[str]:
        """Return the command line of the supervising process; it holds no secret."""
        ports = ",".join(f"{name}={port}" for name, port in self.ports.items())
        return [
            sys.executable,
            "-m",
            "gptoss_cli.local.ray_head",
            "--base",
            str(self.base),
            "--ports",
            ports,
            "--cpus",
            str(self.cpus),
        ]

    def node_environment(self) -> dict[str, str]:
        """Return the environment in which Ray starts: what ``gptoss_serving`` asks of a node."""
        proxy, scratch = self.temporary / _PROXY_FOLDER, self.temporary / _SCRATCH_FOLDER
        path = os.pathsep.join([*map(str, self.python_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {
            "GPTOSS_DEVICE": "cpu",
            **self.environment,
            "GPTOSS_WEIGHTS_DIR": str(self.base / "weights"),
            "GPTOSS_WEIGHTS_FILE_ROOTS": os.pathsep.join(str(root) for root in self.file_roots),
            "GPTOSS_GATEWAY_TOKENS_FILE": str(self.base / GATEWAY_TOKENS_FILE),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(MAX_REQUEST_SECONDS),
            "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "s"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "m"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(self.ports["stats"]),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.ports["metrics"]),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.ports["fallback"]),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.ports["fallback_grpc"]),
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            # Sockets and stores that the engine names by chance: nobody else removes those of one that was killed.
            "TMPDIR": str(scratch),
            "VLLM_RPC_BASE_PATH": str(scratch),
            # What the engine finds out once about models and kernels; it outlives the stack.
            "XDG_CACHE_HOME": str(cache_folder() / "engine"),
            "PYTHONPATH": path,
        }

    def ready(self) -> bool:
        """Tell whether Serve runs: applications can be put, and will listen where they should."""
        with contextlib.suppress(OSError, ValueError):
            proxies = (self.request("GET").get("proxies") or {}).values()
            return any(proxy.get("status") == "HEALTHY" for proxy in proxies)
        return False

    def start_serve(self) -> None:
        """Start Serve on loopback and on our port, unless it runs already.

        Raises:
            ProgramError: the dashboard refuses, with its own words.
        """
        options = {"host": LOOPBACK, "port": self.ports["serve"]}
        try:
            if self.request("GET").get("applications"):
                return  # somebody was faster, with applications of theirs
            self.request("PUT", {"applications": [], "http_options": options, "proxy_location": "HeadOnly"})
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[-1500:]
            raise ProgramError(f"Ray Serve did not start: {error.code} {text}") from error
        except OSError as error:
            raise ProgramError(f"Ray's dashboard at {self.dashboard_url} does not answer: {error}") from error

    def request(self, method: str, body: object = None) -> dict[str, Any]:
        """Ask Serve's REST interface for all applications (GET) or declare them (PUT).

        Raises:
            urllib.error.HTTPError: the dashboard refuses.
            OSError: nobody answers.
        """
        request = urllib.request.Request(  # noqa: S310 - our own loopback address
            f"{self.dashboard_url}/api/serve/applications/",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60 if method == "PUT" else 10) as response:
            text = response.read()
        return dict(json.loads(text)) if text else {}


class _Stopped(Exception):  # noqa: N818 - control flow, not an error
    """Somebody told the process to end."""


def serve_forever(head: RayHead) -> None:
    """Keep Ray running until SIGTERM or SIGINT, then end all of it."""
    _adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    pause = _RESTART_SECONDS[0]
    try:
        while True:
            began = time.monotonic()
            clean(head)
            child = _start_ray(head)
            try:
                _wait_for_dashboard(head, child)
                _start_serve(head, child)
                _say(f"Ray is up: dashboard {head.dashboard_url}, Serve {head.serve_url}")
                code = child.wait()
                _say(f"Ray ended with {code}")
            except ProgramError as error:
                _say(str(error))
            pause = _RESTART_SECONDS[0] if time.monotonic() - began > 60 else min(pause * 2, _RESTART_SECONDS[1])
            time.sleep(pause)
    except _Stopped:
        _say("ending Ray")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        clean(head)


def clean(head: RayHead) -> None:
    """End every process of this head, a killed predecessor's too, and remove what they leave on disk and in memory."""
    deadline = time.monotonic() + _STOP_SECONDS
    number = signal.SIGTERM
    shared: set[Path] = set()
    while processes := set(_processes_of(head)):
        shared.update(file for pid in processes for file in _shared_memory_of(pid))
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        if time.monotonic() > deadline + _STOP_SECONDS:
            raise ProgramError(f"processes {sorted(processes)} of Ray do not end")
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _reap()
        time.sleep(0.2)
    for file in shared:
        file.unlink(missing_ok=True)
    shutil.rmtree(head.temporary, ignore_errors=True)


def _start_ray(head: RayHead) -> "subprocess.Popen[bytes]":
    private_folder(head.temporary)
    for folder in (_PROXY_FOLDER, _SCRATCH_FOLDER):
        private_folder(head.temporary / folder)
    ports = head.ports
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--port", str(ports["gcs"])),
        *("--dashboard-host", LOOPBACK, "--dashboard-port", str(ports["dashboard"])),
        *("--dashboard-agent-listen-port", str(ports["agent"]), "--metrics-export-port", str(ports["export"])),
        *("--ray-client-server-port", str(ports["client"])),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--temp-dir", str(head.temporary), "--num-cpus", str(head.cpus), "--num-gpus", "0"),
        *("--object-store-memory", str(_OBJECT_STORE_BYTES), "--include-log-monitor", "false"),
    ]
    environment = {**os.environ, **head.node_environment()}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(  # noqa: S603
        command, env=environment, cwd=head.base, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _wait_for_dashboard(head: RayHead, child: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ProgramError(f"ray start ended with {child.returncode}")
        with contextlib.suppress(OSError, ValueError):
            head.request("GET")
            return
        time.sleep(0.3)
    raise ProgramError(f"Ray's dashboard did not answer within {_START_SECONDS:.0f} s")


def _start_serve(head: RayHead, child: "subprocess.Popen[bytes]") -> None:
    """Start Serve; on a busy machine its proxies may miss Ray's deadline at the first tries."""
    deadline = time.monotonic() + _START_SECONDS
    while not head.ready():
        if child.poll() is not None:
            raise ProgramError(f"ray start ended with {child.returncode}")
        try:
            head.start_serve()
        except ProgramError as error:
            if time.monotonic() > deadline:
                raise
            _say(f"{error}; trying again")
        time.sleep(0.5)


def _processes_of(head: RayHead) -> Iterator[int]:
    """Yield our descendants, and others that name our temporary folder on their command line."""
    mark = str(head.temporary).encode()
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z":
                continue
            parents[int(entry.name)] = int(fields[1])
            if mark in (entry / "cmdline").read_bytes():
                marked.add(int(entry.name))
    for pid in parents:
        line = pid
        while line in parents and line != os.getpid() and line not in marked:
            line = parents[line]
        if pid != os.getpid() and (line == os.getpid() or line in marked):
            yield pid


def _shared_memory_of(pid: int) -> Iterator[Path]:
    """Yield the named shared memory that a process has open: an engine that is killed can't remove its own."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, mapped, name = line.partition(_SHARED_MEMORY)
            if mapped and not name.endswith(" (deleted)"):
                yield Path(_SHARED_MEMORY + name)


def _adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (prctl(2)), so that none is lost."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Stopped(number)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> int:
    """Run the command line that ``RayHead.command`` returns."""
    parser = argparse.ArgumentParser(prog="python -m gptoss_cli.local.ray_head", description="Run Ray, supervised.")
    parser.add_argument("--base", type=Path, required=True, help="private folder that RayHead.prepare made")
    parser.add_argument("--ports", required=True, help="name=port,…")
    parser.add_argument("--cpus", type=int, default=4)
    given = parser.parse_args()
    ports = {name: int(port) for name, _, port in (pair.partition("=") for pair in given.ports.split(","))}
    settings = json.loads((given.base / "node.json").read_text())
    serve_forever(
        RayHead(
            base=given.base,
            ports=ports,
            cpus=given.cpus,
            environment=settings["environment"],
            file_roots=tuple(map(Path, settings["fileRoots"])),
            python_path=tuple(map(Path, settings["pythonPath"])),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
