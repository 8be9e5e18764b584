"""Harmony's vocabulary, out of the verified tokenizer, so that an engine without internet starts.

openai-harmony looks for ``o200k_base.tiktoken`` in the folder that ``TIKTOKEN_ENCODINGS_BASE`` names,
and downloads it otherwise. gpt-oss's ``tokenizer.json`` holds the same 199,998 tokens.
"""

import base64
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from gptoss_serving.errors import VocabularyError

VARIABLE = "TIKTOKEN_ENCODINGS_BASE"
FILE = "o200k_base.tiktoken"

_SIZE = 199_998
_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""SHA-256 of the public file; openai-harmony refuses any other."""


def provide(tokenizer: Path, folder: Path) -> Path:
    """Write the vocabulary of a verified ``tokenizer.json`` into ``folder`` unless it is there; return the file.

    Raises:
        VocabularyError: the tokenizer's tokens are not gpt-oss's.
    """
    file = folder / FILE
    if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == _SHA256:
        return file
    lines = derive(json.loads(tokenizer.read_text()))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(prefix=f".{FILE}.", dir=folder)  # other replicas may do this at once
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(lines)
        Path(partial).replace(file)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return file


def announce(folder: Path) -> None:
    """Tell this process and the ones it starts where the vocabulary is. To be called before harmony is loaded."""
    os.environ[VARIABLE] = str(folder)


def derive(tokenizer: dict[str, Any]) -> bytes:
    """Return a byte-level BPE tokenizer's tokens as tiktoken writes them: base64, a space, the rank.

    Raises:
        VocabularyError: the tokens are not gpt-oss's.
    """
    bytes_of = {character: byte for byte, character in enumerate(_byte_characters())}
    try:
        ranks = sorted((rank, token) for token, rank in tokenizer["model"]["vocab"].items() if rank < _SIZE)
        tokens = [bytes(bytes_of[character] for character in token) for _, token in ranks]
    except (KeyError, TypeError, AttributeError) as error:
        raise VocabularyError("tokenizer.json holds no byte-level BPE vocabulary: serve gpt-oss's own") from error
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    if hashlib.sha256(lines).hexdigest() != _SHA256:
        raise VocabularyError(
            "tokenizer.json does not hold harmony's vocabulary (o200k), without which gpt-oss can't be prompted: "
            "serve gpt-oss's own tokenizer"
        )
    return lines


def _byte_characters() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte. Source: GPT-2's encoder.py."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(0x100)]
