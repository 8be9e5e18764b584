"""What a Ray node tells of a running pull: one line in a file among Ray's logs, rewritten every few seconds.

The operator reads it through Ray's dashboard, with the token that it has anyway. Nothing relies on it: it
is shown to people, and whoever controls a Ray node could write anything there.
"""

from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field

from gptoss_api.model import StrictModel

PREFIX: Final = "gptoss-pull-"
SUFFIX: Final = ".json"
MAX_REPORT_BYTES: Final = 4096

_Count = Annotated[int, Field(ge=0, le=2**53)]


class PullReport(StrictModel):
    """How far a pull is. ``beat`` changes with each report: a file that stays as it is belongs to nobody any more."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    started_at: AwareDatetime
    beat: _Count
    files_done: _Count
    files_total: _Count
    bytes_done: _Count
    bytes_total: Annotated[int, Field(gt=0, le=2**53)]
    bytes_per_second: _Count | None = None


def report_name(manifest_digest: str) -> str:
    """Return the name of the file for the weights of a manifest (``sha256:…``)."""
    return f"{PREFIX}{manifest_digest.partition(':')[2]}{SUFFIX}"
