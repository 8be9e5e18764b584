"""Small signed models for tests, and bundles that are wrong in one way each."""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gptoss_api.policy import WeightTrustPolicySpec
from gptoss_cli.weights_trust import TrustOptions, decide
from gptoss_weights.folder import read_local_bundle, verify_files
from gptoss_weights.manifest import Manifest
from gptoss_weights.sign import Signed, sign_folder

MODEL = "gpt-oss-tiny"


@cache
def private_key(name: str = "trusted", curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    """One key per name and curve in a test run."""
    return ec.generate_private_key(curve())


def public_pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def write_key(path: Path, key: Any) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_name(path.name + ".pub").write_text(public_pem(key))
    return path


def policy(*, sources: tuple[str, ...] = ("s3://models",), key: Any = None, **changes: Any) -> WeightTrustPolicySpec:
    authority = {
        "name": "release-team",
        "models": ["gpt-oss-*"],
        "key": {"publicKeyPEM": public_pem(key or private_key())},
    }
    raw = {"sources": [{"prefix": prefix} for prefix in sources], "authorities": [authority], **changes}
    return WeightTrustPolicySpec.model_validate(raw)


FILES = {"config.json": "a" * 64, "model.safetensors": "b" * 64, "tokenizer.json": "c" * 64}


def statement(*, subject: str = MODEL, files: Mapping[str, str] = FILES) -> dict[str, Any]:
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": subject, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": n, "algorithm": "sha256", "digest": d} for n, d in files.items()],
        },
    }


def bundle(payload: dict[str, Any] | bytes | None = None, *, key: Any = None) -> dict[str, Any]:
    """A good bundle as a document, for tests to spoil. Written without our own signer."""
    signer = key or private_key()
    raw = payload if isinstance(payload, bytes) else json.dumps(payload or statement()).encode()
    encoded = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(raw), raw)
    from cryptography.hazmat.primitives import hashes

    algorithm = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}[signer.curve.key_size]()
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public_pem(signer).encode()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(raw).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(signer.sign(encoded, ec.ECDSA(algorithm))).decode(), "keyid": ""}],
        },
    }


def text(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def safetensors(tensors: Mapping[str, int] | None = None, *, header: Any = None, tail: bytes = b"") -> bytes:
    """A tensor file with tensors of so many bytes each, or with any header."""
    if header is None:
        header, end = {}, 0
        for name, size in (tensors or {"weight": 64}).items():
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
            end += size
        tail = bytes(range(256)) * (end // 256) + bytes(end % 256) + tail
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + tail


@dataclass(frozen=True)
class Verified:
    """What `gptoss weights verify --key` finds."""

    manifest: Manifest
    signer_fingerprint: str
    unsigned: tuple[str, ...]


def verify_folder(folder: Path, *, pem: str, model: str | None = None) -> Verified:
    """Do what `gptoss weights verify --key` does."""
    key = folder.parent / "trusted.pub"
    key.write_text(pem)
    nobody: dict[str, Any] = dict.fromkeys(TrustOptions.__dataclass_fields__)
    found = decide(
        read_local_bundle(folder), TrustOptions(**{**nobody, "keys": (key,), "trusted_root": ()}), model=model
    )
    return Verified(found.manifest, found.facts["signer"], verify_files(folder, found.manifest))


@dataclass
class Model:
    """A folder of weights that can be signed."""

    folder: Path
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self) -> "Model":
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self

    def sign(self, *, model: str = MODEL, key: Any = None) -> Signed:
        path = write_key(self.folder.parent / "signing-key", key or private_key())
        return sign_folder(self.folder, model=model, key=path)


def model(folder: Path, *, shards: int = 2, shard_bytes: int = 3_000_000, **extra: bytes) -> Model:
    """A sharded model with index, documents and another copy in original/."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{index:05}-of-{shards:05}.safetensors" for index in range(1, shards + 1)]
    files = {
        "config.json": b'{"architectures": ["GptOssForCausalLM"]}',
        "tokenizer.json": b'{"model": {"vocab": {"auto_map": 7, "a": 1}}}',
        "README.md": b"# read me",
        "original/model.bin": b"another copy",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {f"layer.{index}": name for index, name in enumerate(names)}}
        ).encode(),
    }
    for index, name in enumerate(names):
        files[name] = safetensors({f"layer.{index}": shard_bytes + index})
    files.update(extra)
    return Model(folder, files).write()
