"""Bounds of one pull, as whoever runs the node sets them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gptoss_weights.errors import StorageError
from gptoss_weights.sources.settings import PARALLEL_FILES_VARIABLE

MAX_BYTES_VARIABLE: Final = "GPTOSS_WEIGHTS_MAX_BYTES"
RANGES_AHEAD_VARIABLE: Final = "GPTOSS_WEIGHTS_RANGES_AHEAD"
_FEWEST_FILES: Final = 4
_MOST_FILES: Final = 64
# Times 8 MiB of memory each, beside a good 110 MiB of a pull as a whole: never more than 256 MiB.
_DEFAULT_RANGES: Final = 8
_MOST_RANGES: Final = 16
_SIZE: Final = re.compile(r"([0-9]{1,19})(|Ki|Mi|Gi|Ti)")
_UNITS: Final = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4}


def default_parallel_files() -> int:
    """Return one file per core that this process may use, but some even on a small machine: they wait a lot."""
    return min(16, max(_FEWEST_FILES, len(os.sched_getaffinity(0))))


def parse_size(text: str, *, what: str) -> int | None:
    """Read bytes such as ``214748364800`` or ``200Gi``; nothing is None.

    Raises:
        StorageError: it is neither; the message begins with ``what``.
    """
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise StorageError(f"{what} is {text!r}; set it to bytes, such as 214748364800 or 200Gi")
    return int(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PullLimits:
    """Bounds of one pull.

    ``parallel_files``: files fetched or hashed at a time; each takes a few MiB of memory.
    ``ranges_ahead``: ranges of 8 MiB of large files that are read into memory ahead of the hash, of all files
    together, where fewer than ``parallel_files`` are under way; 0 reads each file in one stream.
    ``stall_seconds``: longest wait for the next 256 KiB of a file, or for its end.
    ``lock_seconds``: longest wait for another process that pulls the same.
    ``max_bytes``: largest model. ``folder_max_bytes``: size of all verified copies together, None for
    as much as fits, and ``bound_name`` how whoever sets it calls it. ``spare_bytes`` stay free on the volume.
    ``keep_seconds``: a copy that was given out so recently is never removed: an engine may be loading it.
    """

    parallel_files: int = _FEWEST_FILES
    ranges_ahead: int = _DEFAULT_RANGES
    stall_seconds: float = 120.0
    lock_seconds: float = 3600.0
    max_bytes: int = 2 * 1024**4
    folder_max_bytes: int | None = None
    bound_name: str = MAX_BYTES_VARIABLE
    spare_bytes: int = 256 * 1024**2
    keep_seconds: float = 3600.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "PullLimits":
        """Read ``GPTOSS_WEIGHTS_`` with ``MAX_BYTES``, ``PARALLEL_FILES`` and ``RANGES_AHEAD``.

        Raises:
            StorageError: one of them is not what it should be.
        """
        variables = os.environ if environ is None else environ
        return cls(
            parallel_files=_number(
                variables, PARALLEL_FILES_VARIABLE, least=1, most=_MOST_FILES, default=default_parallel_files()
            ),
            ranges_ahead=_number(variables, RANGES_AHEAD_VARIABLE, least=0, most=_MOST_RANGES, default=_DEFAULT_RANGES),
            folder_max_bytes=parse_size(variables.get(MAX_BYTES_VARIABLE, ""), what=MAX_BYTES_VARIABLE),
        )


def _number(variables: Mapping[str, str], name: str, *, least: int, most: int, default: int) -> int:
    text = variables.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,3}", text) or not least <= int(text) <= most:
        raise StorageError(f"{name} is {text!r}; set it to a number from {least} to {most}")
    return int(text)
