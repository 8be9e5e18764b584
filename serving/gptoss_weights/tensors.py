"""Tensor files: every tensor lies where the header says, inside the file, without overlap and without a hole.

The header is what an engine's own parser reads first, so it is checked before one may: its length, its
text, each tensor's type, shape and place. Format: https://github.com/huggingface/safetensors#format.
"""

import struct
from pathlib import Path
from typing import Any, Final

from gptoss_weights import strictjson
from gptoss_weights.errors import ForbiddenContentError

MAX_HEADER_BYTES: Final = 8 * 1024 * 1024
"""Far above gpt-oss's headers (some 100 KiB), and far below the library's bound of 100 MB, which as JSON
would need more memory than a pull may take."""
_PREFIX_BYTES: Final = 8
_MAX_RANK: Final = 16
# Bits per element; F4 is two to a byte. The library's own list, safetensors::Dtype.
_DTYPE_BITS: Final = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


def check_safetensors(path: Path, *, name: str) -> frozenset[str]:
    """Check the header of a safetensors file and return the names of its tensors.

    Raises:
        ForbiddenContentError: the header is not valid, or tensors overlap, leave holes or leave the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(_PREFIX_BYTES)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == _PREFIX_BYTES else 0
        if not 2 <= length <= size - _PREFIX_BYTES:
            raise _broken(name, "has no valid header length")
        if length > MAX_HEADER_BYTES:
            raise _broken(name, f"has a header that is longer than {MAX_HEADER_BYTES} bytes")
        raw = stream.read(length)
    header = _header(raw, name)
    end = 0
    for start, stop in sorted(_extent(tensor, name) for tensor in header.values()):
        if start != end:
            raise _broken(name, "has tensors that overlap or leave a hole")
        end = stop
    if end != size - _PREFIX_BYTES - length:
        raise _broken(name, "is not exactly as long as its tensors")
    return frozenset(header)


def _header(raw: bytes, name: str) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _broken(name, "has a header that does not begin with {")
    try:
        header = strictjson.parse(raw, max_bytes=MAX_HEADER_BYTES, max_depth=4)
    except strictjson.StrictJSONError as error:
        raise _broken(name, f"has a header that {error}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(name, "has __metadata__ that is not text")
    if not header:
        raise _broken(name, "holds no tensor")
    return dict(header)


def _extent(tensor: Any, name: str) -> tuple[int, int]:
    if not isinstance(tensor, dict) or tensor.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(name, "describes a tensor otherwise than by dtype, shape and data_offsets")
    bits = _DTYPE_BITS.get(tensor["dtype"]) if isinstance(tensor["dtype"], str) else None
    if bits is None:
        raise _broken(name, "holds a tensor of unknown dtype")
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    if not _naturals(shape) or len(shape) > _MAX_RANK:
        raise _broken(name, "holds a tensor of impossible shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(name, "holds a tensor at impossible offsets")
    count = 1
    for dimension in shape:
        count *= dimension
    if count * bits != 8 * (offsets[1] - offsets[0]):
        raise _broken(name, "has a tensor whose shape does not fit its bytes")
    return offsets[0], offsets[1]


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _broken(name: str, problem: str) -> ForbiddenContentError:
    return ForbiddenContentError(f"{name} {problem}; convert the weights again and sign them", file=name)
