"""The vocabulary that serving derives is the one that the tiny model was made with, byte for byte."""

import hashlib
import json
from pathlib import Path

import pytest

from gptoss_cli.local import tiny_model
from gptoss_serving import vocabulary


def test_the_public_vocabulary_comes_out_of_the_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("openai_harmony", reason="needs the serving-cpu extra")
    characters = tiny_model._byte_characters()
    vocab = {"".join(characters[byte] for byte in token): rank for rank, token in enumerate(tiny_model._ranks())}
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": {**vocab, "<|startoftext|>": 199_998}}}))

    file = vocabulary.provide(tokenizer, tmp_path / "vocabulary")

    assert file.name == "o200k_base.tiktoken"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == tiny_model._VOCABULARY_SHA256
    tokenizer.unlink()
    assert vocabulary.provide(tokenizer, tmp_path / "vocabulary") == file, "made once"
