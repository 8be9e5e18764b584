"""What every benchmark needs: word for whoever waits, jobs in processes of their own, and values beside their bars."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LONGEST_SECONDS = 3600


def say(text: str) -> None:
    """Tell whoever waits what goes on."""
    print(f"· {text}", file=sys.stderr, flush=True)


def in_process(module: str, told: Mapping[str, object]) -> dict[str, float]:
    """Run ``python -m MODULE --work``, ``told`` at its input as JSON; return the JSON of the last line it prints."""
    command = [sys.executable, "-m", module, "--work"]
    found = subprocess.run(
        command, input=json.dumps(told), stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST_SECONDS
    )
    measured: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return measured


def peak_mib() -> float:
    """Return the most memory that this process ever had. getrusage's figure outlives an exec: it is the parent's."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def misses(values: Mapping[str, tuple[float, str, float]]) -> int:
    """Print values beside their bars, ``(value, ">=" or "<=", bar)``; return how many miss theirs."""
    missed = 0
    for name, (value, sign, bar) in values.items():
        good = value >= bar if sign == ">=" else value <= bar
        missed += not good
        print(f"{name:50}{value:10.2f}{sign:>5}{bar:5g}{'' if good else '  MISSED'}")
    return missed
