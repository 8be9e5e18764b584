"""What a Sigstore bundle says about its entry in a transparency log, read strictly; nothing in it is trusted yet.

Two kinds of entries exist (https://github.com/sigstore/protobuf-specs, rekor/v1): those of Rekor 1 are of
kind ``dsse`` 0.0.1 and carry the log's signed promise and time; those of Rekor 2 are of kind
``hashedrekord`` 0.0.2 and get their time from a time-stamp authority. Both carry a proof of inclusion
and the signed checkpoint that it leads to.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gptoss_weights import strictjson
from gptoss_weights.members import base64_bytes, exact_keys, keys_within, malformed

MAX_TIMESTAMPS: Final = 4
_MAX_TIMESTAMP_BYTES: Final = 32 * 1024
_MAX_BODY_BYTES: Final = 256 * 1024
_MAX_BODY_DEPTH: Final = 12
_MAX_CHECKPOINT: Final = 16 * 1024
_MAX_PROOF: Final = 64
_DIGEST_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 1024
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_LATEST: Final = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())
_PROMISED: Final = ("dsse", "0.0.1")
_TIMESTAMPED: Final = ("hashedrekord", "0.0.2")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogEntry:
    """A bundle's claims about when it was logged.

    ``integrated_at`` is the log's own time, None in entries of Rekor 2. ``timestamps`` are signed
    time-stamp responses (RFC 3161), DER; at least one where ``integrated_at`` is None.
    """

    integrated_at: datetime | None
    timestamps: tuple[bytes, ...]


def read_log_entry(material: dict[str, Any]) -> LogEntry:
    """Read ``tlogEntries`` and ``timestampVerificationData`` of a bundle's verification material.

    Raises:
        MalformedSignatureError: there is not exactly one entry that a verifier can read in one way only.
    """
    entries = material.get("tlogEntries")
    if not isinstance(entries, list) or len(entries) != 1:
        malformed("tlogEntries must hold exactly one entry of a transparency log; sign again with one")
    entry = entries[0]
    keys_within(
        entry,
        "an entry of tlogEntries",
        needed={"logIndex", "logId", "kindVersion", "inclusionProof", "canonicalizedBody"},
        optional={"integratedTime", "inclusionPromise"},
    )
    _number(entry["logIndex"], "logIndex")
    exact_keys(entry["logId"], "logId", {"keyId"})
    base64_bytes(entry["logId"]["keyId"], "keyId", _DIGEST_BYTES)
    _check_proof(entry["inclusionProof"])
    _check_body(base64_bytes(entry["canonicalizedBody"], "canonicalizedBody", _MAX_BODY_BYTES))
    timestamps = _timestamps(material.get("timestampVerificationData", {}))
    exact_keys(entry["kindVersion"], "kindVersion", {"kind", "version"})
    kind = entry["kindVersion"]["kind"], entry["kindVersion"]["version"]
    if kind == _PROMISED:
        return LogEntry(integrated_at=_promised(entry), timestamps=timestamps)
    if kind != _TIMESTAMPED:
        malformed("kindVersion must be dsse 0.0.1 or hashedrekord 0.0.2; sign again with a current signer")
    if entry.get("integratedTime", "0") != "0" or "inclusionPromise" in entry:
        malformed("an entry of kind hashedrekord has no time of its own")
    if not timestamps:
        malformed("an entry of kind hashedrekord needs a signed timestamp beside it")
    return LogEntry(integrated_at=None, timestamps=timestamps)


def _promised(entry: dict[str, Any]) -> datetime:
    if "integratedTime" not in entry or "inclusionPromise" not in entry:
        malformed("an entry of kind dsse must hold integratedTime and inclusionPromise")
    exact_keys(entry["inclusionPromise"], "inclusionPromise", {"signedEntryTimestamp"})
    base64_bytes(entry["inclusionPromise"]["signedEntryTimestamp"], "signedEntryTimestamp", _SIGNATURE_BYTES)
    seconds = _number(entry["integratedTime"], "integratedTime")
    if not 0 < seconds < _LATEST:
        malformed("integratedTime must be seconds since 1970")
    return datetime.fromtimestamp(seconds, UTC)


def _check_proof(proof: Any) -> None:
    exact_keys(proof, "inclusionProof", {"logIndex", "rootHash", "treeSize", "hashes", "checkpoint"})
    size = _number(proof["treeSize"], "treeSize")
    if _number(proof["logIndex"], "inclusionProof.logIndex") >= size:
        malformed("inclusionProof.logIndex must lie within treeSize")
    hashes = proof["hashes"]
    if not isinstance(hashes, list) or len(hashes) > _MAX_PROOF:
        malformed(f"inclusionProof.hashes must be a list of at most {_MAX_PROOF}")
    for each in (proof["rootHash"], *hashes):
        if len(base64_bytes(each, "a hash of inclusionProof", _DIGEST_BYTES)) != _DIGEST_BYTES:
            malformed(f"a hash of inclusionProof must have {_DIGEST_BYTES} bytes")
    exact_keys(proof["checkpoint"], "checkpoint", {"envelope"})
    envelope = proof["checkpoint"]["envelope"]
    if not isinstance(envelope, str) or len(envelope) > _MAX_CHECKPOINT:
        malformed(f"checkpoint.envelope must be text of at most {_MAX_CHECKPOINT} characters")
    # Origin, size, root: the log signs the size, and a proof for another one proves something else.
    lines = envelope.split("\n")
    if len(lines) < 3 or lines[1] != proof["treeSize"] or lines[2] != proof["rootHash"]:
        malformed("checkpoint.envelope must be of the very tree that inclusionProof tells")


def _check_body(body: bytes) -> None:
    try:
        strictjson.parse(body, max_bytes=_MAX_BODY_BYTES, max_depth=_MAX_BODY_DEPTH)
    except strictjson.StrictJSONError as error:
        malformed(f"canonicalizedBody {error}")


def _timestamps(data: Any) -> tuple[bytes, ...]:
    keys_within(data, "timestampVerificationData", needed=set(), optional={"rfc3161Timestamps"})
    found = data.get("rfc3161Timestamps", [])
    if not isinstance(found, list) or len(found) > MAX_TIMESTAMPS:
        malformed(f"rfc3161Timestamps must be a list of at most {MAX_TIMESTAMPS}")
    for each in found:
        exact_keys(each, "a timestamp", {"signedTimestamp"})
    return tuple(base64_bytes(each["signedTimestamp"], "signedTimestamp", _MAX_TIMESTAMP_BYTES) for each in found)


def _number(value: Any, what: str) -> int:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        malformed(f"{what} must be a number, written as text")
    return int(value)
