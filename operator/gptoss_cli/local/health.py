"""Whether a program of the stack says of itself that it works."""

import http.client
import ssl
import urllib.request
from collections.abc import Mapping

_SECONDS = 5.0


def is_well(url: str, *, headers: Mapping[str, str] | None = None, trusted: ssl.SSLContext | None = None) -> bool:
    """Tell whether a health or readiness address on loopback answers 200; nobody there is no."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),  # a proxy of the person's knows nothing of this machine's loopback
        urllib.request.HTTPSHandler(context=trusted),
    )
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False
