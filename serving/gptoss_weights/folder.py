"""Verify a folder of one's own against a manifest that is trusted, without copying it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gptoss_weights.errors import DigestMismatchError, MissingFileError, UnsignedError
from gptoss_weights.hashing import hash_file
from gptoss_weights.manifest import SIGNATURE_FILE, FileRole, Manifest
from gptoss_weights.sign import check_folder
from gptoss_weights.signature import MAX_BUNDLE_BYTES
from gptoss_weights.storage import listing


def verify_files(
    folder: Path, manifest: Manifest, *, advance: Callable[[int], None] = lambda _: None, threads: int = 4
) -> tuple[str, ...]:
    """Verify bytes and contents of a local folder; return the files in it that the manifest does not list.

    Those are never fetched by any pull. Files that are never served (documents, other copies) may be missing, but
    not different.

    Raises:
        TrustError: one of them is not good.
        MissingFileError: a served file is not there.
    """
    here = listing(folder)
    present = [file for file in manifest.files if file.name in here]
    for file in manifest.served:
        if file.name not in here:
            raise MissingFileError(f"{file.name} is not in the folder", file=file.name)
    with ThreadPoolExecutor(threads) as executor:
        digests = list(executor.map(lambda file: hash_file(folder / file.name, advance=advance), present))
    for file, digest in zip(present, digests, strict=True):
        if digest != file.sha256:
            raise DigestMismatchError(f"{file.name} is not the file that was signed", file=file.name)
    check_folder(folder, [file.name for file in manifest.files if file.role is FileRole.SERVED])
    listed = {file.name for file in manifest.files} | {SIGNATURE_FILE}
    return tuple(sorted(here.keys() - listed))


def read_local_bundle(folder: Path) -> bytes:
    """Return the text of a local folder's ``model.sig``.

    Raises:
        UnsignedError: there is none.
    """
    try:
        with (folder / SIGNATURE_FILE).open("rb") as stream:
            return stream.read(MAX_BUNDLE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UnsignedError("there is no model.sig in the folder; sign it with `gptoss weights sign`") from None
