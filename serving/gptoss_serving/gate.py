"""Who may talk to a replica: those that carry a gateway's token. Pure ASGI, so that streams pass untouched.

Ray Serve's port and the replicas' own have no authentication, and the trust boundary between tenants
is the gateway. The node knows only hashes of tokens.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_serving.errors import NodeMisconfiguredError
from gptoss_serving.in_flight import InFlight

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINE = re.compile(r"sha256:([0-9a-f]{64})")
_HEADER = GATEWAY_TOKEN_HEADER.encode()
_REFUSAL = json.dumps(
    {
        "error": {
            "message": "This replica answers only to its gateway: send requests there.",
            "type": "authentication_error",
            "param": None,
            "code": "gateway_token_required",
        }
    }
).encode()


class GatewayTokens:
    """The accepted tokens' hashes; a changed file counts from the next request on."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            NodeMisconfiguredError: it can't be read, or holds no hash.
        """
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._hashes: tuple[bytes, ...] = ()
        self._refresh()
        if not self._hashes:
            raise NodeMisconfiguredError(
                f"GPTOSS_GATEWAY_TOKENS_FILE {file} holds no line of the form sha256:<64 hex digits>, "
                "so nobody could reach the engine: write the hash of the gateway's token into it"
            )

    def accepts(self, token: bytes) -> bool:
        """Tell whether a token is one of those whose hashes are known, in constant time. Unreadable = nobody."""
        self._refresh()
        given = hashlib.sha256(token).digest()
        accepted = False
        for known in self._hashes:
            accepted |= hmac.compare_digest(known, given)
        return accepted

    def _refresh(self) -> None:
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                lines = (_LINE.fullmatch(line.strip()) for line in self._file.read_text().splitlines())
                self._hashes = tuple(bytes.fromhex(line[1]) for line in lines if line)
                self._stamp = stamp
        except (OSError, UnicodeDecodeError):
            self._hashes, self._stamp = (), None


class GatewayTokenMiddleware:
    """Answers 401 to whoever carries no accepted token, and shows the others' requests as in flight."""

    def __init__(self, app: Application, *, tokens: GatewayTokens, in_flight: InFlight) -> None:
        self._app = app
        self._tokens = tokens
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope.get("headers", ()) if name.lower() == _HEADER]
        if len(given) == 1 and self._tokens.accepts(given[0]):
            with self._in_flight.request():
                await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})
