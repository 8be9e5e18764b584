"""Places that hold weights, behind one protocol: stat, read a small file, stream a large one.

A source returns bytes and promises nothing about them; what they are worth is decided by hashes.
Calls block. Whoever has an event loop runs them in a thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gptoss_weights.location import Location
from gptoss_weights.sources.file import FileSource
from gptoss_weights.sources.hub import HubSource
from gptoss_weights.sources.protocol import ObjectVersion, Source
from gptoss_weights.sources.s3 import S3Source
from gptoss_weights.sources.settings import SourceSettings

__all__ = ["ObjectVersion", "Source", "SourceSettings", "open_source"]


@contextmanager
def open_source(uri: str, *, revision: str | None = None, settings: SourceSettings) -> Iterator[Source]:
    """Open the place that a URI names; its connections are closed at the end.

    ``revision`` is the commit of an ``hf://`` source, required there and refused with every other.

    Raises:
        SourceNotAllowedError: the URI is malformed, lies outside the permitted file roots, or names no commit.
        AccessDeniedError: there are no credentials for it.
    """
    location = Location.parse(uri, revision=revision)
    source = _source(location, settings)
    try:
        yield source
    finally:
        source.close()


def _source(location: Location, settings: SourceSettings) -> Source:
    match location.scheme:
        case "file":
            return FileSource(location, settings=settings)
        case "s3":
            return S3Source(location, settings=settings)
        case "hf":
            return HubSource(location, settings=settings)
        case "az":
            # Importing Azure's library takes a third of a second and 20 MB, which other sources need not pay.
            from gptoss_weights.sources.azure import AzureSource

            return AzureSource(location, settings=settings)
