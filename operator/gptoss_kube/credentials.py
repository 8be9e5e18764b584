"""How to log in: one reading of a kubeconfig or of the pod's service account, for our client and for kopf.

`kubernetes.aio` does the reading (exec plugins and OIDC included); we read again every minute and after
a 401, because bound service account tokens and plugins' tokens expire while we run.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import incluster_config

from gptoss_kube.errors import CredentialsError

_config: Any = config  # has no types
_in_cluster: Any = incluster_config
_REREAD_SECONDS = 60.0
_LONGEST_COMPLAINT = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """Where the API server is and how to log in now.

    The field names are those of ``kopf.ConnectionInfo``, so ``dataclasses.asdict`` makes its arguments.
    """

    server: str
    ca_path: str | None = None
    insecure: bool | None = None
    scheme: str | None = None
    token: str | None = None
    certificate_path: str | None = None
    private_key_path: str | None = None
    proxy_url: str | None = None
    default_namespace: str | None = None


class Credentials:
    """Credentials that stay fresh. Build them with ``load``."""

    def __init__(self, *, kubeconfig: Path | None, context: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._read_at = 0.0
        self._namespace: str | None = None
        self.configuration: Any = _new_configuration()
        """The configuration to build ``kubernetes.aio``'s ApiClient with; it refreshes its own token."""
        self.configuration.refresh_api_key_hook = self._refresh_if_old

    @classmethod
    async def load(cls, kubeconfig: Path | None = None, *, context: str | None = None) -> Self:
        """Read a kubeconfig (or several, joined by ``:``), or the pod's service account where no path is given.

        Raises CredentialsError, which names the file, when there is nothing usable.
        """
        credentials = cls(kubeconfig=kubeconfig, context=context)
        await credentials.refresh()
        return credentials

    async def refresh(self) -> bool:
        """Read again now; return whether the token has changed."""
        before = self.configuration.api_key.get("BearerToken")
        try:
            if self._kubeconfig is not None:
                await self._read_kubeconfig(self._kubeconfig)
            else:
                self._read_service_account()
        except CredentialsError:
            raise
        except (_config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
            raise CredentialsError(f"{self._source} is not usable: {' '.join(str(error).split())}") from error
        except (TypeError, KeyError, AttributeError) as error:  # the reader minds no shapes
            raise CredentialsError(
                f"{self._source} is not a kubeconfig: name another with --kubeconfig or KUBECONFIG"
            ) from error
        self._read_at = time.monotonic()
        return bool(self.configuration.api_key.get("BearerToken") != before)

    async def connection(self) -> Connection:
        """Read again and return what kopf needs to log in."""
        await self.refresh()
        configuration = self.configuration
        scheme, _, token = (configuration.api_key.get("BearerToken") or "").partition(" ")
        return Connection(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl or None,
            scheme=scheme.capitalize() if token else None,
            token=token.strip() or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            proxy_url=configuration.proxy,
            default_namespace=self._namespace,
        )

    @property
    def _source(self) -> str:
        return f"kubeconfig {self._kubeconfig}" if self._kubeconfig else "the pod's service account"

    async def _read_kubeconfig(self, path: Path) -> None:
        if not any(os.path.isfile(part) for part in str(path).split(os.pathsep)):  # noqa: ASYNC240, PTH113
            raise CredentialsError(f"kubeconfig {path} does not exist: name another with --kubeconfig or KUBECONFIG")
        with _complaints_of_plugins() as complaints:
            loader = await _config.load_kube_config(
                str(path), context=self._context, client_configuration=self.configuration, persist_config=False
            )
        self._namespace = loader.current_context["context"].get("namespace")
        if complaints:
            self._plugin_failed(loader._user["exec"]["command"], complaints)  # noqa: SLF001

    def _plugin_failed(self, program: str, complaints: list[str]) -> None:
        if shutil.which(program) is None:
            failed = f"logs in with the program {program!r}, which is not there or can't be run: install it, mend PATH"
        else:
            said = " ".join("; ".join(complaints).split())[:_LONGEST_COMPLAINT]
            failed = f"logs in with the program {program!r}, which gave no credentials ({said}): run it by hand"
        message = f"{self._source} {failed}, or choose another context"
        if not (self.configuration.api_key or self.configuration.cert_file or self.configuration.username):
            raise CredentialsError(message)
        _log.warning("%s; what it gave before is used", message)

    def _read_service_account(self) -> None:
        _config.load_incluster_config(self.configuration, try_refresh_token=False)
        with contextlib.suppress(OSError):  # a projected token may come without it
            self._namespace = Path(_in_cluster.SERVICE_TOKEN_FILENAME).with_name("namespace").read_text().strip()

    async def _refresh_if_old(self, _: object) -> None:
        if time.monotonic() - self._read_at >= _REREAD_SECONDS:
            await self.refresh()


@contextlib.contextmanager
def _complaints_of_plugins() -> Iterator[list[str]]:
    """Collect what `kubernetes.aio` writes into the log when a plugin fails, where others would raise an error."""
    complaints: list[str] = []
    before = _complaints.set(complaints)
    try:
        yield complaints
    finally:
        _complaints.reset(before)


def _is_for_the_log(record: logging.LogRecord) -> bool:
    complaints = _complaints.get()
    if complaints is None or record.levelno < logging.ERROR:
        return True
    complaints.append(record.getMessage())
    return False


_complaints: ContextVar[list[str] | None] = ContextVar("complaints", default=None)
logging.getLogger("kubernetes.aio.config.kube_config").addFilter(_is_for_the_log)


def _new_configuration() -> Any:
    """A Configuration of its own: calling the class would return a copy of the process-wide default."""
    return type.__call__(Configuration)
