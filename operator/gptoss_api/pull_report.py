"""What is told of a running pull: one line, renewed every few seconds.

A Ray node keeps it in a file among Ray's logs, which the operator reads through Ray's dashboard, with the token that
it has anyway. A pod on KubeRay hands it out on a port of the container that fetches. Nothing relies on it: it is
shown to people, and whoever controls a node or a pod could say anything there.
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from gptoss_api.model import StrictModel

PREFIX: Final = "gptoss-pull-"
SUFFIX: Final = ".json"
MAX_REPORT_BYTES: Final = 4096
REPORT_PORT: Final = 8020
"""Where a pod answers ``GET /<report name>``, while it fetches."""

_Count = Annotated[int, Field(ge=0, le=2**53)]


class PullReport(StrictModel):
    """How far a pull is. ``beat`` changes with each report: one that stays as it is belongs to nobody any more."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    started_at: AwareDatetime
    beat: _Count
    files_done: _Count
    files_total: _Count
    bytes_done: _Count
    bytes_total: Annotated[int, Field(gt=0, le=2**53)]
    bytes_per_second: _Count | None = None


def report_name(manifest_digest: str) -> str:
    """Return the name of the report on the weights of a manifest (``sha256:…``)."""
    return f"{PREFIX}{manifest_digest.partition(':')[2]}{SUFFIX}"
