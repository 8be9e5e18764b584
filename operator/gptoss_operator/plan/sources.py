"""Marks of what a source holds, by which a change of that is seen and nothing else.

A mark names the manifest and the versions of the files that nodes fetch. Who may read the manifest may not be let near
the other files, for good or for a while: then their versions are not known, which is neither a change nor none.
"""

UNKNOWN = "unknown"
_MANIFEST_DIGITS = 16


def mark(manifest_digest: str, versions: str | None) -> str:
    """Return the mark of a source; ``versions`` is a digest of the files' versions, None if they can't be seen."""
    manifest = manifest_digest.removeprefix("sha256:")[:_MANIFEST_DIGITS]
    return f"{manifest}.{versions or UNKNOWN}"


def has_changed(before: str, now: str) -> bool:
    """Tell whether a source is known to hold something else than before."""
    manifest_before, _, versions_before = before.rpartition(".")
    manifest, _, versions = now.rpartition(".")
    if manifest_before and manifest and manifest_before != manifest:
        return True
    return UNKNOWN not in {versions_before, versions} and versions_before != versions


def to_compare_with(before: str, now: str) -> str:
    """Return the mark to compare with from now on, of an unchanged source: versions that can be seen now count."""
    return now if before.rpartition(".")[2] == UNKNOWN else before
