"""A file with tokens, read anew each time: they are rotated under running processes. Never on the event loop."""

from pathlib import Path

from gptoss_operator.threads import Threads


class TokenFile:
    """One such file. A read that hangs holds up the others of this file, and a thread; whoever reads has a deadline."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._threads = Threads(1, name="token-file")

    async def read(self) -> str:
        """Return what is in it; raises OSError, or UnicodeDecodeError."""
        async with self._threads.turn() as turn:
            return await turn.run(self.path.read_text)
