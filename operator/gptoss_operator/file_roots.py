"""Which folders of ``file://`` are PersistentVolumeClaims, as an administrator decides.

The operator reads the signature below such a folder, and the container that fetches weights reads the bytes there: each
from a claim of the same name in its own namespace, at the same path. A claim is a source like any other: nothing on it
is trusted, and no custom resource names one.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

from pydantic import AfterValidator, Field

from gptoss_api.model import StrictModel
from gptoss_api.pod import ClassName
from gptoss_weights.location import Location

_PLAIN = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*)+")
_TAKEN = frozenset(
    {
        *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "nonexistent", "opt", "proc", "root"),
        *("run", "sbin", "sys", "tmp", "usr", "var"),
        *("app", "gptoss"),
    }
)
"""First segments that no root may have: Linux' own folders, those of our images, and those of our volumes."""


def _of_its_own(path: str) -> str:
    """Return a path that can be mounted in operator and pods, and that is spelt in one way only."""
    if not _PLAIN.fullmatch(path):
        raise ValueError(
            f"path {path} is no folder to mount: write an absolute one such as /models, of letters, digits, dots, "
            "dashes and underscores, each segment beginning with a letter or digit, and without a slash at the end"
        )
    first = path.split("/")[1]
    if first in _TAKEN:
        raise ValueError(
            f"path {path} lies in /{first}, which belongs to the system, the images or other volumes: use a folder of "
            "its own, such as /models, or one below /mnt or /srv"
        )
    return path


class FileRoot(StrictModel):
    """A folder that is a claim."""

    path: Annotated[str, Field(max_length=512), AfterValidator(_of_its_own)] = Field(
        description="The folder, in the operator and in pods. file:// URIs lie below it."
    )
    claim_name: ClassName = Field(
        description="PersistentVolumeClaim with its content, in the operator's namespace and in each that uses it."
    )

    def holds(self, place: Location) -> bool:
        """Tell whether a place is this folder or lies below it."""
        return place.within(Location.parse(f"file://{self.path}"))


def tell_apart(roots: Sequence[FileRoot]) -> None:
    """Check that pods can mount roots side by side, and that a folder is of one of them alone.

    Raises:
        ValueError: one lies in another, or two are one claim.
    """
    for one, other in combinations(roots, 2):
        if f"{one.path}/".startswith(f"{other.path}/") or f"{other.path}/".startswith(f"{one.path}/"):
            raise ValueError(
                f"kubeRay.fileRoots: {one.path} and {other.path} are not beside each other: leave one of them out"
            )
        if one.claim_name == other.claim_name:
            raise ValueError(
                f"kubeRay.fileRoots: {one.path} and {other.path} are both claim {one.claim_name}: leave one of them "
                "out, for a root is the whole of its claim"
            )
