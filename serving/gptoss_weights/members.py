"""The members of a bundle, read in one way only; whatever could be read in two is refused."""

import base64
import binascii
from typing import Any, NoReturn

from gptoss_weights.errors import MalformedSignatureError


def exact_keys(value: Any, what: str, keys: set[str]) -> None:
    """Check that a value is an object with exactly these members.

    Raises:
        MalformedSignatureError: it is not.
    """
    if not isinstance(value, dict) or value.keys() != keys:
        malformed(f"{what} must hold exactly {', '.join(sorted(keys))}")


def keys_within(value: Any, what: str, *, needed: set[str], optional: set[str]) -> None:
    """Check that a value is an object with the needed members and no others than the optional ones.

    Raises:
        MalformedSignatureError: it is not.
    """
    if not isinstance(value, dict) or not needed <= value.keys() <= needed | optional:
        malformed(
            f"{what} must hold {', '.join(sorted(needed)) or 'nothing'} and at most {', '.join(sorted(optional))}"
        )


def base64_bytes(value: Any, what: str, max_bytes: int) -> bytes:
    """Decode a text of canonical Base64.

    Raises:
        MalformedSignatureError: it is none, or too long.
    """
    if not isinstance(value, str) or len(value) > 4 * (max_bytes // 3 + 1):
        malformed(f"{what} must be Base64 of at most {max_bytes} bytes")
    try:
        decoded = base64.b64decode(value.encode("ascii", errors="strict"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        malformed(f"{what} must be standard Base64")
    if base64.b64encode(decoded).decode() != value:
        malformed(f"{what} must be canonical Base64")
    return decoded


def malformed(problem: str) -> NoReturn:
    """Refuse a bundle.

    Raises:
        MalformedSignatureError: always.
    """
    raise MalformedSignatureError(f"model.sig is not acceptable: {problem}")
