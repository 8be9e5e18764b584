"""What ordinary models hold is accepted. What is refused stands in ``hostile/``."""

import json
import tracemalloc

import pytest

from gptoss_weights.content import MAX_TENSOR_FILE_BYTES, MAX_TEXT_BYTES, Contents, check_size
from gptoss_weights.errors import ForbiddenContentError
from gptoss_weights.manifest import FileRole, role_of
from gptoss_weights.tensors import check_safetensors
from tests.unit.weights.builders import safetensors

TENSOR = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": 4, "b": 0, "c": 7}),
        safetensors(header={"__metadata__": {"format": "pt"}, "a": TENSOR}, tail=b"1234"),
        safetensors(header={"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}, tail=b"1234"),
        safetensors(header={"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, tail=b"1234"),
        safetensors(header=json.dumps({"a": TENSOR}).encode() + b"   ", tail=b"1234"),
    ],
)
def test_accepts_what_the_library_writes(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "a" in check_safetensors(path, name=path.name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"auto_map": 5, "vocab_file": 6}, "merges": [["a", "b"]]}}'),
        ("tokenizer_config.json", '{"tokenizer_file": null, "chat_template": "{{ messages }}"}'),
        ("config.json", '{"_attn_implementation": "eager", "rope_scaling": {"factor": 32.0}, "eos": [200002]}'),
        ("config.json", "[" * 64 + "]" * 64),
        ("chat_template.jinja", "{# é #}"),
        ("merges.txt", ""),
    ],
)
def test_accepts_ordinary_configurations(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    Contents([name]).check(path, name=name)


def test_an_index_may_stand_in_a_folder_of_its_own(tmp_path):
    names = ["model.safetensors", "sub/one.safetensors", f"sub/{INDEX}"]
    (tmp_path / "sub").mkdir()
    (tmp_path / names[0]).write_bytes(safetensors({"a": 4}))
    (tmp_path / names[1]).write_bytes(safetensors({"b": 4}))
    (tmp_path / names[2]).write_text('{"weight_map": {"b": "one.safetensors"}}')
    contents = Contents(names)
    for name in names:
        contents.check(tmp_path / name, name=name)
    contents.check_together()


def test_a_size_is_bounded_by_kind_before_a_byte_is_there():
    check_size("model.safetensors", MAX_TENSOR_FILE_BYTES)
    check_size("chat_template.jinja", MAX_TEXT_BYTES)
    for name, size in (("model.safetensors", MAX_TENSOR_FILE_BYTES + 1), ("chat_template.jinja", MAX_TEXT_BYTES + 1)):
        with pytest.raises(ForbiddenContentError, match=str(size)) as caught:
            check_size(name, size)
        assert caught.value.file == name


@pytest.mark.parametrize("name", ["LICENSE.txt", "readme.md", "USAGE_POLICY", "assets/logo.png", "metal/model.bin"])
def test_documents_and_other_copies_are_signed_and_never_fetched(name):
    assert role_of(name) is FileRole.IGNORED


def test_a_tokenizer_is_checked_in_less_memory_than_it_is_long(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"merges": [[f"Ġw{number}", f"ord{number}"] for number in range(40_000)]}}))
    tracemalloc.start()
    try:
        Contents([path.name]).check(path, name=path.name)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()
