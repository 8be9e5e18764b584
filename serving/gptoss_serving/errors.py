"""What keeps a replica from starting, said so that the operator can read it out of Ray's text.

::

    ServingError                       gptoss-reason=<reason>; <message>
    ├── VersionMismatchError           ServingVersionMismatch: operator and serving image do not fit
    ├── NodeMisconfiguredError         NodeMisconfigured: a package, variable or file is missing on the node
    ├── RayTooOldError                 RayTooOld: Ray lacks what the application is built on
    ├── VocabularyError                ForbiddenContent: the tokenizer is not gpt-oss's
    └── WeightsRefusedError            the reason of the WeightsError that caused it

Ray hands a failed replica's exception to others as a traceback, colours and all. So the reason stands
in the message itself, behind a marker and on one line, and is read from the last such line alone: what
others wrote may stand in a traceback too.
"""

from typing import ClassVar

from gptoss_api.conditions import Reason, TrustReason
from gptoss_weights.errors import WeightsError

__all__ = [
    "NodeMisconfiguredError",
    "RayTooOldError",
    "ServingError",
    "VersionMismatchError",
    "VocabularyError",
    "WeightsRefusedError",
]


class ServingError(Exception):
    """A replica can't start; ``reason`` is CamelCase and stable."""

    reason: ClassVar[str] = "EngineFailed"

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return marked(self.reason, str(self.args[0]))


class VersionMismatchError(ServingError):
    """The application's arguments are of another schema than this image knows."""

    reason = Reason.SERVING_VERSION_MISMATCH


class NodeMisconfiguredError(ServingError):
    """The node lacks a package, a variable or a file."""

    reason = Reason.NODE_MISCONFIGURED


class RayTooOldError(ServingError):
    """The Ray that runs is older than the application needs."""

    reason = Reason.RAY_TOO_OLD


class VocabularyError(ServingError):
    """The verified tokenizer does not hold harmony's vocabulary."""

    reason = TrustReason.FORBIDDEN_CONTENT


class WeightsRefusedError(ServingError):
    """Weights can't be used; the text carries the cause's own reason."""

    @classmethod
    def because(cls, error: WeightsError) -> "WeightsRefusedError":
        """Wrap an error of ``gptoss_weights``."""
        return cls(marked(error.reason, error.message))

    def __str__(self) -> str:
        return str(self.args[0])


def marked(reason: str, message: str) -> str:
    """Return one line that holds the marker, the reason and the message."""
    return f"gptoss-reason={reason}; {' '.join(message.split())}"
