"""The chart that this checkout's people upgrade from: the newest in git's history that differs from the one here."""

import os
import subprocess
from pathlib import Path

from tests.controlplane import REPOSITORY

_CHART = ("charts", "crds")
_WITH_IT = (*_CHART, "examples", "tests/unit/gitops/statuses")


class NoHistoryError(Exception):
    """There is no git, no repository, or not enough of its history; the message says which."""


def previous(target: Path) -> Path:
    """Write the previous chart with its CRDs, examples and status documents into `target`; raises NoHistoryError."""
    archive = target / "previous.tar"
    _git("archive", f"--output={archive}", _commit(), "--", *_WITH_IT)
    # Not by tarfile, which only some releases of Python 3.11 can tell how to treat links.
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True, timeout=60)
    return target


def _commit() -> str:
    if Path(_git("rev-parse", "--show-toplevel")).resolve() != REPOSITORY.resolve():
        raise NoHistoryError("this folder is no repository of its own")
    if _git("status", "--porcelain", "--", *_CHART):
        return "HEAD"
    newest = _git("rev-list", "-1", "HEAD", "--", *_CHART)
    try:
        return _git("rev-parse", "--verify", f"{newest}^")
    except NoHistoryError:
        raise NoHistoryError(f"history begins with the commit of this chart ({newest[:12]}): a shallow clone") from None


def _git(*arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-c", f"safe.directory={REPOSITORY}", *arguments],
            cwd=REPOSITORY,
            env=kept,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise NoHistoryError("there is no git here") from None
    if done.returncode:
        raise NoHistoryError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()
