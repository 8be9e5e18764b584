"""How many models may start at once: a start costs accelerators and bandwidth that others wait for."""

from gptoss_operator.keys import DeploymentKey


class Starts:
    """Permits for starts, given out in the order they were asked for."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: set[DeploymentKey] = set()
        self._waiting: dict[DeploymentKey, None] = {}

    def may(self, key: DeploymentKey) -> bool:
        """Tell whether a key may start now. Nothing is reserved: `settle` follows before anybody else asks."""
        if key in self._holders:
            return True
        ahead = 0
        for other in self._waiting:
            if other == key:
                break
            ahead += 1
        return len(self._holders) + ahead < self._limit

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
