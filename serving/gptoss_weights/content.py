"""What signed files may contain before an engine opens them.

A signature says who vouches for bytes, not that they are harmless to parse: tensors must lie where
their header says, an index may only name listed files and must agree with them, and nothing may ask
for code or for a file from elsewhere. A chat template needs no rule of its own: an engine sees listed
files only, so the template that it finds is a signed one.
"""

import codecs
import threading
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gptoss_weights import strictjson
from gptoss_weights.errors import ForbiddenContentError
from gptoss_weights.tensors import check_safetensors

INDEX_SUFFIX: Final = ".safetensors.index.json"
TENSORS_SUFFIX: Final = ".safetensors"
MAX_TENSOR_FILE_BYTES: Final = 256 * 1024**3
MAX_JSON_BYTES: Final = 128 * 1024**2
"""gpt-oss's tokenizer.json, the largest there is, has 28 MB."""
MAX_INDEX_BYTES: Final = 8 * 1024**2
MAX_TEXT_BYTES: Final = 16 * 1024**2
_MAX_INDEX_DEPTH: Final = 8
_CHUNK_BYTES: Final = 1024 * 1024
# Keys by which Transformers and vLLM find Python of a repository's own.
_CODE_KEYS: Final = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})
# Keys by which they find another model (speculators, adapters) or another file than the listed one.
_ELSEWHERE_KEYS: Final = frozenset({"speculators_config", "base_model_name_or_path", "fast_tokenizer_files"})
# Keys whose value is a path (tokenizer_file, vocab_file, …) or, with a slash, a kernel on a hub.
_FILE_KEY_SUFFIX: Final = "_file"
_KERNEL_KEYS: Final = frozenset(
    {"attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
     "_experts_implementation"}
)  # fmt: skip
_TELLING_KEYS: Final = _CODE_KEYS | _ELSEWHERE_KEYS | _KERNEL_KEYS


class Contents:
    """The served files of one folder, checked one by one as they arrive and then together."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._lock = threading.Lock()
        self._tensors: dict[str, frozenset[str]] = {}
        self._weight_maps: dict[str, dict[str, str]] = {}

    def check(self, path: Path, *, name: str) -> None:
        """Check one file. Safe to call from several threads.

        Raises:
            ForbiddenContentError: an engine may not open it.
        """
        check_size(name, path.stat().st_size)
        if name.endswith(TENSORS_SUFFIX):
            tensors = check_safetensors(path, name=name)
            with self._lock:
                self._tensors[name] = tensors
        elif name.endswith(INDEX_SUFFIX):
            weight_map = check_index(path, name=name, listed=self._names)
            with self._lock:
                self._weight_maps[name] = weight_map
        elif name.endswith(".json"):
            check_json(path, name=name)
        else:
            check_text(path, name=name)

    def check_together(self) -> None:
        """Check that indexes and tensor files agree, once every file was checked.

        Raises:
            ForbiddenContentError: two readers could find different tensors.
        """
        for name, weight_map in self._weight_maps.items():
            beside = {file: held for file, held in self._tensors.items() if _folder(file) == _folder(name)}
            check_agreement(weight_map, {_plain(file): held for file, held in beside.items()}, name=name)


def largest(name: str) -> int:
    """Return how many bytes a file of this name's kind may have."""
    if name.endswith(TENSORS_SUFFIX):
        return MAX_TENSOR_FILE_BYTES
    if name.endswith(INDEX_SUFFIX):
        return MAX_INDEX_BYTES
    return MAX_JSON_BYTES if name.endswith(".json") else MAX_TEXT_BYTES


def check_size(name: str, size: int) -> None:
    """Check a file's size in bytes, before or after it was fetched.

    Raises:
        ForbiddenContentError: it is larger than any file of its kind has to be.
    """
    limit = largest(name)
    if size > limit:
        raise ForbiddenContentError(
            f"{name} has {size} bytes, more than the {limit} that a file of its kind may have; "
            "split or remove it and sign again",
            file=name,
        )


def check_json(path: Path, *, name: str) -> None:
    """Check one JSON file.

    Raises:
        ForbiddenContentError: it has no single reading, or asks for code or files from elsewhere.
    """

    def member(key: str, value: Any) -> None:
        # Nearly all keys are words of a vocabulary: this line runs 200,000 times.
        if key in _TELLING_KEYS or key.endswith(_FILE_KEY_SUFFIX):
            _check_member(key, value, name)

    try:
        strictjson.visit(path, member, max_bytes=MAX_JSON_BYTES)
    except strictjson.StrictJSONError as error:
        raise _unreadable(name, str(error)) from error


def check_index(path: Path, *, name: str, listed: Iterable[str]) -> dict[str, str]:
    """Check an index of tensors and return its ``weight_map``: tensor to file, relative to the index.

    Raises:
        ForbiddenContentError: it has none, or names anything but plain, listed tensor files beside it.
    """
    with path.open("rb") as stream:
        raw = stream.read(MAX_INDEX_BYTES + 1)
    try:
        document = strictjson.parse(raw, max_bytes=MAX_INDEX_BYTES, max_depth=_MAX_INDEX_DEPTH)
    except strictjson.StrictJSONError as error:
        raise _unreadable(name, str(error)) from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ForbiddenContentError(f"{name} has no weight_map of tensors to files; correct it", file=name)
    known = {_plain(file) for file in listed if file.endswith(TENSORS_SUFFIX) and _folder(file) == _folder(name)}
    if not all(isinstance(file, str) and file in known for file in weight_map.values()):
        raise ForbiddenContentError(
            f"{name} names something else than a tensor file beside it that the manifest lists; "
            "sign the complete folder",
            file=name,
        )
    return weight_map


def check_agreement(weight_map: dict[str, str], tensors: dict[str, frozenset[str]], *, name: str) -> None:
    """Check that an index and the tensor files beside it say the same.

    Raises:
        ForbiddenContentError: a tensor is not where the index says, or somewhere that it does not say.
    """
    placed: dict[str, set[str]] = {file: set() for file in tensors}
    for tensor, file in weight_map.items():
        placed[file].add(tensor)
    for file, held in sorted(tensors.items()):
        if not placed[file] <= held:
            raise ForbiddenContentError(
                f"{name} places a tensor in {file} that is not there; sign a complete folder", file=name
            )
        if not held <= placed[file]:
            raise ForbiddenContentError(
                f"{file} holds a tensor that {name} places elsewhere or nowhere; write the index again", file=name
            )


def check_text(path: Path, *, name: str) -> None:
    """Check one file of text: a chat template, merges, a vocabulary.

    Raises:
        ForbiddenContentError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise ForbiddenContentError(f"{name} is not UTF-8; correct it and sign again", file=name) from None


def _check_member(key: str, value: Any, name: str) -> None:
    # Vocabularies map any word to its number: a token that is called auto_map asks for nothing.
    if type(value) is int:
        return
    if key in _CODE_KEYS:
        raise ForbiddenContentError(
            f"{name} has the key {key}, which loads code from the folder; remove it and sign again", file=name
        )
    if key in _ELSEWHERE_KEYS or (key.endswith(_FILE_KEY_SUFFIX) and isinstance(value, str)):
        raise ForbiddenContentError(
            f"{name} has a key that loads another model or file than the listed ones (such as vocab_file or "
            "speculators_config); remove it and sign again",
            file=name,
        )
    # An object names one for each part of a model.
    if key in _KERNEL_KEYS and (value is strictjson.NESTED or (isinstance(value, str) and "/" in value)):
        raise ForbiddenContentError(
            f"{name} has the key {key}, which may load a kernel from a hub; name one of the engine's own", file=name
        )


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _plain(name: str) -> str:
    return PurePosixPath(name).name


def _unreadable(name: str, problem: str) -> ForbiddenContentError:
    return ForbiddenContentError(f"{name} {problem}; correct the file and sign again", file=name)
