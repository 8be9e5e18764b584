"""Where weights lie: one reading of a URI, shared by policy and sources.

If the two read a URI differently, a policy could allow one place and a source open another; so a URI
that has two readings (dot segments, percent-encoding, empty segments, credentials) is refused.
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from gptoss_weights.errors import SourceNotAllowedError

MAX_URI_LENGTH: Final = 1024
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_REPOSITORY_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_CONTAINER: Final = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LONGEST_CONTAINER: Final = 63
_FORBIDDEN: Final = frozenset("\\%?#@*<>|\"'`{}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place: ``bucket`` is empty for ``file``, the container for ``az`` and the owner for ``hf``, ``segments`` are
    the path's.

    ``revision`` is the commit of an ``hf`` repository; a policy's prefix, and the question whether one
    contains a place, know none.
    """

    scheme: Literal["s3", "az", "file", "hf"]
    bucket: str
    segments: tuple[str, ...]
    revision: str | None = None

    @classmethod
    def parse(cls, uri: str, *, revision: str | None = None, prefix: bool = False) -> "Location":
        """Read ``s3://bucket/prefix``, ``az://container/prefix``, ``hf://owner/name`` or ``file:///folder``.

        A trailing slash means nothing.

        ``prefix``: it may be all of an owner's repositories, ``hf://owner``.

        Raises:
            SourceNotAllowedError: it is none of them, or could be read in two ways; or the revision is no commit.
        """
        if len(uri) > MAX_URI_LENGTH:
            _refuse(f"is longer than {MAX_URI_LENGTH} characters")
        if any(character in _FORBIDDEN or unicodedata.category(character)[0] in "CZ" for character in uri):
            _refuse("holds a character that can be read in two ways, such as %, ? or a space")
        if unicodedata.normalize("NFC", uri) != uri:
            _refuse("must be in Unicode's composed form (NFC)")
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme not in ("s3", "az", "file", "hf"):
            _refuse("must start with s3://, az://, hf:// or file://")
        if revision is not None and (scheme != "hf" or not COMMIT.fullmatch(revision)):
            raise SourceNotAllowedError(
                "a revision is the full id of a commit, 40 hexadecimal digits, of an hf:// source; "
                "correct spec.model.revision"
            )
        bucket, _, path = rest.partition("/")
        segments = tuple(path.removesuffix("/").split("/")) if path.removesuffix("/") else ()
        if any(segment in {"", ".", ".."} for segment in segments):
            _refuse("must have no empty, . or .. path segment")
        if scheme == "file":
            if bucket:
                _refuse("must name no host: file:///folder")
            if not segments:
                _refuse("must name a folder: file:///folder")
            return cls(scheme="file", bucket="", segments=segments)
        if scheme == "hf":
            parts = (bucket, *segments)
            if len(segments) > 1 or not (segments or prefix) or not all(_is_repository_part(part) for part in parts):
                _refuse("must name a repository: hf://owner/name")
            return cls(scheme="hf", bucket=bucket, segments=segments, revision=revision)
        if scheme == "az":
            if not _CONTAINER.fullmatch(bucket) or len(bucket) > _LONGEST_CONTAINER:
                _refuse("must name a container: az://container/prefix")
            if any(segment.endswith(".") for segment in segments):
                _refuse("must have no path segment that ends with a dot, which Azure leaves out")
            return cls(scheme="az", bucket=bucket, segments=segments)
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            _refuse("must name a bucket: s3://bucket/prefix")
        return cls(scheme="s3", bucket=bucket, segments=segments)

    def __str__(self) -> str:
        commit = f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}://{'/'.join((self.bucket, *self.segments))}{commit}"

    def within(self, prefix: "Location") -> bool:
        """Tell whether this place is ``prefix`` or lies below it, on path-segment boundaries."""
        same_root = (self.scheme, self.bucket) == (prefix.scheme, prefix.bucket)
        depth = len(prefix.segments)
        return same_root and self.segments[:depth] == prefix.segments


def _is_repository_part(text: str) -> bool:
    return _REPOSITORY_PART.fullmatch(text) is not None and ".." not in text and "--" not in text


def _refuse(problem: str) -> NoReturn:
    raise SourceNotAllowedError(f"the weights' URI {problem}; correct spec.model.uri")
