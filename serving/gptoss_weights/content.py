"""What signed files may contain before an engine opens them.

A signature says who vouches for bytes, not that they are harmless to parse: tensors must lie where
their header says, an index may only name listed files, and nothing may ask for code to be loaded.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from gptoss_weights import strictjson
from gptoss_weights.errors import ForbiddenContentError

INDEX_SUFFIX: Final = ".safetensors.index.json"
MAX_JSON_BYTES: Final = 256 * 1024 * 1024
MAX_HEADER_BYTES: Final = 100_000_000
"""The safetensors library's own bound (https://github.com/huggingface/safetensors#format)."""
_MAX_JSON_DEPTH: Final = 64
_MAX_RANK: Final = 16
# Bits per element; F4 is two to a byte. The library's own list, safetensors::Dtype.
_DTYPE_BITS: Final = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
# Keys by which Transformers and vLLM find Python of a repository's own.
_CODE_KEYS: Final = frozenset({"auto_map", "custom_pipelines", "custom_generate", "trust_remote_code"})


def check_json(path: Path, *, name: str) -> Any:
    """Check one JSON file and return what it holds.

    Raises:
        ForbiddenContentError: it is not strict JSON, or asks for code to be loaded.
    """
    with path.open("rb") as stream:
        raw = stream.read(MAX_JSON_BYTES + 1)
    try:
        document = strictjson.parse(raw, max_bytes=MAX_JSON_BYTES, max_depth=_MAX_JSON_DEPTH)
    except strictjson.StrictJSONError as error:
        raise ForbiddenContentError(f"{name} {error}; correct the file and sign again", file=name) from error
    for key, value in _members(document):
        # Vocabularies map any word to its number: a token that is called auto_map asks for nothing.
        if key in _CODE_KEYS and type(value) is not int:
            raise ForbiddenContentError(
                f"{name} has the key {key}, which loads code from the folder; remove it and sign again", file=name
            )
    return document


def check_index(document: Any, *, name: str, listed: Iterable[str]) -> dict[str, str]:
    """Check an index of tensors and return its ``weight_map``: tensor to file, relative to the index.

    Raises:
        ForbiddenContentError: it names a file that the manifest does not list.
    """
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ForbiddenContentError(f"{name} has no weight_map of tensors to files; correct it", file=name)
    folder = name.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    known = {file.removeprefix(prefix) for file in listed if file.startswith(prefix) and file.endswith(".safetensors")}
    if not set(weight_map.values()) <= known:
        raise ForbiddenContentError(
            f"{name} names a tensor file that the manifest does not list; sign the complete folder", file=name
        )
    return weight_map


def check_safetensors(path: Path, *, name: str) -> frozenset[str]:
    """Check the header of a safetensors file and return the names of its tensors.

    Raises:
        ForbiddenContentError: the header is not valid, or tensors overlap, leave holes or leave the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise _broken(name, "has no valid header length")
        raw = stream.read(length)
    try:
        header = strictjson.parse(raw, max_bytes=MAX_HEADER_BYTES, max_depth=4)
    except strictjson.StrictJSONError as error:
        raise _broken(name, f"has a header that {error}") from error
    if not isinstance(header, dict):
        raise _broken(name, "has a header that is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(name, "has __metadata__ that is not text")
    end = 0
    for start, stop in sorted(_extent(tensor, name) for tensor in header.values()):
        if start != end:
            raise _broken(name, "has tensors that overlap or leave a hole")
        end = stop
    if end != size - 8 - length:
        raise _broken(name, "is not exactly as long as its tensors")
    return frozenset(header)


def check_complete(weight_map: dict[str, str], tensors: dict[str, frozenset[str]], *, name: str) -> None:
    """Check that every tensor of an index is in the file that the index names.

    Raises:
        ForbiddenContentError: one is not.
    """
    for tensor, file in weight_map.items():
        if tensor not in tensors.get(file, frozenset()):
            raise ForbiddenContentError(
                f"{name} places a tensor in {file} that is not there; sign a complete folder", file=name
            )


def _extent(tensor: Any, name: str) -> tuple[int, int]:
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(name, "describes a tensor otherwise than by dtype, shape and data_offsets")
    bits = _DTYPE_BITS.get(tensor["dtype"]) if isinstance(tensor["dtype"], str) else None
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    if bits is None or not _naturals(shape) or len(shape) > _MAX_RANK or not _naturals(offsets) or len(offsets) != 2:
        raise _broken(name, "describes a tensor of unknown dtype or impossible shape")
    count = 1
    for dimension in shape:
        count *= dimension
    if count * bits != 8 * (offsets[1] - offsets[0]):
        raise _broken(name, "has a tensor whose shape does not fit its bytes")
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _members(document: Any) -> Iterator[tuple[str, Any]]:
    remaining = [document]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            yield from value.items()
            remaining.extend(value.values())
        elif isinstance(value, list):
            remaining.extend(value)


def _broken(name: str, problem: str) -> ForbiddenContentError:
    return ForbiddenContentError(f"{name} {problem}; convert the weights again and sign them", file=name)
