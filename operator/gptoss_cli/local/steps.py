"""Show people what is being done and for how long, and run the long commands among it.

On a terminal every step is a line with a spinner; elsewhere (CI) each is printed as it begins, speaks
and ends. A step's command runs in a session of its own, so that an interrupt ends it and its children.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gptoss_cli.local.errors import StepError

Report = Callable[[str], None]
HEARTBEAT_SECONDS = 30.0


class Steps:
    """A sequence of named steps, some of them side by side. Use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[said]}"),
            console=console,
            disable=not self._live,
        )
        self._commands: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.interrupt()
        self._progress.stop()

    def interrupt(self) -> None:
        """End the commands that run now and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._commands)
        for command in running:
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)

    @contextmanager
    def step(self, title: str) -> Iterator[Report]:
        """Show a step while its block runs; what the block reports is shown beside it."""
        began = time.monotonic()
        task = self._progress.add_task(title, total=1, said="")
        if not self._live:
            self._print(f"{title} …")

        def report(said: str) -> None:
            if self._live:
                self._progress.update(task, said=said[-90:])
            else:
                self._print(f"  {title}: {said} ({time.monotonic() - began:.0f} s)")

        over = threading.Event()
        if not self._live:
            threading.Thread(target=self._beat, args=(title, began, over), daemon=True).start()
        try:
            yield report
        except BaseException:
            self._progress.update(task, description=f"[red]{title}")
            raise
        finally:
            over.set()
        self._progress.update(task, completed=1)
        if not self._live:
            self._print(f"{title}: done in {time.monotonic() - began:.1f} s")

    def _beat(self, title: str, began: float, over: threading.Event) -> None:
        """Say now and then, where no spinner shows it, that a quiet step goes on."""
        while not over.wait(HEARTBEAT_SECONDS):
            self._print(f"  {title}: {time.monotonic() - began:.0f} s so far")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def run(
        self, command: Sequence[str], report: Report, *, seconds: float, environment: Mapping[str, str] | None = None
    ) -> None:
        """Run a command, reporting its output line by line. Raises StepError with its last lines if it fails."""
        with self._lock:
            if self._stopped:
                raise StepError("interrupted")
            started = subprocess.Popen(  # noqa: S603  our own arguments
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._commands.add(started)
        watchdog = threading.Timer(seconds, lambda: os.killpg(started.pid, signal.SIGKILL))
        watchdog.daemon = True
        watchdog.start()
        lines: list[str] = []
        try:
            assert started.stdout is not None  # noqa: S101  asked for above
            for line in started.stdout:
                if said := line.strip():
                    lines = [*lines[-19:], said]
                    report(said)
            if started.wait():
                raise StepError(f"{' '.join(command[:4])} failed ({started.returncode}):\n" + "\n".join(lines))
        finally:
            watchdog.cancel()
            with self._lock:
                self._commands.discard(started)
