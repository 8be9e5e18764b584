"""`gptoss weights`: make keys, sign, verify, look at and pull weights. Needs no cluster and no operator.

Exit codes are those of every command (``exit_codes``): 3 is "not trusted", 1 a source, folder or key
that fails. With ``--json`` one
object is printed, on failure ``{"error": {"reason", "message", "file", "retryable"}}``.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gptoss_cli.exit_codes import HELP, ExitCode
from gptoss_cli.weights_trust import TrustOptions, claims, decide, trust_options
from gptoss_weights.errors import SourceUnavailableError, StorageError, TrustError, UnsignedError, WeightsError
from gptoss_weights.manifest import FileRole, Manifest, parse_manifest
from gptoss_weights.signature import MAX_BUNDLE_BYTES, TrustedKey, parse_bundle, verify_bundle

if TYPE_CHECKING:
    from gptoss_weights.cache import CachedPull
    from gptoss_weights.materialise import PullProgress

_LINE_SECONDS = 10.0
_PATIENCE_SECONDS = 360.0
"""How long a signature may take, which is asked for up to five times."""
_MIB = 1024**2
_GIB = 1024**3
_LONGEST_MESSAGE = 600
_LONGEST_TERMINATION = 4096
"""Bytes that Kubernetes keeps of a termination message. Half an object would be no object."""
_LONGEST_NAME = 120
_NAMED = 5

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key (PEM) that may have signed; may be given several times.",
)
_revision_option = click.option("--revision", help="Full commit id of an hf:// source, 40 hexadecimal digits.")


@click.group(epilog=HELP)
def weights() -> None:
    """Sign, verify and pull weights."""


@weights.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--curve", type=click.Choice(["P-256", "P-384", "P-521"]), default="P-256", show_default=True, help="Curve."
)
@_json_option
def keygen(path: Path, curve: str, *, as_json: bool) -> None:
    """Write a new private key to PATH (mode 0600) and its public key to PATH.pub."""
    from gptoss_weights.sign import generate_key

    with _reported(as_json=as_json):
        pair = generate_key(path, curve=curve)
        _print(
            {
                "privateKey": str(pair.private_key),
                "publicKey": str(pair.public_key),
                "fingerprint": pair.fingerprint,
            },
            as_json=as_json,
        )


@weights.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, help="Name to sign as; a deployment's spec.model.name must equal it.")
@click.option(
    "--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Private key (PEM)."
)
@click.option(
    "--certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The key's certificate (PEM), then those that lead to its root.",
)
@_json_option
def sign(folder: Path, model: str, key: Path, certificate: Path | None, *, as_json: bool) -> None:
    """Sign FOLDER as a model and write FOLDER/model.sig. Upload it beside the weights."""
    from gptoss_weights.sign import sign_folder

    with _reported(as_json=as_json), _counting("signing", folder, quiet=as_json) as advance:
        signed = sign_folder(folder, model=model, key=key, certificate=certificate, advance=advance)
    _print(
        {
            "signature": str(signed.signature),
            **_described(signed.manifest),
            "signer": signed.signer_fingerprint,
        },
        as_json=as_json,
    )


@weights.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@trust_options
@click.option("--model", help="Name that must be the signed one.")
@_json_option
def verify(folder: Path, trust: TrustOptions, model: str | None, *, as_json: bool) -> None:
    """Verify signature, bytes and contents of a local FOLDER as operator and nodes would.

    Name whom to trust: a key (--key), certificates (--certificate-roots with --identity), a Sigstore
    identity (--identity, --issuer, --trusted-root), or a policy (--policy with --model and --uri).
    """
    from gptoss_weights.folder import read_local_bundle, verify_files

    if not trust.given:
        raise click.UsageError("name whom to trust: --key, --certificate-roots, --identity or --policy")
    with _reported(as_json=as_json), _counting("hashing", folder, quiet=as_json) as advance:
        found = decide(read_local_bundle(folder), trust, model=model)
        unsigned = verify_files(folder, found.manifest, advance=advance)
    _print({**_described(found.manifest), **found.facts, "unsignedFiles": list(unsigned)}, as_json=as_json)


@weights.command()
@click.argument("place")
@_revision_option
@trust_options
@click.option("--model", help="Name that must be the signed one.")
@_json_option
def inspect(place: str, revision: str | None, trust: TrustOptions, model: str | None, *, as_json: bool) -> None:
    """Show what PLACE (a URI, a folder or a model.sig) is signed as, and by whom.

    Without an option that says whom to trust nothing is verified, and the output says so. The signature is
    all that is looked at: `verify` and `pull` compare the bytes.
    """
    with _reported(as_json=as_json):
        raw = _bundle_at(place, revision)
        bundle = parse_bundle(raw)
        if trust.given:
            found = decide(raw, trust, model=model, place=place if "://" in place else None)
            manifest, facts = found.manifest, dict(found.facts)
        else:
            manifest, facts = parse_manifest(bundle.payload), {"signer": None}
        _print(
            {
                **_described(manifest),
                **facts,
                "verified": trust.given,
                **claims(bundle),
                "fileList": [{"name": f.name, "sha256": f.sha256, "role": f.role.value} for f in manifest.files],
            },
            as_json=as_json,
        )


@weights.command()
@click.argument("uri")
@_revision_option
@click.option(
    "--to", "directory", required=True, type=click.Path(path_type=Path), help="Private folder for verified copies."
)
@click.option("--model", required=True, help="Name that must be the signed one.")
@_key_option
@click.option("--manifest-digest", help="Pinned digest (sha256:…), instead of or beside --key.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder on a shared volume to take files from, and to leave them in. Nothing in it is trusted.",
)
@click.option("--cache-max-bytes", default="", help="Most that the cache may hold, such as 200Gi; else what fits.")
@click.option("--readable", is_flag=True, help="Let other users read the verified copy; nobody may write to it.")
@click.option(
    "--termination-log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that gets the receipt or the reason of a failure as one JSON object, for Kubernetes to show.",
)
@click.option(
    "--report-port",
    type=click.IntRange(1, 65535),
    help="Port on which the operator may ask how far it is, for a deployment's status.",
)
@_json_option
def pull(
    uri: str,
    revision: str | None,
    directory: Path,
    model: str,
    keys: tuple[Path, ...],
    manifest_digest: str | None,
    cache: Path | None,
    cache_max_bytes: str,
    *,
    readable: bool,
    termination_log: Path | None,
    report_port: int | None,
    as_json: bool,
) -> None:
    """Fetch and verify the weights at URI, and print the folder that holds them.

    Credentials and endpoint of an object store come from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3, AWS_REGION; for Azure AZURE_STORAGE_ACCOUNT_NAME,
    AZURE_STORAGE_ENDPOINT, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCOUNT_KEY) or a hub's (HF_TOKEN,
    HF_ENDPOINT, GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS), and so do the bounds that a node has (GPTOSS_WEIGHTS_MAX_BYTES,
    GPTOSS_WEIGHTS_PARALLEL_FILES, GPTOSS_WEIGHTS_RANGES_AHEAD). An interrupted pull goes on where it was.

    What is wrong with a --cache is told and stops nothing: then all bytes come from URI.
    """
    from gptoss_weights.cache import Cache, pull_through
    from gptoss_weights.limits import parse_size
    from gptoss_weights.materialise import pull as materialise

    if not keys and manifest_digest is None:
        raise click.UsageError("name a public key with --key, or a digest with --manifest-digest")
    if cache is None and cache_max_bytes:
        raise click.UsageError("--cache-max-bytes bounds a cache: name it with --cache")
    with _reported(as_json=as_json, termination_log=termination_log):
        digest = _digest_to_pull(uri, revision, keys, manifest_digest)
        with _shown_while(digest, quiet=as_json, port=report_port) as progress:
            arguments: dict[str, Any] = {
                "revision": revision,
                "manifest_digest": digest,
                "subject": model,
                "directory": directory,
                "settings": _settings(),
                "progress": progress,
                "readable": readable,
            }
            through: CachedPull | None = None
            if cache is not None:
                most = parse_size(cache_max_bytes, what="--cache-max-bytes")
                through = pull_through(Cache(directory=cache, max_bytes=most), uri, **arguments)
            found = materialise(uri, **arguments) if through is None else through.copy
    printed = {
        "path": str(found.path),
        "manifestDigest": found.manifest_digest,
        "subject": found.subject,
        "bytes": found.bytes,
        "fetchedBytes": found.fetched_bytes,
        "seconds": round(found.seconds, 3),
        "receipt": str(found.receipt),
        "replacedFiles": list(found.damaged),
        "removedCopies": [gone.name for gone in found.evicted],
        **(_of_cache(through) if through is not None else {}),
    }
    _leave(termination_log, {"receipt": printed})
    _print(printed, as_json=as_json)


def _of_cache(through: "CachedPull") -> dict[str, Any]:
    # Whoever may write to a cache plants names of any length, and a termination message has 4,096 bytes.
    return {
        "cacheUsed": through.problem is None,
        "cacheProblem": through.problem and through.problem[:_LONGEST_MESSAGE],
        "cacheReplaced": len(through.damaged),
        "cacheReplacedFiles": [ascii(name)[1:-1][:_LONGEST_NAME] for name in through.damaged[:_NAMED]],
        "cacheRemovedCopies": list(through.evicted[:_NAMED]),
    }


def _digest_to_pull(uri: str, revision: str | None, keys: tuple[Path, ...], pinned: str | None) -> str:
    if not keys and pinned is not None:
        return pinned
    bundle = parse_bundle(_bundle_at(uri, revision))
    verified = verify_bundle(bundle, _trusted(keys))
    return pinned or verified.manifest.digest


def _bundle_at(place: str, revision: str | None = None) -> bytes:
    from gptoss_weights.folder import read_local_bundle
    from gptoss_weights.sources import open_source
    from gptoss_weights.trust import read_bundle
    from gptoss_weights.watch import within

    if "://" not in place:
        path = Path(place)
        if not path.exists():
            raise click.UsageError(
                f"{place} is no folder or file here; a source begins with s3://, az://, hf:// or file://"
            )
        if not path.is_file():
            return read_local_bundle(path)
        with path.open("rb") as stream:
            return stream.read(MAX_BUNDLE_BYTES + 1)

    def read() -> bytes | None:
        with open_source(place, revision=revision, settings=_settings()) as source:
            return read_bundle(source)

    seconds = _PATIENCE_SECONDS
    late = SourceUnavailableError(f"{place} has not answered for {seconds:.0f} s; check the network to the source")
    bundle = within(read, seconds=seconds, late=late)
    if bundle is None:
        raise UnsignedError(f"there is no model.sig at {place}; sign the folder and upload it")
    return bundle


def _settings() -> Any:
    from gptoss_weights.sources import SourceSettings

    found = SourceSettings.from_environment()
    # Whoever types the command reads with rights of their own; roots bound what manifests may name.
    return found if found.file_roots else replace(found, file_roots=(Path("/"),))


def _trusted(keys: tuple[Path, ...]) -> list[TrustedKey]:
    return [TrustedKey.from_pem(path.name, path.read_text(errors="replace")) for path in keys]


def _described(manifest: Manifest) -> dict[str, Any]:
    ignored = sum(1 for file in manifest.files if file.role is FileRole.IGNORED)
    return {
        "subject": manifest.subject,
        "manifestDigest": manifest.digest,
        "files": len(manifest.files),
        "ignoredFiles": ignored,
    }


@contextmanager
def _shown_while(digest: str, *, quiet: bool, port: int | None) -> Iterator[Callable[["PullProgress"], None]]:
    """Yield what a pull tells its progress, which people see as a bar or in lines, and the operator on a port."""
    from gptoss_cli.report_port import reported_on

    with _bar(quiet=quiet) as bar, reported_on(port, digest) as report:
        task = bar.add_task("pulling", total=None)
        lines = _Lines(quiet=quiet or sys.stderr.isatty())

        def show(now: "PullProgress") -> None:
            description = f"pulling, {now.files_done} of {now.files_total} files"
            bar.update(task, completed=now.bytes_done, total=now.bytes_total, description=description)
            lines.tell(description, now.bytes_done, now.bytes_total)
            report(now)

        yield show


@contextmanager
def _counting(what: str, folder: Path, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    with _bar(quiet=quiet) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Progress where there is no terminal, such as a pod's log: a line every now and then, to standard error."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._begun = self._told = clock()

    def tell(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if self._quiet or now - self._told < _LINE_SECONDS:
            return
        self._told = now
        rate = done / (now - self._begun)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        click.echo(f"{what}: {done / _GIB:.2f} of {total / _GIB:.2f} GiB, {rate / _MIB:.0f} MiB/s{left}", err=True)


def _bar(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=True,
    )


@contextmanager
def _reported(*, as_json: bool, termination_log: Path | None = None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads the output has gone, and click ends without a word
    except (WeightsError, OSError) as caught:
        error = caught if isinstance(caught, WeightsError) else StorageError(str(caught))
        described = {
            "reason": str(error.reason),
            "message": error.message[:_LONGEST_MESSAGE],
            "file": error.file,
            "retryable": error.retryable,
        }
        _leave(termination_log, {"error": described})
        if as_json:
            click.echo(json.dumps({"error": described}))
        else:
            click.echo(_shown(str(error)), err=True)
        sys.exit(ExitCode.NEGATIVE if isinstance(error, TrustError) else ExitCode.FAILED)


def _leave(termination_log: Path | None, message: dict[str, Any]) -> None:
    """Leave a message for Kubernetes to show; without it the outcome is the same."""
    if termination_log is None:
        return
    text = json.dumps(message)
    if len(text) > _LONGEST_TERMINATION:  # what the lists hold is printed too
        text = json.dumps({what: _without_lists(found) for what, found in message.items()})
    try:
        termination_log.write_text(text)
    except OSError as error:
        click.echo(f"--termination-log {termination_log} can't be written: {error.strerror or error}", err=True)


def _without_lists(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if not isinstance(value, list)}


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        if key == "fileList":
            for file in value:
                click.echo(f"  {file['sha256']}  {file['role']:<8}  {file['name']}")
        elif isinstance(value, list):
            click.echo(f"{key}: {', '.join(_shown(each) for each in value) or '-'}")
        else:
            click.echo(f"{key}: {'-' if value is None else _shown(str(value))}")


def _shown(text: str) -> str:
    """Return text as a terminal may get it: names of planted files could hold commands for it."""
    return text if text.isprintable() else ascii(text)
