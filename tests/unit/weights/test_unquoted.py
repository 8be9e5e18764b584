"""No error says what an attacker wrote, nor does any that it was raised from: Ray hands whole tracebacks out.

One word stands in the place of every value, of every member's name, twice in one object, and of half the text.
"""

import copy
import json
import struct
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_weights.content import Contents
from gptoss_weights.errors import WeightsError
from gptoss_weights.location import Location
from gptoss_weights.policy import Narrowing, evaluate
from tests.unit.weights.builders import MODEL, bundle, statement, text
from tests.unit.weights.pki import NOW
from tests.unit.weights.trusting import GOOD, paths_in, trusting

# The backslash keeps it from being the name of a file, which may be told.
WORD = "xylo\\phone"
TRUSTING = trusting()
HEADER = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}


def written_into(good: Any) -> Iterator[bytes]:
    """The texts of a good document with the word in every place."""
    yield text(good) + json.dumps(WORD).encode()
    yield text(good)[: len(text(good)) // 2] + WORD.encode() + b"\xff"
    for path in paths_in(good):
        for value in (WORD, [WORD], {WORD: WORD}, f"a{WORD}*2"):
            document = copy.deepcopy(good)
            holder = document
            for each in path[:-1]:
                holder = holder[each]
            holder[path[-1]] = value
            yield text(document)
            if isinstance(value, dict):
                twice = f'"{json.dumps(WORD)[1:-1]}": 1, "{json.dumps(WORD)[1:-1]}": 2'.encode()
                yield text(document).replace(text(value), b"{" + twice + b"}")
            if isinstance(holder, dict) and value == WORD:
                holder[WORD] = holder.pop(path[-1])
                yield text(document)


def decided(raw: bytes) -> None:
    evaluate(raw, TRUSTING, uri=f"s3://models/{MODEL}", narrowing=Narrowing(subject=MODEL), now=NOW)


def unquoted(good: Any, act: Callable[[bytes], object], *, least: int) -> None:
    told = []
    for raw in written_into(good):
        try:
            act(raw)
        except WeightsError as error:
            told.append("".join(traceback.format_exception(error)))
    assert [each for each in told if "phone" in each] == []
    assert len(told) >= least, "next to nothing was refused"


@pytest.mark.parametrize("kind", GOOD)
def test_signatures(kind: str) -> None:
    unquoted(GOOD[kind], decided, least=40)


def test_what_a_trusted_key_signed() -> None:
    unquoted(statement(), lambda raw: decided(text(bundle(raw))), least=80)


def checked(folder: Path, name: str) -> Callable[[bytes], None]:
    def check(raw: bytes) -> None:
        (folder / name).write_bytes(raw)
        Contents([name, "model.safetensors"]).check(folder / name, name=name)

    return check


def test_tensor_headers(tmp_path: Path) -> None:
    check = checked(tmp_path, "model.safetensors")
    unquoted(HEADER, lambda raw: check(struct.pack("<Q", len(raw)) + raw + bytes(4)), least=30)


def test_indexes(tmp_path: Path) -> None:
    index = "model.safetensors.index.json"
    unquoted({"weight_map": {"a": "model.safetensors"}}, checked(tmp_path, index), least=8)


def test_configurations(tmp_path: Path) -> None:
    config = {"auto_map": 1, "vocab_file": 1, "attn_implementation": 1, "deep": [{"trust_remote_code": 1}]}
    unquoted(config, checked(tmp_path, "config.json"), least=20)


def test_places() -> None:
    for place in (f"s3://{WORD}/x", f"s3://models/{WORD}", f"{WORD}://models/x", f"s3://a:{WORD}@models/x", WORD):
        with pytest.raises(WeightsError) as caught:
            Location.parse(place)
        assert "phone" not in "".join(traceback.format_exception(caught.value))
