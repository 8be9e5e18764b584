"""The vocabulary that serving derives is the one that the tiny model was made with, byte for byte."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def test_replicas_that_share_a_folder_never_write_into_each_others_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for replicas on several nodes: in containers, those often have the same process id."""
    tokenizer, folder = tmp_path / "tokenizer.json", tmp_path / "vocabulary"
    tokenizer.write_text("{}")
    everybody_has_written = threading.Barrier(2)
    rename = Path.replace

    def replace(path: Path, target: Path) -> Any:
        everybody_has_written.wait(60)
        return rename(path, target)

    monkeypatch.setattr(vocabulary, "derive", lambda _: b"the lines")
    monkeypatch.setattr(Path, "replace", replace)
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(lambda _: vocabulary.provide(tokenizer, folder), range(2)))
    assert [file.read_bytes() for file in files] == [b"the lines"] * 2
    assert list(folder.iterdir()) == [folder / "o200k_base.tiktoken"]
