"""Where this machine's copy of the product keeps what it builds and writes.

One function decides it, so that "what is written where" has one answer and a test can point
everything elsewhere with `GPTOSS_CACHE`.
"""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: `GPTOSS_CACHE`, else `XDG_CACHE_HOME/gptoss-operator`, else `~/.cache/…`."""
    if chosen := os.environ.get("GPTOSS_CACHE"):
        return Path(chosen).expanduser().absolute()
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent).expanduser().absolute() / "gptoss-operator"
    return Path.home() / ".cache" / "gptoss-operator"


def stack_folder() -> Path:
    """Return the folder that holds the running local stack: its records, logs, keys and data."""
    return cache_folder() / "local"


def private_folder(path: Path) -> Path:
    """Create `path` readable by its owner alone, and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> Path:
    """Write a secret so that no other user can read it at any moment, replacing what was there."""
    private_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
    partial.replace(path)
    return path
