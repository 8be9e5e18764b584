"""Signed files still have to be harmless to parse."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_weights.content import check_complete, check_index, check_json, check_safetensors
from gptoss_weights.errors import ForbiddenContentError
from tests.unit.weights.builders import safetensors

EMPTY = b'{"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}'
TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def check(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return check_safetensors(path, name="model.safetensors")


def test_accepts_a_tensor_file_and_names_its_tensors(tmp_path):
    assert check(tmp_path, safetensors({"a": 4, "b": 0, "c": 7})) == {"a", "b", "c"}
    assert check(tmp_path, safetensors(header={"__metadata__": {"format": "pt"}, "a": TENSOR}, tail=b"1234"))
    half = {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}
    assert check(tmp_path, safetensors(header={"a": half}, tail=b"1234"))


BROKEN = {
    "empty file": b"",
    "short file": b"1234",
    "length beyond the file": b"\xff" * 8 + b"{}",
    "header that is no JSON": safetensors(header=b"not json"),
    "header that is a list": safetensors(header=[]),
    "duplicate tensor": safetensors(header=b'{"a": %b, "a": %b}' % (EMPTY, EMPTY)),
    "hole": safetensors(header={"a": {**TENSOR, "data_offsets": [4, 8]}}, tail=b"12345678"),
    "overlap": safetensors(header={"a": TENSOR, "b": {**TENSOR, "data_offsets": [2, 6]}}, tail=b"123456"),
    "tail": safetensors(header={"a": TENSOR}, tail=b"12345"),
    "beyond the end": safetensors(header={"a": TENSOR}, tail=b"123"),
    "unknown dtype": safetensors(header={"a": {**TENSOR, "dtype": "OBJECT"}}, tail=b"1234"),
    "shape that does not fit": safetensors(header={"a": {**TENSOR, "shape": [5]}}, tail=b"1234"),
    "negative dimension": safetensors(header={"a": {**TENSOR, "shape": [-2, -2]}}, tail=b"1234"),
    "boolean dimension": safetensors(header={"a": {**TENSOR, "shape": [True, 4]}}, tail=b"1234"),
    "offsets backwards": safetensors(header={"a": {**TENSOR, "data_offsets": [4, 0]}}, tail=b"1234"),
    "metadata that is not text": safetensors(header={"__metadata__": {"a": 1}, "a": TENSOR}, tail=b"1234"),
    "unknown member": safetensors(header={"a": {**TENSOR, "code": "x"}}, tail=b"1234"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_broken_tensor_files_by_name(tmp_path, name):
    with pytest.raises(ForbiddenContentError, match=r"model\.safetensors") as caught:
        check(tmp_path, BROKEN[name])
    assert caught.value.file == "model.safetensors"


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_a_type(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(raw)
    with contextlib.suppress(ForbiddenContentError):
        check_safetensors(path, name="x.safetensors")


@pytest.mark.parametrize(
    "document",
    [
        b'{"auto_map": {"AutoModel": "modeling.Evil"}}',
        b'{"text_config": {"auto_map": "x"}}',
        b'[{"trust_remote_code": true}]',
        b'{"a": 1, "a": 2}',
        b"{" * 100,
        b"not json",
    ],
)
def test_refuses_files_that_load_code_or_read_in_two_ways(tmp_path, document):
    path = tmp_path / "config.json"
    path.write_bytes(document)
    with pytest.raises(ForbiddenContentError, match=r"config\.json"):
        check_json(path, name="config.json")


def test_a_token_may_be_called_auto_map(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b'{"vocab": {"auto_map": 5}}')
    assert check_json(path, name="tokenizer.json")


@pytest.mark.parametrize("target", ["other.safetensors", "../model.safetensors", "/etc/passwd", "config.json", 5])
def test_an_index_names_only_listed_tensor_files(target):
    listed = ["model.safetensors", "config.json", "sub/other.safetensors"]
    with pytest.raises(ForbiddenContentError):
        check_index({"weight_map": {"a": target}}, name="model.safetensors.index.json", listed=listed)


def test_an_index_is_complete():
    check_complete({"a": "m"}, {"m": frozenset({"a"})}, name="index")
    with pytest.raises(ForbiddenContentError):
        check_complete({"a": "m", "b": "m"}, {"m": frozenset({"a"})}, name="index")
