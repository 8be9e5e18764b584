"""`gptoss keys`: the gateway's keys file. It stores SHA-256 hashes only; a key itself is shown once."""

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from gptoss_cli.files import read_documents
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.keys import KeyRing, Tenant
from gptoss_gateway.settings import describe

KEY_PREFIX = "gptoss-"
_KEY_BYTES = 32  # 43 characters of URL-safe base64
_SHOWN_DIGITS = 12

_file_option = click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The gateway's keysFile.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that clients of the gateway use.

    A running gateway reads the file again when it changes.
    """


@keys.command()
@_file_option
@click.option("--tenant", required=True, help="Whose key it is, for logs and metrics; made if new.")
@click.option(
    "--namespaces",
    "--namespace",
    "-n",
    multiple=True,
    help="Namespaces whose models the tenant sees, repeated or comma-separated; `*` is every one. "
    "Needed for a new tenant; added to those of a known one.",
)
@click.option(
    "--models", multiple=True, help="Globs of model names the tenant sees, repeated or comma-separated. Default: all."
)
@click.option(
    "--requests-per-minute", type=click.IntRange(min=0), help="Requests a minute at each gateway process; 0: no limit."
)
@click.option(
    "--tokens-per-minute", type=click.IntRange(min=0), help="Tokens a minute at each gateway process; 0: no limit."
)
@click.option(
    "--concurrent", type=click.IntRange(min=0), help="Requests open at once at each gateway process; 0: no limit."
)
@click.option(
    "--priority",
    type=click.IntRange(1, 100),
    help="The tenant's share of a model that several tenants wait for, against theirs. Default: 1.",
)
@_json_option
def create(
    path: Path,
    tenant: str,
    namespaces: tuple[str, ...],
    models: tuple[str, ...],
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrent: int | None,
    priority: int | None,
    as_json: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Make a key for a tenant.

    It is printed once and can't be shown again. Limits are the tenant's, whatever its keys; those that are
    given replace the known ones.
    """
    limits = {
        "requestsPerMinute": requests_per_minute,
        "tokensPerMinute": tokens_per_minute,
        "concurrent": concurrent,
    }
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    digest = "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    with _changing(path) as tenants:
        entry = next((known for known in tenants if known["name"] == tenant), None)
        if entry is None:
            if not namespaces:
                raise click.UsageError(
                    f"tenant {tenant!r} is new: name with --namespaces those whose models it may see"
                )
            entry = {"name": tenant, "keys": [], "namespaces": [], "models": []}
            tenants.append(entry)
        entry["namespaces"] = _joined(entry.get("namespaces") or [], namespaces)
        entry["models"] = _joined(entry.get("models") or [], models) or ["*"]
        entry["keys"] = [*(entry.get("keys") or []), digest]
        _limit(entry, limits)
        if priority is not None:
            entry["priority"] = priority
    if as_json:
        click.echo(json.dumps({"tenant": tenant, "key": key, "hash": digest}))
        return
    click.echo(key)
    click.echo(f"Keep it now: {path} holds only its hash.", err=True)


@keys.command(name="list")
@_file_option
@_json_option
def list_keys(path: Path, as_json: bool) -> None:  # noqa: FBT001
    """List tenants and their keys' hashes.

    Of each hash it shows the beginning, by which `revoke` finds the key.
    """
    tenants = _read(path)
    if as_json:
        click.echo(json.dumps(tenants, indent=2))
        return
    for entry in tenants:
        click.echo(
            f"{entry['name']}  namespaces={','.join(entry.get('namespaces') or [])}  "
            f"models={','.join(entry.get('models') or ['*'])}"
            + "".join(f"  {name}={value}" for name, value in (entry.get("limits") or {}).items())
            + (f"  priority={entry['priority']}" if "priority" in entry else "")
        )
        for digest in entry.get("keys") or []:
            click.echo(f"  {digest.removeprefix('sha256:')[:_SHOWN_DIGITS]}")


@keys.command()
@_file_option
@click.argument("key")
@_json_option
def revoke(path: Path, key: str, as_json: bool) -> None:  # noqa: FBT001
    """Revoke KEY.

    KEY is the key itself, or at least 12 digits of its hash as `list` shows them.
    """
    with _changing(path, must_exist=True) as tenants:
        owner, digest = _find(tenants, key)
        owner["keys"].remove(digest)
        if not owner["keys"]:
            tenants.remove(owner)
    if as_json:
        click.echo(json.dumps({"tenant": owner["name"], "hash": digest, "tenantRemoved": not owner["keys"]}))
    else:
        rest = "" if owner["keys"] else "; it was the tenant's last, so the tenant is gone too"
        click.echo(f"revoked {digest.removeprefix('sha256:')[:_SHOWN_DIGITS]} of {owner['name']}{rest}")


def _find(tenants: list[dict[str, Any]], key: str) -> tuple[dict[str, Any], str]:
    if key.startswith(KEY_PREFIX):
        wanted = hashlib.sha256(key.encode()).hexdigest()
    else:
        wanted = key.removeprefix("sha256:").lower()
        if len(wanted) < _SHOWN_DIGITS:
            raise click.UsageError(f"KEY must be a key or at least {_SHOWN_DIGITS} digits of its hash")
    matches = [
        (entry, digest)
        for entry in tenants
        for digest in entry.get("keys") or []
        if digest.removeprefix("sha256:").startswith(wanted)
    ]
    if len(matches) != 1:
        raise click.ClickException(
            "no such key in the file: `gptoss keys list` shows them"
            if not matches
            else "several keys begin so: give more digits"
        )
    return matches[0]


def _limit(entry: dict[str, Any], given: Mapping[str, int | None]) -> None:
    """Take over the limits that were given; 0 takes one away."""
    limits = {**(entry.get("limits") or {}), **{name: value for name, value in given.items() if value is not None}}
    entry.pop("limits", None)
    if kept := {name: value for name, value in limits.items() if value}:
        entry["limits"] = kept


def _joined(known: list[str], added: tuple[str, ...]) -> list[str]:
    words = [word.strip() for text in added for word in text.split(",")]
    return list(dict.fromkeys([*known, *(word for word in words if word)]))


def _read(path: Path) -> list[dict[str, Any]]:
    documents = read_documents(path)
    document = documents[0] if documents and documents[0] is not None else {"tenants": []}
    tenants = document.get("tenants") if isinstance(document, dict) else None
    if len(documents) > 1 or not isinstance(tenants, list) or not all(isinstance(entry, dict) for entry in tenants):
        raise click.ClickException(f"{path} is not a keys file: it must hold a list `tenants`, each with a name")
    if fault := _fault(tenants):
        raise click.ClickException(f"{path} is not a keys file that a gateway takes: {fault}; correct it there first")
    return tenants


def _fault(tenants: list[dict[str, Any]]) -> str | None:
    """Return why a gateway would refuse these tenants, by the gateway's own rules."""
    try:
        KeyRing(tuple(_tenant(entry) for entry in tenants))
    except SettingsError as error:
        return str(error)
    return None


def _tenant(entry: Mapping[str, Any]) -> Tenant:
    try:
        return Tenant.model_validate(entry)
    except ValidationError as error:
        raise SettingsError(f"tenant {entry.get('name')!r}: {describe(error)}") from error


@contextmanager
def _changing(path: Path, *, must_exist: bool = False) -> Iterator[list[dict[str, Any]]]:
    """Give the tenants to change and write them back whole (0600), one writer at a time."""
    if not path.parent.is_dir():
        raise click.ClickException(f"the folder {path.parent} does not exist: make it first")
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        tenants = _read(path) if must_exist or path.exists() else []
        yield tenants
        if fault := _fault(tenants):
            raise click.UsageError(f"a gateway would refuse that: {fault}")
        try:
            _write(path, yaml.safe_dump({"tenants": tenants}, sort_keys=False))
            os.fsync(folder)
        except OSError as error:
            raise click.ClickException(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        os.close(folder)


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: a gateway that reads meanwhile sees the old one or the new one."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
