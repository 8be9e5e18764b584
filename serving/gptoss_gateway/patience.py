"""How long a client is willing to wait: ``Prefer: wait=<seconds>`` (RFC 7240, section 4.3)."""

import re
from collections.abc import Iterable

_WAIT = re.compile(r'^\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:;.*)?$', re.IGNORECASE)


def patience(preferences: Iterable[str]) -> float | None:
    """Return the seconds that a request's ``Prefer`` headers name; None where they name none.

    The first ``wait`` counts, and a preference that is not understood is none, as the RFC has it.
    """
    for line in preferences:
        for preference in line.split(","):
            if match := _WAIT.match(preference):
                return float(match[1])
    return None
