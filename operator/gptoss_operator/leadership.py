"""Who may write. One operator runs today; a Lease takes this place when a standby joins it."""

from typing import Protocol


class Leadership(Protocol):
    """Asked before every write, Ray's included."""

    def may_write(self) -> bool:
        """Tell whether enough of the lease is left to start a write now."""
        ...


class AlwaysLeader:
    """The only operator there is."""

    def may_write(self) -> bool:
        """Return True."""
        return True


class ReadOnly:
    """Plans are logged and nothing is written."""

    def may_write(self) -> bool:
        """Return False."""
        return False
