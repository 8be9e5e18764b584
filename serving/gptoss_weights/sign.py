"""Signing: make a key, and sign a local folder of weights as a model.

Bundles are those of OpenSSF Model Signing v1.0 with an elliptic-curve key or its certificate: ``model_signing
verify key`` and ``verify certificate`` accept them, and ours accepts its own. A folder that could not be pulled
is not signed.
"""

import base64
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from gptoss_weights.certificates import read_chain, signs_code
from gptoss_weights.content import Contents
from gptoss_weights.errors import MalformedSignatureError, SigningError
from gptoss_weights.hashing import hash_file
from gptoss_weights.manifest import (
    PREDICATE_TYPE,
    SIGNATURE_FILE,
    STATEMENT_TYPE,
    FileRole,
    Manifest,
    check_names,
    parse_manifest,
    role_of,
    root_digest,
)
from gptoss_weights.signature import (
    BUNDLE_MEDIA_TYPE,
    PAYLOAD_TYPE,
    key_fingerprint,
    key_hint,
    pre_authentication_encoding,
    signature_algorithm,
)
from gptoss_weights.storage import write_atomically

CURVES: Final[dict[str, type[ec.EllipticCurve]]] = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
# What tools leave beside weights. model_signing ignores the same paths by default, but .cache.
_IGNORED: Final = (".cache", ".git", ".gitattributes", ".github", ".gitignore", SIGNATURE_FILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyPair:
    """Where a new key lies. ``fingerprint`` is ``sha256:`` and the SHA-256 of its SubjectPublicKeyInfo."""

    private_key: Path
    public_key: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """A folder that was signed."""

    signature: Path
    manifest: Manifest
    signer_fingerprint: str


def generate_key(path: Path, *, curve: str = "P-256") -> KeyPair:
    """Write a new private key to ``path`` (PEM, PKCS#8, mode 0600) and its public key to ``path``.pub.

    Raises:
        SigningError: a file is already there, or can't be written.
    """
    key = ec.generate_private_key(CURVES[curve]())
    public = path.with_name(path.name + ".pub")
    if public.exists():
        raise SigningError(f"{public.name} exists; choose another name, keys are never overwritten")
    private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _create(path, private_pem, mode=0o600)
    _create(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    return KeyPair(private_key=path, public_key=public, fingerprint=key_fingerprint(key.public_key()))


def sign_folder(
    folder: Path,
    *,
    model: str,
    key: Path,
    certificate: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
    threads: int = 4,
) -> Signed:
    """Sign everything in a folder as ``model`` and write ``model.sig`` into it.

    ``certificate`` holds the certificate of the key (PEM), then those that lead to a root, which itself is left
    out. ``advance`` is told of every chunk that was hashed, from several threads.

    Raises:
        SigningError: the key or the certificate can't be used, or the folder is empty or holds links.
        TrustError: nodes would refuse the folder; the message says why.
    """
    private_key = _load_key(key)
    chain = _load_chain(certificate, private_key) if certificate is not None else ()
    names = _names(folder)
    if not names:
        raise SigningError(f"{folder} holds no files to sign: name the folder with the weights")
    check_names(names)
    for name in names:
        role_of(name)
    check_folder(folder, names)
    with ThreadPoolExecutor(threads) as executor:
        digests = list(executor.map(lambda name: hash_file(folder / name, advance=advance), names))
    payload = _statement(model, names, digests)
    manifest = parse_manifest(payload)
    signature = folder / SIGNATURE_FILE
    write_atomically(signature, _bundle(payload, private_key, chain))
    return Signed(signature=signature, manifest=manifest, signer_fingerprint=key_fingerprint(private_key.public_key()))


def check_folder(folder: Path, names: list[str]) -> None:
    """Check the contents of a local folder as a pull does.

    Raises:
        ForbiddenContentError: an engine may not open one of its files.
    """
    served = [name for name in names if role_of(name) is FileRole.SERVED]
    contents = Contents(served)
    for name in served:
        contents.check(folder / name, name=name)
    contents.check_together()


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise SigningError("the folder to sign is not a folder")
    found: list[PurePosixPath] = []
    for parent, folders, files in os.walk(folder):
        at_top = Path(parent) == folder
        if at_top:
            folders[:] = [name for name in folders if name not in _IGNORED]
        for name in (*folders, *files):
            path = Path(parent) / name
            relative = PurePosixPath(path.relative_to(folder).as_posix())
            if at_top and name in _IGNORED:
                continue
            if path.is_symlink():
                raise SigningError(f"{relative} is a link; put the file itself into the folder", file=str(relative))
            if name in files:
                found.append(relative)
    # The order of model_signing: by path segments, not by text.
    return [str(path) for path in sorted(found)]


def _statement(model: str, names: list[str], digests: list[str]) -> bytes:
    return json.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": model, "digest": {"sha256": root_digest(digests)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": list(_IGNORED),
                },
                "resources": [
                    {"name": name, "algorithm": "sha256", "digest": digest}
                    for name, digest in zip(names, digests, strict=True)
                ],
            },
        },
        ensure_ascii=False,
        indent=1,
    ).encode()


def _bundle(payload: bytes, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]) -> bytes:
    certificates = [{"rawBytes": base64.b64encode(each.public_bytes(Encoding.DER)).decode()} for each in chain]
    signer = (
        {"x509CertificateChain": {"certificates": certificates}}
        if certificates
        else {"publicKey": {"hint": key_hint(key.public_key())}}
    )
    signature = key.sign(pre_authentication_encoding(payload), signature_algorithm(key.public_key()))
    bundle = {
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {**signer, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode()


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SigningError(f"the key {path.name} can't be read; check the path and its mode") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SigningError(f"{path.name} is not an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, tuple(CURVES.values())):
        raise SigningError(f"{path.name} must be an elliptic-curve key on P-256, P-384 or P-521")
    return key


def _load_chain(path: Path, key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, ...]:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
        chain = read_chain([each.public_bytes(Encoding.DER) for each in found])
    except OSError as error:
        raise SigningError(f"the certificate {path.name} can't be read; check the path and its mode") from error
    except (ValueError, MalformedSignatureError) as error:
        raise SigningError(f"{path.name} must hold PEM certificates, the signer's first") from error
    if chain[0].public_key() != key.public_key():
        raise SigningError(f"the first certificate in {path.name} is not that of the key; put the signer's first")
    if not signs_code(chain[0]):
        raise SigningError(
            f"the first certificate in {path.name} is not for signing code (KeyUsage digitalSignature and "
            "ExtendedKeyUsage codeSigning), so no policy would accept it; have one issued that is"
        )
    if not chain[0].not_valid_before_utc <= datetime.now(UTC) < chain[0].not_valid_after_utc:
        raise SigningError(f"the first certificate in {path.name} is not valid now; have a new one issued")
    return tuple(each for each in chain if each.subject != each.issuer)


def _create(path: Path, content: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except FileExistsError:
        raise SigningError(f"{path.name} exists; choose another name, keys are never overwritten") from None
    except OSError as error:
        raise SigningError(f"{path.name} can't be written; check the folder") from error
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
