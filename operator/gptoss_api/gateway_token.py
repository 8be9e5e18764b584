"""The token between gateways and replicas, and how it changes without a request that is refused.

Its file holds one token a line, the newest first. Replicas on KubeRay accept each of them, and for a while those that
were in it before; but they learn of a change some minutes after gateways may have seen it. So while the file is young,
gateways go on with the token that they have sent so far.
"""

from collections.abc import Sequence

SETTLE_SECONDS = 300.0
"""Age at which a file counts as known everywhere: the operator's and the replicas' nodes each take up to two minutes
to mount a changed Secret or ConfigMap, and the operator some seconds between the two."""

RETAIN_SECONDS = 600.0
"""For so long a token counts that is not in the file any more: longer than the slowest gateway goes on with it."""


def tokens_of(text: str) -> tuple[str, ...]:
    """Return the tokens of a file, the newest first; none if it holds none."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def token_to_send(tokens: Sequence[str], *, sent: str, age_seconds: float) -> str:
    """Return the token to send while the file is of this age; raises IndexError if it holds none.

    ``sent`` is the one that was sent before. Whoever has sent none yet takes the oldest while the file is young.
    """
    return tokens[0] if age_seconds >= SETTLE_SECONDS else sent or tokens[-1]
