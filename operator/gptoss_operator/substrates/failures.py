"""Why Ray gave an application up, out of the text that Ray keeps of it.

That text is a traceback, which quotes whatever the errors in it quote. Our own error is one line, at its beginning has
nothing but its type, and is the last that a replica raises: only there a reason is read.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_api.conditions import Reason, TrustReason
from gptoss_operator.plan.observation import Failure
from gptoss_operator.substrates.engine_words import translated

_MARKED = re.compile(r"(?:[A-Za-z_][\w.]*: )?gptoss-reason=([A-Za-z]{1,64});(.*)")
_REASONS = frozenset({*Reason, *TrustReason})
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 700


def failure_of(application: Mapping[str, Any]) -> Failure:
    """Return the reason a node named, or Ray's own last words with an empty reason."""
    texts = [_ANSI.sub("", text) for text in _messages(application)]
    ours = next((ours for text in texts if (ours := _named(text)) is not None), None)
    if ours is not None:
        return ours
    known = next((known for text in texts if (known := translated(text)) is not None), None)
    if known is not None:
        return known
    words = next((line for text in texts for line in _last_words(text)), "")
    return Failure(
        reason="",
        message=f"Ray gave the application up: {words[:_LONGEST] or 'it says nothing more'}. "
        "Look at the replicas' logs in the Ray dashboard; it is tried again with growing pauses.",
    )


def _messages(application: Mapping[str, Any]) -> Iterator[str]:
    for _, deployment in sorted((application.get("deployments") or {}).items()):
        if deployment.get("message"):
            yield str(deployment["message"])
    if application.get("message"):
        yield str(application["message"])


def _named(text: str) -> Failure | None:
    """Return what the last line says that is an error of ours."""
    for line in reversed(text.splitlines()):
        found = _MARKED.fullmatch(line.strip())
        if found is not None and found[1] in _REASONS:
            return Failure(reason=found[1], message=found[2].strip()[:_LONGEST] or found[1])
    return None


def _last_words(text: str) -> Iterator[str]:
    """A traceback's last line of weight is the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Timeout)\b", line)]
    yield from reversed(errors or lines)
