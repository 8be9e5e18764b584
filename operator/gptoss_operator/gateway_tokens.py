"""Which of the gateways' tokens replicas on KubeRay accept, and when that changes."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from gptoss_api.gateway_token import RETAIN_SECONDS, tokens_of
from gptoss_operator.clock import Clock
from gptoss_operator.settings import SettingsError

_log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0


class AcceptedTokens:
    """The tokens of a file, and for a while those that were in it: gateways see a change at another time."""

    def __init__(self, file: Path, *, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._seen_at: dict[str, float] = {}

    def hashes(self) -> tuple[str, ...]:
        """Return the SHA-256 of each token that counts now, in hexadecimal digits and a fixed order.

        Raises:
            OSError: the file can't be read.
            SettingsError: it holds no token.
        """
        tokens = tokens_of(self._file.read_text())
        if not tokens:
            raise SettingsError(f"kubeRay.gatewayTokenFile {self._file} holds no token: write one")
        now = self._clock.now()
        self._seen_at |= {hashlib.sha256(token.encode()).hexdigest(): now for token in tokens}
        self._seen_at = {each: at for each, at in self._seen_at.items() if now - at <= RETAIN_SECONDS}
        return tuple(sorted(self._seen_at))

    async def follow(self, changed: Callable[[], object]) -> None:
        """Call back whenever other tokens count than before; runs until cancelled."""
        known: tuple[str, ...] = ()
        while True:
            try:
                found = self.hashes()
            except (OSError, ValueError, SettingsError) as error:
                _log.warning("the tokens of gateways stay as they were: %s", error)
            else:
                if known and found != known:
                    changed()
                known = found
            await asyncio.sleep(LOOK_SECONDS)
