"""Bounds of one pull, as whoever runs the node sets them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gptoss_weights.errors import StorageError
from gptoss_weights.sources.settings import PARALLEL_FILES_VARIABLE

MAX_BYTES_VARIABLE: Final = "GPTOSS_WEIGHTS_MAX_BYTES"
_FEWEST_FILES: Final = 4
_MOST_FILES: Final = 64
_SIZE: Final = re.compile(r"([0-9]{1,19})(|Ki|Mi|Gi|Ti)")
_UNITS: Final = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def default_parallel_files() -> int:
    """Return one file per core that this process may use, but some even on a small machine: they wait a lot."""
    return min(16, max(_FEWEST_FILES, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, kw_only=True, slots=True)
class PullLimits:
    """Bounds of one pull.

    ``parallel_files``: files fetched or hashed at a time; each takes a few MiB of memory.
    ``stall_seconds``: longest wait for the next 256 KiB of a file, or for its end.
    ``lock_seconds``: longest wait for another process that pulls the same.
    ``max_bytes``: largest model. ``folder_max_bytes``: size of all verified copies together, None for
    as much as fits. ``spare_bytes`` stay free on the volume.
    ``keep_seconds``: a copy that was given out so recently is never removed: an engine may be loading it.
    """

    parallel_files: int = _FEWEST_FILES
    stall_seconds: float = 120.0
    lock_seconds: float = 3600.0
    max_bytes: int = 2 * 1024**4
    folder_max_bytes: int | None = None
    spare_bytes: int = 256 * 1024**2
    keep_seconds: float = 3600.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "PullLimits":
        """Read ``GPTOSS_WEIGHTS_MAX_BYTES`` and ``GPTOSS_WEIGHTS_PARALLEL_FILES``.

        Raises:
            StorageError: one of them is not what it should be.
        """
        variables = os.environ if environ is None else environ
        return cls(
            parallel_files=_parallel_files(variables.get(PARALLEL_FILES_VARIABLE, "")),
            folder_max_bytes=_size(variables.get(MAX_BYTES_VARIABLE, "")),
        )


def _parallel_files(text: str) -> int:
    if not text:
        return default_parallel_files()
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= _MOST_FILES:
        raise StorageError(f"{PARALLEL_FILES_VARIABLE} is {text!r}; set it to a number from 1 to {_MOST_FILES}")
    return int(text)


def _size(text: str) -> int | None:
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise StorageError(f"{MAX_BYTES_VARIABLE} is {text!r}; set it to bytes, such as 214748364800 or 200Gi")
    return int(found[1]) * _UNITS[found[2]]
