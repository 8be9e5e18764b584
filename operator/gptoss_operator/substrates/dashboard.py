"""Ray's dashboard and Serve's proxy over HTTP: two calls, a probe, and their errors.

::

    ClusterError
    ├── ClusterUnreachableError   no answer, or not a sensible one: nothing is known
    └── ClusterRefusedError       Ray understood and said no

Requests carry nothing a browser would send: Ray hides environment variables from browsers, and what
it hides can't be written back.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp

from gptoss_api.clusters import RayCluster
from gptoss_api.gateway_token import tokens_of
from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_operator.token_file import TokenFile

_PATH = "/api/serve/applications/"
_NODES_PATH = "/api/v0/nodes?limit=10000"
_NODES_SECONDS = 5.0
_LOGS_PATH = "/api/v0/logs"
_LOG_SECONDS = 3.0
# While Serve's controller restarts, Ray's answer takes about 6 s (measured with Ray 2.60).
_GET_SECONDS = 12.0
_PUT_SECONDS = 60.0
_PROBE_SECONDS = 2.0
_LONGEST_ANSWER = 64 * 1024 * 1024


class ClusterError(Exception):
    """A Ray cluster did not do what was asked. The message is for a condition, and deterministic."""


class ClusterUnreachableError(ClusterError):
    """No answer, or not a sensible one: nothing is known."""


class ClusterRefusedError(ClusterError):
    """Ray understood and said no."""


class RayDashboard:
    """One Ray cluster's REST interface."""

    def __init__(self, cluster: RayCluster, session: aiohttp.ClientSession) -> None:
        self._cluster = cluster
        self._session = session
        self._token = TokenFile(cluster.token_file) if cluster.token_file is not None else None
        self._gateway_token = TokenFile(cluster.gateway_token_file)

    async def applications(self) -> Mapping[str, Any]:
        """Return Serve's applications with status and deployed configuration.

        Raises:
            ClusterError: there is no such answer.
        """
        status, body = await self._call("GET", None, _GET_SECONDS)
        if status != 200:
            raise self._unexpected(status)
        try:
            details = json.loads(body)
        except ValueError as error:
            raise ClusterUnreachableError(f"{self._name()} answered with something that is not JSON") from error
        if not isinstance(details, dict) or not isinstance(details.get("applications"), dict):
            raise ClusterUnreachableError(f"{self._name()} answered without a list of applications")
        return details

    async def nodes(self) -> Sequence[Mapping[str, Any]] | None:
        """Return Ray's nodes with state and resources; None if it does not tell."""
        try:
            status, body = await self._call("GET", None, _NODES_SECONDS, path=_NODES_PATH)
            rows = json.loads(body)["data"]["result"]["result"] if status == 200 else None
        except (ClusterError, ValueError, KeyError, TypeError):
            return None
        return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else None

    async def small_log(self, node: str, name: str, *, limit: int) -> str | None:
        """Return a file among a node's logs; None if there is none, it is longer, or Ray does not tell.

        It is looked for first: of what is asked for and not there, Ray writes a traceback into its own log.
        """
        query = {"node_id": node, "timeout": str(int(_LOG_SECONDS))}
        try:
            path = f"{_LOGS_PATH}?{urlencode({**query, 'glob': name})}"
            status, body = await self._call("GET", None, _LOG_SECONDS, path=path)
            kinds = json.loads(body)["data"]["result"] if status == 200 else {}
            if not any(name in names for names in kinds.values()):
                return None
            path = f"{_LOGS_PATH}/file?{urlencode({**query, 'filename': name})}"
            status, body = await self._call("GET", None, _LOG_SECONDS, path=path)
            return body.decode() if status == 200 and len(body) <= limit else None
        except (ClusterError, ValueError, KeyError, TypeError, AttributeError):
            return None

    async def put_applications(self, document: Mapping[str, Any], *, within: float = _PUT_SECONDS) -> None:
        """Replace the configuration of all of Serve's applications, within some seconds at most.

        Raises:
            ClusterError: it was not taken, or it is not known whether it was.
        """
        status, body = await self._call("PUT", document, min(within, _PUT_SECONDS))
        if status == 400:
            raise ClusterRefusedError(
                f"Ray cluster {self._cluster.name} refused the configuration: {body.decode(errors='replace')[:500]}"
            )
        if status != 200:
            raise self._unexpected(status)

    async def answers(self, prefix: str) -> bool:
        """Tell whether an engine itself answers under a prefix: RUNNING alone does not say so."""
        return await engine_answers(self._session, f"{self._cluster.serve_url}{prefix}", self._gateway_token)

    async def _call(
        self, method: str, document: Mapping[str, Any] | None, seconds: float, *, path: str = _PATH
    ) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(method, document, path)
        except TimeoutError as error:
            raise ClusterUnreachableError(f"{self._name()} did not answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ClusterUnreachableError(f"{self._name()} can't be reached ({type(error).__name__})") from error

    async def _exchange(self, method: str, document: Mapping[str, Any] | None, path: str) -> tuple[int, bytes]:
        async with self._session.request(
            method,
            self._cluster.dashboard_url + path,
            json=document,
            headers=await self._headers(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            allow_redirects=False,
        ) as response:
            chunks, length = [], 0
            async for chunk in response.content.iter_chunked(65536):
                length += len(chunk)
                if length > _LONGEST_ANSWER:
                    raise ClusterUnreachableError(f"{self._name()} answered with more than 64 MiB")
                chunks.append(chunk)
            return response.status, b"".join(chunks)

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            try:
                headers["Authorization"] = f"Bearer {(await self._token.read()).strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise ClusterUnreachableError(
                    f"the token file of Ray cluster {self._cluster.name} can't be read ({type(error).__name__})"
                ) from error
        return headers

    def _unexpected(self, status: int) -> ClusterError:
        if status in {401, 403}:
            return ClusterRefusedError(
                f"{self._name()} refused the operator's token (HTTP {status}); correct the tokenFile of its entry"
            )
        return ClusterUnreachableError(f"{self._name()} answered with HTTP {status}")

    def _name(self) -> str:
        return f"the dashboard of Ray cluster {self._cluster.name}"


async def engine_answers(session: aiohttp.ClientSession, url: str, gateway_token: TokenFile) -> bool:
    """Tell whether an engine itself answers under a URL, within a deadline of its own.

    While the gateway's token changes there are two: replicas may not know the newer one yet.
    """
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            for token in tokens_of(await gateway_token.read()):
                status, body = await _models(session, url, token)
                if status != HTTPStatus.UNAUTHORIZED:
                    return status == HTTPStatus.OK and isinstance(json.loads(body), dict)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        pass
    return False


async def _models(session: aiohttp.ClientSession, url: str, token: str) -> tuple[int, bytes]:
    headers = {GATEWAY_TOKEN_HEADER: token, "Accept": "application/json"}
    async with session.get(f"{url}/v1/models", headers=headers, allow_redirects=False) as response:
        return response.status, await response.content.read(1024 * 1024)
