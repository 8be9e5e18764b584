"""Check what the local stack needs of this machine before anything long starts.

Each thing that is missing is named with the command that installs it. Standard library only, for this
runs before the environment exists (`python -m gptoss_cli.local.prerequisites`).
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from gptoss_cli.local.errors import LocalStackError, MissingPrerequisiteError
from gptoss_cli.local.folders import cache_folder

NEEDED_DISK = 12 * 1024**3
NEEDED_MEMORY = 7 * 1024**3
APT_SECONDS = 600


def check_prerequisites() -> None:
    """Return if this machine can run the stack; installs libnuma1 with apt when root, after saying so.

    Raises MissingPrerequisiteError naming everything that is missing.
    """
    missing = []
    if (system := f"{platform.system()} {platform.machine()}") != "Linux x86_64":
        missing.append(f"Linux on x86-64 is needed; this is {system}")
    if not (3, 11) <= sys.version_info < (3, 13):
        missing.append(
            f"Python 3.11 or 3.12 is needed; this is {platform.python_version()}: apt-get install python3.12"
        )
    programs = {"git": "git", "bash": "bash"}
    missing += [f"{name} is missing: apt-get install {package}" for name, package in programs.items() if not _has(name)]
    if not _library("libnuma.so.1") and not _installed("libnuma1", "libnuma.so.1"):
        missing.append("libnuma.so.1, which vLLM loads, is missing: apt-get install libnuma1")
    missing += _too_little()
    if missing:
        raise MissingPrerequisiteError("\n".join(missing))


def _too_little() -> list[str]:
    cache = cache_folder()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    found = []
    built = (cache / "uv").exists()
    if not built and (free := shutil.disk_usage(existing).free) < NEEDED_DISK:
        found.append(
            f"{existing} has {free / 1024**3:.0f} GiB of free disk space, {NEEDED_DISK // 1024**3} are needed:"
            " set GPTOSS_CACHE to a folder on a larger disk"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < NEEDED_MEMORY:
        found.append(f"{memory / 1024**3:.0f} GiB of memory, at least {NEEDED_MEMORY // 1024**3} are needed")
    return found


def _has(program: str) -> bool:
    return shutil.which(program) is not None


def _library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _installed(package: str, library: str) -> bool:
    """Install a system library with apt where that needs nobody's password; return whether it is there now."""
    if os.geteuid() != 0 or not _has("apt-get"):
        return False
    print(f"installing {package} (vLLM loads {library}): apt-get install {package}", flush=True)
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        done = subprocess.run(  # noqa: S603
            ["apt-get", "-qq", *arguments],  # noqa: S607  the one on the PATH
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=APT_SECONDS,
            check=False,
        )
        if done.returncode and arguments[0] == "install":
            return False
    return Path("/etc/ld.so.cache").exists() and _library(library)


if __name__ == "__main__":
    try:
        check_prerequisites()
    except LocalStackError as error:
        sys.exit(str(error))
