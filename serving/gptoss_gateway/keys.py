"""Who is calling: hashed keys bound to tenants, and what of the catalogue each tenant may see.

The file holds hashes only, so reading it gives no one a key. It is read again when it changes; a
change that can't be read leaves the last good keys in force.
"""

import hashlib
import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Protocol

import yaml
from pydantic import Field, ValidationError

from gptoss_api.model import Digest, StrictModel
from gptoss_gateway.errors import SettingsError, UnauthorizedError
from gptoss_gateway.settings import describe

_log = logging.getLogger(__name__)

MAX_KEYS = 10_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""So many keys take Python's own loader seconds, and the event loop its share of them, in a thread too."""


class Named(Protocol):
    """What a caller's rights are judged by."""

    @property
    def namespace(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def served_name(self) -> str: ...  # noqa: D102


class TenantLimits(StrictModel):
    """How much a tenant may ask of all gateway processes together; what is left out is not limited."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Requests a minute; they refill evenly."
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Tokens a minute, input and output together; they refill evenly. What a request used is taken "
        "off when it ends, so the balance may go below zero: then new ones are refused until it has refilled.",
    )
    concurrent: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Requests that may be open at once, held ones included."
    )


_UNLIMITED = TenantLimits()


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever sent a request, and what it may see. ``*`` among the namespaces is every one."""

    tenant: str
    namespaces: frozenset[str]
    models: tuple[str, ...] = ("*",)
    limits: TenantLimits = _UNLIMITED
    priority: int = 1

    def may_see(self, model: Named) -> bool:
        """Tell whether this caller's catalogue has a model: it is in one of its namespaces, and not forbidden."""
        return self.is_bound_to(model.namespace) and self.may_use(model)

    def is_bound_to(self, namespace: str) -> bool:
        """Tell whether this caller may know what there is in a namespace."""
        return "*" in self.namespaces or namespace in self.namespaces

    def may_use(self, model: Named) -> bool:
        """Tell whether the caller's globs let it use a model; they match its bare or its qualified name."""
        qualified = f"{model.namespace}/{model.name}"
        return any(fnmatchcase(model.served_name, glob) or fnmatchcase(qualified, glob) for glob in self.models)


ANONYMOUS = Caller(tenant="anonymous", namespaces=frozenset({"*"}))


class Tenant(StrictModel):
    """One tenant of the keys file."""

    name: Annotated[str, Field(min_length=1, max_length=128)] = Field(description="Tenant, for logs and metrics.")
    keys: tuple[Digest, ...] = Field(description="SHA-256 of each key.")
    namespaces: tuple[Annotated[str, Field(pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")], ...] = Field(
        min_length=1, description="Namespaces whose models this tenant sees; `*` is every one."
    )
    models: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=("*",), description="Globs over the models' names within those namespaces."
    )
    limits: TenantLimits = Field(
        default=_UNLIMITED, description="How much it may ask of all gateway processes together."
    )
    priority: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Its share of a model that several tenants wait for, against theirs."
    )


class _KeysDocument(StrictModel):
    tenants: tuple[Tenant, ...]


class KeyRing:
    """An immutable set of keys."""

    def __init__(self, tenants: tuple[Tenant, ...]) -> None:
        self._callers: list[tuple[bytes, Caller]] = []
        owners: dict[str, str] = {}
        names: set[str] = set()
        for index, tenant in enumerate(tenants):
            if tenant.name in names:
                raise SettingsError(f"tenants.{index}.name: {tenant.name!r} is there twice: make one entry of them")
            names.add(tenant.name)
            caller = Caller(
                tenant=tenant.name,
                namespaces=frozenset(tenant.namespaces),
                models=tuple(tenant.models),
                limits=tenant.limits,
                priority=tenant.priority,
            )
            for key in tenant.keys:
                if key in owners:
                    raise SettingsError(
                        f"tenants.{index}.keys: {key[:19]}… belongs to {owners[key]!r} already: "
                        "a key may stand in the file once"
                    )
                owners[key] = tenant.name
                self._callers.append((key.removeprefix("sha256:").encode(), caller))
        if len(self._callers) > MAX_KEYS:
            raise SettingsError(f"tenants: {len(self._callers)} keys, at most {MAX_KEYS} are taken")

    def find(self, key: str) -> Caller | None:
        """Return whose key this is. Every stored hash is compared, so the time tells nothing."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest().encode()
        found: Caller | None = None
        for stored, caller in self._callers:
            if hmac.compare_digest(stored, digest):
                found = caller
        return found

    @classmethod
    def read(cls, path: Path) -> "KeyRing":
        """Read a keys file.

        Raises:
            SettingsError: it can't be read or a field is wrong.
        """
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe one
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"keysFile {path}: can't be read: {error}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"keysFile {path}: is not YAML: {error}") from error
        try:
            return cls(_KeysDocument.model_validate(document).tenants)
        except ValidationError as error:
            raise SettingsError(f"keysFile {path}: {describe(error)}") from error
        except SettingsError as error:
            raise SettingsError(f"keysFile {path}: {error}") from error


class Authenticator(Protocol):
    """Turns a request's headers into a caller."""

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller; raises UnauthorizedError."""
        ...

    def refresh(self) -> None:
        """Take over changes of what callers are judged by; called once a second, beside the event loop."""
        ...


class KeyFile:
    """The keys file, followed as it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ring = KeyRing.read(path)
        self._seen = self._fingerprint()

    def authenticate(self, headers: Mapping[str, str]) -> Caller:
        """Return the caller of a request; raises UnauthorizedError."""
        key = _presented_key(headers)
        if key is None:
            raise UnauthorizedError("No API key was sent: add the header `Authorization: Bearer <key>`.")
        caller = self._ring.find(key)
        if caller is None:
            raise UnauthorizedError("The API key is not known here: check it, or ask an administrator for one.")
        return caller

    def refresh(self) -> None:
        """Read the file again if it changed."""
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return
        try:
            self._ring = KeyRing.read(self._path)
        except SettingsError as error:
            _log.error("keys not reloaded, the last good ones stay in force", extra={"error": str(error)})
        else:
            _log.info("keys reloaded")
        self._seen = fingerprint

    def _fingerprint(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class Anonymous:
    """Everybody is let in; only ever behind a loopback listener."""

    def authenticate(self, headers: Mapping[str, str]) -> Caller:  # noqa: ARG002
        """Return the anonymous caller."""
        return ANONYMOUS

    def refresh(self) -> None:
        """Nothing can change."""


def _presented_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key") or None  # as Anthropic's clients send it
