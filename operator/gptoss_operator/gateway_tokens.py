"""Which of the gateways' tokens replicas on KubeRay accept, and when that changes.

The file is read beside the event loop, every few seconds; reconciles ask what was found. What can't be read any
more leaves the tokens as they were, and is said in conditions as long as it lasts.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from gptoss_api.conditions import Reason
from gptoss_api.gateway_token import RETAIN_SECONDS, tokens_of
from gptoss_operator.clock import Clock
from gptoss_operator.token_file import TokenFile

_log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
_READ_SECONDS = 10.0


class AcceptedTokens:
    """The tokens of a file, and for a while those that were in it: gateways see a change at another time."""

    def __init__(self, file: Path, *, clock: Clock) -> None:
        self._file = TokenFile(file)
        self._clock = clock
        self._in_file: frozenset[str] = frozenset()
        self._seen_at: dict[str, float] = {}
        self._fault: str | None = None

    def hashes(self) -> tuple[str, ...]:
        """Return the SHA-256 of each token that counts now, in hexadecimal digits and a fixed order.

        None before the file was read for the first time.
        """
        now = self._clock.now()
        lately = {each for each, at in self._seen_at.items() if now - at <= RETAIN_SECONDS}
        return tuple(sorted(self._in_file | lately))

    def fault(self) -> tuple[str, str] | None:
        """Return the reason and message of a condition: what is wrong with the file, if anything is."""
        if self._fault is None:
            return None
        message = (
            f"the file with the gateways' tokens, kubeRay.gatewayTokenFile of the operator's settings, {self._fault}; "
            "an administrator mends it, and this goes on by itself"
        )
        return Reason.GATEWAY_TOKEN_UNREADABLE, message

    async def look(self) -> None:
        """Read the file."""
        now = self._clock.now()
        try:
            async with asyncio.timeout(_READ_SECONDS):
                tokens = tokens_of(await self._file.read())
        except TimeoutError:
            self._doubt("can't be read in time")
        except (OSError, ValueError) as error:
            self._doubt(f"can't be read ({type(error).__name__})")
        else:
            if tokens:
                self._take(tokens, now)
            else:
                self._doubt("holds no token")

    async def follow(self, changed: Callable[[], object]) -> None:
        """Look again and again; call back whenever other tokens count, or another fault is seen, than before."""
        known = self.hashes(), self._fault
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()
            found = self.hashes(), self._fault
            if found != known:
                known = found
                changed()

    def _take(self, tokens: tuple[str, ...], now: float) -> None:
        self._in_file = frozenset(hashlib.sha256(token.encode()).hexdigest() for token in tokens)
        kept = {each: at for each, at in self._seen_at.items() if now - at <= RETAIN_SECONDS}
        self._seen_at = kept | dict.fromkeys(self._in_file, now)
        self._fault = None

    def _doubt(self, fault: str) -> None:
        if fault != self._fault:
            _log.warning("the tokens of gateways stay as they were: %s %s", self._file.path, fault)
        self._fault = fault
