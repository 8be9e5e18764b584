"""Why Ray gave an application up, out of the text that Ray keeps of it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_operator.plan.observation import Failure
from gptoss_operator.substrates.engine_words import translated

_MARKER = re.compile(r"gptoss-reason=([A-Za-z]{1,64});[ \t]*([^\r\n]*)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 700


def failure_of(application: Mapping[str, Any]) -> Failure:
    """Return the reason a node named, or Ray's own last words with an empty reason."""
    texts = [_ANSI.sub("", text) for text in _messages(application)]
    for text in texts:
        found = _MARKER.search(text)
        if found is not None:
            return Failure(reason=found[1], message=found[2].strip()[:_LONGEST] or found[1])
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


def _last_words(text: str) -> Iterator[str]:
    """A traceback's last line of weight is the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Timeout)\b", line)]
    yield from reversed(errors or lines)
