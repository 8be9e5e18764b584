"""What of the Responses API asks a server to remember: refused, since engines keep nothing and may sleep."""

from gptoss_gateway.body import RequestBody
from gptoss_gateway.errors import BadRequestError

_ASKS = {
    "store": "leave it out or send false",
    "background": "leave it out and read the answer, or the stream, of this request",
    "previous_response_id": "send the conversation so far in `input`",
    "conversation": "send the conversation so far in `input`",
}


def require_stateless(body: RequestBody) -> None:
    """Refuse members that only a server with a memory could honour.

    Raises:
        BadRequestError: one of them is set; the message says what to do instead.
    """
    for name, instead in _ASKS.items():
        if body.get(name) not in (None, False):
            raise BadRequestError(
                f"`{name}` is not supported: responses are not stored here; {instead}.",
                code="responses_not_stored",
                param=name,
            )
