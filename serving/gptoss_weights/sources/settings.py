"""What a node or an operator may read weights from. Set by administrators, never by a manifest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

S3_ID_VARIABLE = "AWS_ACCESS_KEY_ID"
S3_KEY_VARIABLE = "AWS_SECRET_ACCESS_KEY"
S3_SESSION_VARIABLE = "AWS_SESSION_TOKEN"
AZURE_ACCOUNT_VARIABLE = "AZURE_STORAGE_ACCOUNT_NAME"
AZURE_ENDPOINT_VARIABLE = "AZURE_STORAGE_ENDPOINT"
AZURE_SAS_VARIABLE = "AZURE_STORAGE_SAS_TOKEN"
AZURE_KEY_VARIABLE = "AZURE_STORAGE_ACCOUNT_KEY"
AZURE_CLIENT_VARIABLE = "AZURE_CLIENT_ID"
AZURE_TENANT_VARIABLE = "AZURE_TENANT_ID"
AZURE_TOKEN_FILE_VARIABLE = "AZURE_FEDERATED_TOKEN_FILE"  # noqa: S105 - a variable's name
AZURE_AUTHORITY_VARIABLE = "AZURE_AUTHORITY_HOST"
AZURE_AUTHORITY = "https://login.microsoftonline.com"
FILE_ROOTS_VARIABLE = "GPTOSS_WEIGHTS_FILE_ROOTS"
HUB_ENDPOINT_VARIABLE = "HF_ENDPOINT"
HUB_DOWNLOAD_HOSTS_VARIABLE = "GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS"
HUB_TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - a variable's name
HUB_ENDPOINT = "https://huggingface.co"
PARALLEL_FILES_VARIABLE = "GPTOSS_WEIGHTS_PARALLEL_FILES"


@dataclass(frozen=True, kw_only=True, slots=True)
class AzureWorkload:
    """An identity of Entra ID that trusts the tokens in a file, by the names that Azure's libraries give them."""

    tenant_id: str
    client_id: str
    token_file: Path
    authority: str = AZURE_AUTHORITY

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> "AzureWorkload | None":
        """Read it; None unless tenant, client and file are all there."""
        tenant, client, file = (
            variables.get(name) for name in (AZURE_TENANT_VARIABLE, AZURE_CLIENT_VARIABLE, AZURE_TOKEN_FILE_VARIABLE)
        )
        if not tenant or not client or not file:
            return None
        authority = variables.get(AZURE_AUTHORITY_VARIABLE) or AZURE_AUTHORITY
        return cls(tenant_id=tenant, client_id=client, token_file=Path(file), authority=authority)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """Where weights may be read from and with which credentials.

    ``file_roots`` are the folders below which ``file://`` URIs may be read; none refuses them all.
    ``s3_endpoint`` None means AWS itself. Without keys, boto3's own chain of credentials applies.
    ``azure_account`` is the storage account that holds the containers of ``az://``; ``azure_endpoint`` None means
    the public cloud's for it. A token (SAS) counts more than an account's key, both more than a workload's identity.
    ``hf_endpoint`` is a Hugging Face hub or a mirror of one; ``hf_download_hosts`` (``host``, ``host:port`` or
    ``*.domain``) are the others to which it may redirect for a file's bytes, and none refuses that.
    """

    file_roots: tuple[Path, ...] = ()
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_access_key_id: str | None = field(default=None, repr=False)
    s3_secret_access_key: str | None = field(default=None, repr=False)
    s3_session_token: str | None = field(default=None, repr=False)
    azure_account: str | None = None
    azure_endpoint: str | None = None
    azure_sas_token: str | None = field(default=None, repr=False)
    azure_account_key: str | None = field(default=None, repr=False)
    azure_workload: AzureWorkload | None = None
    hf_endpoint: str = HUB_ENDPOINT
    hf_download_hosts: tuple[str, ...] = ()
    hf_token: str | None = field(default=None, repr=False)
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 30.0
    max_attempts: int = 5
    """Tries of one request, and of one stream without any progress in between."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "SourceSettings":
        """Read ``GPTOSS_WEIGHTS_FILE_ROOTS`` (separated by ``:``), boto3's variables for endpoint and region,
        ``AZURE_STORAGE_`` with ``ACCOUNT_NAME``, ``ENDPOINT``, ``SAS_TOKEN`` and ``ACCOUNT_KEY``, ``AZURE_CLIENT_ID``,
        ``AZURE_TENANT_ID``, ``AZURE_FEDERATED_TOKEN_FILE`` and ``AZURE_AUTHORITY_HOST``, ``HF_ENDPOINT``,
        ``HF_TOKEN`` and ``GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS`` (separated by ``,``).

        Keys of S3 stay with boto3's own chain, which also knows session tokens and their renewal.
        """
        variables = os.environ if environ is None else environ
        roots = variables.get(FILE_ROOTS_VARIABLE, "")
        return cls(
            file_roots=tuple(Path(root) for root in roots.split(":") if root),
            s3_endpoint=variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or None,
            s3_region=variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or None,
            azure_account=variables.get(AZURE_ACCOUNT_VARIABLE) or None,
            azure_endpoint=variables.get(AZURE_ENDPOINT_VARIABLE) or None,
            azure_sas_token=variables.get(AZURE_SAS_VARIABLE) or None,
            azure_account_key=variables.get(AZURE_KEY_VARIABLE) or None,
            azure_workload=AzureWorkload.from_environment(variables),
            hf_endpoint=variables.get(HUB_ENDPOINT_VARIABLE) or HUB_ENDPOINT,
            hf_download_hosts=tuple(
                host.strip() for host in variables.get(HUB_DOWNLOAD_HOSTS_VARIABLE, "").split(",") if host.strip()
            ),
            hf_token=variables.get(HUB_TOKEN_VARIABLE) or None,
        )

    def with_credentials(self, credentials: Mapping[str, str]) -> "SourceSettings":
        """Return these settings for somebody with credentials of their own, by the names of the variables.

        For a hub only theirs count; for S3 and Azure theirs instead of ours, as soon as there is one of them.
        """
        given = {name: value for name, value in credentials.items() if value}
        theirs = replace(self, hf_token=given.get(HUB_TOKEN_VARIABLE))
        if S3_ID_VARIABLE in given or S3_KEY_VARIABLE in given:
            theirs = replace(
                theirs,
                s3_access_key_id=given.get(S3_ID_VARIABLE, ""),
                s3_secret_access_key=given.get(S3_KEY_VARIABLE, ""),
                s3_session_token=given.get(S3_SESSION_VARIABLE),
            )
        if AZURE_SAS_VARIABLE in given or AZURE_KEY_VARIABLE in given:
            theirs = replace(
                theirs, azure_sas_token=given.get(AZURE_SAS_VARIABLE), azure_account_key=given.get(AZURE_KEY_VARIABLE)
            )
        return theirs
