"""What the exit codes of every `gptoss` command mean, for scripts that branch on them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes; their documentation is this class."""

    OK = 0
    """Done, and where something was asked, the answer is yes."""
    FAILED = 1
    """It could not be done or found out: no cluster, no permission, no such object, I/O."""
    USAGE = 2
    """The command line is wrong; nothing was done."""
    NEGATIVE = 3
    """Found out, and the answer is no: not Ready, not awake in time, not verified, not running."""
    INTERRUPTED = 130
    """Ended by Ctrl-C."""


HELP = """\b
Exit codes: 0 done (or yes) · 1 failed · 2 wrong usage ·
3 the answer is no (not Ready, not verified, not running) · 130 interrupted"""
