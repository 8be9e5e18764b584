"""Hosts to which a hub may redirect for the bytes of large files, as administrators write them."""

import re
from typing import Final

_HOST: Final = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[1-9][0-9]{0,4})?")
_MOST_PORT: Final = 65535


def check_download_host(text: str) -> str:
    """Return ``host`` (its port is that of https), ``host:port``, or ``*.domain`` for every host below one.

    Raises:
        ValueError: it is none of them, and so would silently allow nothing, or something else.
    """
    port = text.partition(":")[2]
    if not _HOST.fullmatch(text) or (port and int(port) > _MOST_PORT):
        raise ValueError(f"{text[:100]!r} is no download host: write host, host:port or *.domain, in small letters")
    return text
