"""A folder of weights that one wrote and another verifies: the `model_signing` library, and we."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import model_signing
import pytest
from model_signing._signing import sign_ec_key, sign_sigstore_pb

from gptoss_weights.hashing import hash_file
from gptoss_weights.manifest import manifest_digest
from gptoss_weights.materialise import pull
from gptoss_weights.policy import Narrowing, evaluate
from gptoss_weights.sources import SourceSettings
from tests.unit.weights.builders import MODEL, Model, model, policy, private_key, public_pem, verify_folder, write_key

NOW = datetime.now(UTC)


@dataclass
class Place:
    """A folder of weights that one wrote and another verifies."""

    model: Model
    key: Path

    @property
    def folder(self) -> Path:
        return self.model.folder

    @property
    def signature(self) -> Path:
        return self.folder / "model.sig"

    def files(self) -> dict[str, str]:
        return {name: hash_file(self.folder / name) for name in sorted(self.model.files)}

    def add(self, name: str, content: bytes = b"{}") -> None:
        """Put a file into the folder that no signature covers yet."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def put(self, document: dict[str, Any]) -> None:
        self.signature.write_text(json.dumps(document))

    def library(self) -> None:
        """What `model_signing verify key` does; raises if it refuses."""
        self.library_with(self.verifier())

    def library_listed(self) -> None:
        """The same with --ignore_unsigned_files: only what is listed is looked at, as ours does always."""
        self.library_with(self.verifier().set_ignore_unsigned_files(True))

    def library_reads(self) -> list[str]:
        """The names that the library hands to whoever wants to fetch what is listed; raises if it refuses."""
        found = sign_ec_key.Verifier(self.key.with_name("key.pub")).verify(
            sign_sigstore_pb.Signature.read(self.signature)
        )
        return [each.identifier for each in found.resource_descriptors()]

    def verifier(self) -> Any:
        return model_signing.verifying.Config().use_elliptic_key_verifier(public_key=self.key.with_name("key.pub"))

    def library_with(self, config: Any) -> None:
        """Verify with the signature outside the folder, because the library minds an unsigned file in it."""
        outside = self.folder.with_name("outside.sig")
        self.signature.rename(outside)
        try:
            config.verify(self.folder, outside)
        finally:
            outside.rename(self.signature)

    def ours(self, subject: str = MODEL) -> None:
        verify_folder(self.folder, pem=public_pem(private_key()), model=subject)

    def decide(self, *, subject: str = MODEL, now: datetime = NOW, pin: str | None = None, **changes: Any) -> None:
        evaluate(
            self.signature.read_bytes(),
            policy(**changes),
            uri=f"s3://models/{MODEL}",
            narrowing=Narrowing(subject=subject, manifest_digest=pin),
            now=now,
        )

    def pulled(self) -> set[str]:
        """The files that an engine would see."""
        envelope = json.loads(self.signature.read_text())["dsseEnvelope"]
        copy = pull(
            f"file://{self.folder}",
            manifest_digest=manifest_digest(base64.b64decode(envelope["payload"])),
            subject=MODEL,
            directory=self.folder.with_name("copies"),
            settings=SourceSettings(file_roots=(self.folder,)),
        )
        return {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*") if not path.is_dir()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(model(tmp_path / MODEL, shard_bytes=1000), write_key(tmp_path / "key", private_key()))
