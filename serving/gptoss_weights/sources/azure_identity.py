"""An identity of Entra ID that no key stands for: a token that Kubernetes signed is changed for one of the store's.

One request of the OAuth 2.0 client credentials flow, with the token as assertion (RFC 7523), as Microsoft documents it:
https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow. It goes through connections that
look where they lead; azure-identity's would ask further addresses first.
"""

import json
import re
import threading
import time
from typing import Any, Final
from urllib.parse import quote

import urllib3
from azure.core.credentials import AccessToken

from gptoss_weights.errors import AccessDeniedError, SourceError, SourceUnavailableError
from gptoss_weights.sources.connections import connection_pools
from gptoss_weights.sources.endpoint import can_be_overheard, check_endpoint
from gptoss_weights.sources.settings import AzureWorkload, SourceSettings

SCOPE: Final = "https://storage.azure.com/.default"
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_EARLY_SECONDS: Final = 300
_LONGEST_TOKEN: Final = 16 * 1024
_LONGEST_ANSWER: Final = 64 * 1024
_CODE: Final = re.compile(r"\bAADSTS\d{1,10}\b")


class WorkloadCredential:
    """A credential as Azure's library takes it: tokens of an identity, each used until shortly before its end."""

    def __init__(self, workload: AzureWorkload, settings: SourceSettings) -> None:
        if can_be_overheard(workload.authority):
            raise AccessDeniedError("the authority of a workload's identity must be https://, for its answer is a key")
        check_endpoint(workload.authority)
        self._workload = workload
        self._pools = connection_pools()
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout_seconds, read=settings.read_timeout_seconds)
        self._lock = threading.Lock()
        self._token: AccessToken | None = None

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        """Return a token for blobs; for nothing else, whatever a server asks for.

        Raises:
            SourceError: there is none.
        """
        if scopes != (SCOPE,):
            raise AccessDeniedError("the object store asks for a token of something else, which it does not get")
        with self._lock:
            if self._token is None or self._token.expires_on - _EARLY_SECONDS < time.time():
                self._token = self._asked()
            return self._token

    def close(self) -> None:
        """Close the connections."""
        self._pools.clear()

    def _asked(self) -> AccessToken:
        workload = self._workload
        url = f"{workload.authority.rstrip('/')}/{quote(workload.tenant_id, safe='')}/oauth2/v2.0/token"
        form = {
            "grant_type": "client_credentials",
            "client_id": workload.client_id,
            "client_assertion_type": _ASSERTION,
            "client_assertion": self._assertion(),
            "scope": SCOPE,
        }
        try:
            answer = self._pools.request(
                "POST",
                url,
                fields=form,
                encode_multipart=False,
                timeout=self._timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                body = answer.read(_LONGEST_ANSWER, decode_content=False)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            # Neither the request, which holds a token, nor what was answered goes on, not even as a cause.
            raise SourceUnavailableError(f"Entra ID does not answer ({type(error).__name__})") from None
        return _token(answer.status, body)

    def _assertion(self) -> str:
        """Return the token that is there now: the node writes another one before it ends."""
        try:
            with self._workload.token_file.open() as stream:
                return stream.read(_LONGEST_TOKEN).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise AccessDeniedError(
                f"the token of the workload's identity can't be read ({type(error).__name__}); see what mounts "
                "AZURE_FEDERATED_TOKEN_FILE"
            ) from None


def _token(status: int, body: bytes) -> AccessToken:
    try:
        said: Any = json.loads(body)
        if status == 200:
            return AccessToken(str(said["access_token"]), int(time.time()) + int(said["expires_in"]))
        text = str(said.get("error_description", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = ""
    raise _refused(status, text) from None


def _refused(status: int, text: str) -> SourceError:
    code = _CODE.search(text)
    told = f"{code[0]}, status {status}" if code is not None else f"status {status}"
    if status == 429 or status >= 500:
        return SourceUnavailableError(f"Entra ID can't answer now ({told})")
    return AccessDeniedError(
        f"Entra ID does not give this workload its identity ({told}); check tenant and client, and the identity's "
        "federated credential: the cluster's issuer, the audience, and the subject "
        "system:serviceaccount:<namespace>:<name>"
    )
