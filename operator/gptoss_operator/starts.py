"""How many models may start at once: a start costs accelerators and bandwidth that others wait for."""

from gptoss_operator.keys import DeploymentKey


class Starts:
    """Permits for starts, given out in the order they were asked for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: set[DeploymentKey] = set()
        self._waiting: dict[DeploymentKey, None] = {}

    def may(self, key: DeploymentKey) -> bool:
        """Tell whether a key may start now. A yes is held until `settle`."""
        if key in self._holders:
            return True
        ahead = [other for other in self._waiting if other != key]
        first = next(iter(self._waiting), key) == key or len(self._holders) + len(ahead) < self._limit
        if len(self._holders) < self._limit and first:
            self._holders.add(key)
            return True
        return False

    def settle(self, key: DeploymentKey, *, starting: bool, queued: bool) -> list[DeploymentKey]:
        """Say what came of it. Returns who should be looked at, for a permit is free."""
        if queued:
            self._waiting.setdefault(key, None)
        else:
            self._waiting.pop(key, None)
        if starting:
            self._holders.add(key)
            return []
        self._holders.discard(key)
        free = max(0, self._limit - len(self._holders))
        return [other for other in self._waiting if other != key][:free]
