"""The manifest: which files a signature covers, and the rules that their names must keep.

A manifest is the in-toto statement inside an OpenSSF Model Signing v1.0 bundle
(https://github.com/ossf/model-signing-spec; predicate ``https://model_signing/signature/v1.0``).
It is read by this module alone, for signers, operator and nodes alike, so that all of them agree on
what is listed. What is not listed does not exist.
"""

import enum
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, NoReturn

from gptoss_weights import strictjson
from gptoss_weights.errors import ForbiddenContentError, MalformedManifestError

SIGNATURE_FILE: Final = "model.sig"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"

MAX_PAYLOAD_BYTES: Final = 4 * 1024 * 1024
MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 16
MAX_NAME_BYTES: Final = 1024
MAX_SEGMENT_BYTES: Final = 255
MAX_SEGMENTS: Final = 8
MAX_SUBJECT_LENGTH: Final = 253

# Copies of the weights in other formats, which OpenAI's repositories carry beside the ones vLLM loads:
# signed and never fetched. metal/model.bin is Apple's format, no pickle.
_OTHER_COPIES: Final = frozenset({"original", "metal"})
_OTHER_COPY_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".jinja", ".tiktoken", ".bin"})
_SERVED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".jinja", ".txt", ".tiktoken"})
_DOCUMENT_SUFFIXES: Final = frozenset({".md", ".pdf", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp"})
_DOCUMENTS: Final = frozenset(
    {"license", "notice", "usage_policy", "readme", ".gitattributes", ".gitignore", "acceptable_use_policy"}
)
_DOCUMENT_TEXT_SUFFIXES: Final = frozenset({"", ".txt", ".md"})
# With it, Transformers loads another model than the signed one.
_ADAPTER: Final = "adapter_config.json"
_REQUIRED: Final = ("config.json", "tokenizer.json")
_TENSORS_SUFFIX: Final = ".safetensors"
_INDEX: Final = "model.safetensors.index.json"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class FileRole(enum.StrEnum):
    """What is done with a listed file."""

    SERVED = "served"
    """Fetched, verified, and given to the engine."""
    IGNORED = "ignored"
    """Documents and copies in other formats: signed, but never fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestFile:
    """One listed file. ``sha256`` is lower-case hex."""

    name: str
    sha256: str
    role: FileRole


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What was signed. ``digest`` is ``sha256:`` and the SHA-256 of the DSSE payload's bytes."""

    subject: str
    files: tuple[ManifestFile, ...]
    digest: str

    @property
    def served(self) -> tuple[ManifestFile, ...]:
        """The files that are fetched and given to the engine."""
        return tuple(file for file in self.files if file.role is FileRole.SERVED)


def manifest_digest(payload: bytes) -> str:
    """Return the digest that pins a manifest: ``sha256:`` and the SHA-256 of the DSSE payload."""
    return "sha256:" + hashlib.sha256(payload).hexdigest()


def root_digest(digests: list[str]) -> str:
    """Return the subject's digest: SHA-256 over the files' raw digests in the order they are listed."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def parse_manifest(payload: bytes) -> Manifest:
    """Read the payload of a bundle.

    Raises:
        MalformedManifestError: it is not a strict v1.0 statement, or a name in it is unsafe.
        ForbiddenContentError: it lists a file of a format that is never loaded.
    """
    try:
        statement = strictjson.parse(payload, max_bytes=MAX_PAYLOAD_BYTES, max_depth=MAX_DEPTH)
    except strictjson.StrictJSONError as error:
        raise MalformedManifestError(f"the signed manifest {error}; sign the folder again") from error
    _exact_keys(statement, "the statement", {"_type", "subject", "predicateType", "predicate"})
    if statement["_type"] != STATEMENT_TYPE:
        _malformed("the statement's _type is not in-toto's v1")
    if statement["predicateType"] != PREDICATE_TYPE:
        _malformed("predicateType is not OpenSSF Model Signing v1.0; sign again with a current signer")
    subject, expected_root = _subject(statement["subject"])
    names_and_digests = _predicate(statement["predicate"])
    if root_digest([digest for _, digest in names_and_digests]) != expected_root:
        _malformed("the subject's digest is not that of the listed files")
    check_names([name for name, _ in names_and_digests])
    files = tuple(ManifestFile(name=name, sha256=digest, role=role_of(name)) for name, digest in names_and_digests)
    _check_complete(files)
    return Manifest(subject=subject, files=files, digest=manifest_digest(payload))


def check_names(names: list[str]) -> None:
    """Check that every name is safe to create below a folder and that no two can be confused.

    Raises:
        MalformedManifestError: naming the position, never the name, of the first that breaks a rule.
    """
    taken: dict[str, str] = {}
    listed: set[str] = set()
    for index, name in enumerate(names):
        problem = _problem_with_name(name)
        if problem is not None:
            _malformed(f"resources[{index}].name {problem}")
        if name in listed:
            _malformed(f"resources[{index}].name is listed twice")
        listed.add(name)
        for prefix in (*PurePosixPath(name).parents, PurePosixPath(name)):
            folded = unicodedata.normalize("NFC", str(prefix).casefold())
            if taken.setdefault(folded, str(prefix)) != str(prefix):
                _malformed(f"resources[{index}].name differs from another only in upper and lower case")
    for index, name in enumerate(names):
        if any(str(parent) in listed for parent in PurePosixPath(name).parents):
            _malformed(f"resources[{index}].name lies below a name that is listed as a file")


def role_of(name: str) -> FileRole:
    """Tell whether a listed file is served or ignored.

    Raises:
        ForbiddenContentError: its format is neither; unknown formats fail closed.
    """
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in _DOCUMENT_SUFFIXES or _is_document(path):
        return FileRole.IGNORED
    if len(path.parts) > 1 and path.parts[0] in _OTHER_COPIES and path.suffix in _OTHER_COPY_SUFFIXES:
        return FileRole.IGNORED
    if path.name.lower() == _ADAPTER:
        raise ForbiddenContentError(
            f"the signed file {name} makes an engine load another model; merge the adapter, remove it and sign again",
            file=name,
        )
    if path.suffix in _SERVED_SUFFIXES and not path.name.startswith("."):
        return FileRole.SERVED
    raise ForbiddenContentError(
        f"the signed file {name} is of a format that is never loaded (allowed are safetensors, json, jinja, "
        "txt and tiktoken); remove it from the folder and sign again",
        file=name,
    )


def _is_document(path: PurePosixPath) -> bool:
    if path.name.lower() in _DOCUMENTS:
        return True
    return path.stem.lower() in _DOCUMENTS and path.suffix.lower() in _DOCUMENT_TEXT_SUFFIXES


def _subject(value: Any) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 1:
        _malformed("there must be exactly one subject")
    _exact_keys(value[0], "the subject", {"name", "digest"})
    name = value[0]["name"]
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_SUBJECT_LENGTH or not name.isprintable():
        _malformed(f"the subject's name must be 1 to {MAX_SUBJECT_LENGTH} printable characters")
    _exact_keys(value[0]["digest"], "the subject's digest", {"sha256"})
    return name, _hex_digest(value[0]["digest"]["sha256"], "the subject's digest")


def _predicate(value: Any) -> list[tuple[str, str]]:
    # The specification asks verifiers of v1.0 to ignore other members of the predicate.
    if not isinstance(value, dict) or not {"serialization", "resources"} <= value.keys():
        _malformed("the predicate must hold serialization and resources")
    _check_serialization(value["serialization"])
    resources = value["resources"]
    if not isinstance(resources, list) or not resources:
        _malformed("the predicate lists no files")
    if len(resources) > MAX_FILES:
        _malformed(f"more than {MAX_FILES} files are listed")
    found: list[tuple[str, str]] = []
    for index, resource in enumerate(resources):
        _exact_keys(resource, f"resources[{index}]", {"name", "algorithm", "digest"})
        if resource["algorithm"] != "sha256":
            _malformed(f"resources[{index}].algorithm must be sha256; sign again with SHA-256")
        if not isinstance(resource["name"], str):
            _malformed(f"resources[{index}].name must be text")
        found.append((resource["name"], _hex_digest(resource["digest"], f"resources[{index}].digest")))
    return found


def _check_serialization(value: Any) -> None:
    if not isinstance(value, dict):
        _malformed("serialization must be an object")
    if value.get("method") != "files":
        _malformed("serialization.method must be files; sign whole files, not shards")
    if value.get("hash_type") != "sha256":
        _malformed("serialization.hash_type must be sha256; sign again with SHA-256")
    if value.get("allow_symlinks") is not False:
        _malformed("serialization.allow_symlinks must be false; sign a folder without links")
    if not value.keys() <= {"method", "hash_type", "allow_symlinks", "ignore_paths"}:
        _malformed("serialization holds an unknown member")
    # ignore_paths is read by nobody here: only listed files exist, whatever it says.


def _problem_with_name(name: str) -> str | None:
    encodable = not any(0xD800 <= ord(character) <= 0xDFFF for character in name)
    if not name or not encodable or len(name.encode()) > MAX_NAME_BYTES:
        return f"must be 1 to {MAX_NAME_BYTES} bytes of UTF-8"
    if "\\" in name or any(unicodedata.category(character)[0] == "C" for character in name):
        return "must hold no backslash, control or invisible character"
    if unicodedata.normalize("NFC", name) != name:
        return "must be in Unicode's composed form (NFC)"
    segments = name.split("/")
    if len(segments) > MAX_SEGMENTS:
        return f"must have at most {MAX_SEGMENTS} path segments"
    if any(segment in {"", ".", ".."} for segment in segments):
        return "must be a relative path without empty, . or .. segments"
    if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        return f"must have no path segment longer than {MAX_SEGMENT_BYTES} bytes"
    if name == SIGNATURE_FILE:
        return "must not be the signature itself"
    return None


def _check_complete(files: tuple[ManifestFile, ...]) -> None:
    served = {file.name for file in files if file.role is FileRole.SERVED}
    for required in _REQUIRED:
        if required not in served:
            raise ForbiddenContentError(
                f"the manifest lists no {required}; put it into the folder and sign again", file=required
            )
    tensors = [name for name in served if name.endswith(_TENSORS_SUFFIX) and "/" not in name]
    if not tensors:
        raise ForbiddenContentError("the manifest lists no .safetensors file; sign the folder that vLLM loads")
    if len(tensors) > 1 and _INDEX not in served:
        raise ForbiddenContentError(
            f"the manifest lists {len(tensors)} .safetensors files and no {_INDEX}, which says what is where; "
            "put it into the folder and sign again",
            file=_INDEX,
        )


def _hex_digest(value: Any, what: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        _malformed(f"{what} must be 64 lower-case hexadecimal digits")
    return value


def _exact_keys(value: Any, what: str, keys: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != keys:
        _malformed(f"{what} must hold exactly {', '.join(sorted(keys))}")


def _malformed(problem: str) -> NoReturn:
    raise MalformedManifestError(f"the signed manifest is not acceptable: {problem}")
