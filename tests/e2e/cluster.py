"""kubectl, Helm and port-forwards against the cluster under test."""

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from gptoss_cli.local.assets import control_plane_programs, helm_program

Raw = dict[str, Any]
POLL_SECONDS = 1.0


class UnreachableError(AssertionError):
    """The API server did not take a connection."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One cluster, as its administrator."""

    kubeconfig: Path
    folder: Path

    @retry(
        retry=retry_if_exception_type(UnreachableError), stop=stop_after_delay(120), wait=wait_fixed(2), reraise=True
    )
    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        """Run kubectl. An API server that is out of reach for a moment is asked again: all that tests ask bears it."""
        return self._run([str(control_plane_programs().kubectl), *arguments], stdin=stdin, seconds=seconds)

    def helm(self, *arguments: str, seconds: float = 600) -> str:
        return self._run([str(helm_program()), *arguments], seconds=seconds)

    def apply(self, *documents: Raw) -> None:
        listing = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listing))

    def get(self, kind: str, name: str, namespace: str = "") -> Raw | None:
        """Return an object; None if there is none. Without a namespace it is the cluster's own."""
        where = ("-n", namespace) if namespace else ()
        found = self.kubectl("get", kind, name, *where, "-o", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else None

    def items(self, kinds: str, namespace: str, selector: str = "") -> list[Raw]:
        chosen = ("-l", selector) if selector else ()
        return list(json.loads(self.kubectl("get", kinds, "-n", namespace, *chosen, "-o", "json"))["items"])

    def until(self, ready: Callable[[], Any], *, seconds: float, what: Callable[[], str] | str) -> Any:
        """Wait for something to be true and return it."""
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            told = what if isinstance(what, str) else what()
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {told}"
            time.sleep(POLL_SECONDS)
        return found

    @contextlib.contextmanager
    def forward(self, name: str, port: int, namespace: str, *, kind: str = "service") -> Iterator[str]:
        """Yield a URL on loopback that leads to a Service, or to a ``pod``."""
        command = [str(control_plane_programs().kubectl), "port-forward", f"{kind}/{name}", f":{port}"]
        process = subprocess.Popen(
            [*command, "-n", namespace],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said: list[str] = []
        listens = threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                listens.set()
            listens.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            assert listens.wait(60), f"no port-forward to {name} within 60 s"
            found = re.search(r"127\.0\.0\.1:(\d+)", "".join(said))
            assert found, f"no port-forward to {name}: {''.join(said)}"
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            process.terminate()
            process.wait(timeout=30)
            reader.join(timeout=30)

    def _run(self, command: list[str], *, seconds: float, stdin: str | None = None) -> str:
        done = subprocess.run(
            command,
            input=stdin or "",
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            kind = UnreachableError if "Unable to connect to the server" in done.stderr else AssertionError
            raise kind(f"{Path(command[0]).name} {' '.join(command[1:])}: {done.stderr}{done.stdout}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        folders = {f"HELM_{kind}_HOME": str(self.folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "KUBECONFIG": str(self.kubeconfig), **folders}
