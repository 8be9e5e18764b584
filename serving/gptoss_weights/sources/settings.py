"""What a node or an operator may read weights from. Set by administrators, never by a manifest."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FILE_ROOTS_VARIABLE = "GPTOSS_WEIGHTS_FILE_ROOTS"
HUB_ENDPOINT_VARIABLE = "HF_ENDPOINT"
HUB_DOWNLOAD_HOSTS_VARIABLE = "GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS"
HUB_TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - a variable's name
HUB_ENDPOINT = "https://huggingface.co"
PARALLEL_FILES_VARIABLE = "GPTOSS_WEIGHTS_PARALLEL_FILES"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """Where weights may be read from and with which credentials.

    ``file_roots`` are the folders below which ``file://`` URIs may be read; none refuses them all.
    ``s3_endpoint`` None means AWS itself. Without keys, boto3's own chain of credentials applies.
    ``hf_endpoint`` is a Hugging Face hub or a mirror of one; ``hf_download_hosts`` (``host``, ``host:port`` or
    ``*.domain``) are the others to which it may redirect for a file's bytes, and none refuses that.
    """

    file_roots: tuple[Path, ...] = ()
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_access_key_id: str | None = field(default=None, repr=False)
    s3_secret_access_key: str | None = field(default=None, repr=False)
    hf_endpoint: str = HUB_ENDPOINT
    hf_download_hosts: tuple[str, ...] = ()
    hf_token: str | None = field(default=None, repr=False)
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 30.0
    max_attempts: int = 5
    """Tries of one request, and of one stream without any progress in between."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "SourceSettings":
        """Read ``GPTOSS_WEIGHTS_FILE_ROOTS`` (separated by ``:``), boto3's variables for endpoint and region, and
        ``HF_ENDPOINT``, ``HF_TOKEN`` and ``GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS`` (separated by ``,``).

        Keys of an object store stay with boto3's own chain, which also knows session tokens and their renewal.
        """
        variables = os.environ if environ is None else environ
        roots = variables.get(FILE_ROOTS_VARIABLE, "")
        return cls(
            file_roots=tuple(Path(root) for root in roots.split(":") if root),
            s3_endpoint=variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL") or None,
            s3_region=variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or None,
            hf_endpoint=variables.get(HUB_ENDPOINT_VARIABLE) or HUB_ENDPOINT,
            hf_download_hosts=tuple(
                host.strip() for host in variables.get(HUB_DOWNLOAD_HOSTS_VARIABLE, "").split(",") if host.strip()
            ),
            hf_token=variables.get(HUB_TOKEN_VARIABLE) or None,
        )
