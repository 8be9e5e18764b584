"""Where the two steps of trust meet: operator and nodes fetch the same bundle in the same way."""

from gptoss_weights.errors import MissingFileError
from gptoss_weights.manifest import SIGNATURE_FILE
from gptoss_weights.signature import MAX_BUNDLE_BYTES
from gptoss_weights.sources import Source


def read_bundle(source: Source) -> bytes | None:
    """Return the text of ``model.sig``, None where there is none.

    Raises:
        SourceError: the place can't be read, which is not the same as unsigned.
    """
    try:
        return source.read_small(SIGNATURE_FILE, limit=MAX_BUNDLE_BYTES)
    except MissingFileError:
        return None
