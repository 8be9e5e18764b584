"""Names in a manifest are safe to create below a folder, whoever signed them."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_weights.errors import ForbiddenContentError, MalformedManifestError
from gptoss_weights.manifest import FileRole, check_names, role_of

UNSAFE = [
    "",
    "/etc/passwd",
    "../config.json",
    "a/../../b.json",
    "a/./b.json",
    "a//b.json",
    "a/",
    ".",
    "..",
    "a\\b.json",
    "a\0.json",
    "a\n.json",
    "a\u202e.json",
    "a\u200b.json",
    "\ud800.json",
    "e\u0301.json",
    "x" * 256 + ".json",
    "/".join(["d"] * 9),
    "model.sig",
]


@pytest.mark.parametrize("name", UNSAFE)
def test_refuses_unsafe_names_without_quoting_them(name):
    with pytest.raises(MalformedManifestError, match=r"resources\[1\]") as caught:
        check_names(["config.json", name])
    if len(name) > 3:
        assert name not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["a.json", "a.json"],
        ["a.json", "A.json"],
        ["d/a.json", "D/b.json"],
        ["stra\u00dfe.json", "strasse.json"],
        ["a.json", "a.json/b.json"],
        ["d/a.json", "d"],
    ],
)
def test_refuses_names_that_can_be_confused(names):
    with pytest.raises(MalformedManifestError):
        check_names(names)


@pytest.mark.parametrize("name", ["config.json", "a/b/c.safetensors", "modèle.json", "..config.json", "a b.json"])
def test_accepts_ordinary_names(name):
    check_names([name])


@given(st.lists(st.text(min_size=1, max_size=20), max_size=4))
def test_accepted_names_stay_below_the_folder_and_apart(names):
    try:
        check_names(names)
    except MalformedManifestError:
        return
    folder = Path("/folder")
    landed = [os.path.normpath(folder / name) for name in names]
    assert all(path.startswith("/folder/") for path in landed)
    assert len({unicodedata.normalize("NFC", path.casefold()) for path in landed}) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "model.ckpt", "modeling_gpt_oss.py", "lib.so",
        "model.gguf", "model.h5", "model.onnx", "run.sh", "model.SAFETENSORS", ".hidden.json", "noextension",
        "sub/original/model.bin", "model.safetensors.partial",
    ],
)  # fmt: skip
def test_refuses_formats_that_are_never_loaded_and_names_them(name):
    with pytest.raises(ForbiddenContentError) as caught:
        role_of(name)
    assert caught.value.file == name


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.safetensors", FileRole.SERVED),
        ("chat_template.jinja", FileRole.SERVED),
        ("merges.txt", FileRole.SERVED),
        ("README.md", FileRole.IGNORED),
        ("LICENSE", FileRole.IGNORED),
        ("USAGE_POLICY", FileRole.IGNORED),
        ("original/model.bin", FileRole.IGNORED),
        ("original/config.json", FileRole.IGNORED),
        ("metal/model.bin", FileRole.IGNORED),
    ],
)
def test_serves_what_engines_load_and_leaves_the_rest(name, role):
    assert role_of(name) is role
