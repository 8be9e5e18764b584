"""The secrets and settings files that tie the programs of the local stack together.

Each secret exists once, in a file of mode 0600; settings name the files, never the secrets. Replicas
know only the hash of the gateway's token, and the gateway only the hashes of its clients' keys.
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptoss_cli.local.folders import write_private
from gptoss_cli.local.object_store import S3Access
from gptoss_cli.local.ports import LOOPBACK
from gptoss_cli.local.ray_head import RayHead

INSTALLATION = "local"
SYSTEM_NAMESPACE = "gptoss-system"
RAY_CLUSTER = "local"


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """The ports of operator and gateway, all on loopback."""

    gateway: int
    gateway_admin: int
    operator_metrics: int

    @property
    def gateway_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://{LOOPBACK}:{self.gateway}/v1"

    @property
    def operator_health_url(self) -> str:
        """Where the operator says that it works."""
        return f"http://{LOOPBACK}:{self.operator_metrics}/healthz"

    @property
    def gateway_ready_url(self) -> str:
        """Where the gateway says that it can serve."""
        return f"http://{LOOPBACK}:{self.gateway_admin}/readyz"


class Identity:
    """The files in one private folder. `create` writes them all anew."""

    def __init__(self, folder: Path) -> None:
        self.ray_folder = folder / "ray"
        self.gateway_token = folder / "gateway.token"
        self.api_key = folder / "api.key"
        self.keys_file = folder / "keys.yaml"
        self.operator_settings = folder / "operator.yaml"
        self.gateway_settings = folder / "gateway.yaml"

    def create(self, addresses: Addresses, store: S3Access) -> RayHead:
        """Make new secrets, write the settings of operator and gateway, and return the Ray they name."""
        token = write_private(self.gateway_token, secrets.token_urlsafe(32)).read_text()
        head = RayHead.prepare(self.ray_folder, gateway_tokens=(token,), environment=store.environment())
        key = write_private(self.api_key, f"gptoss-{secrets.token_urlsafe(32)}").read_text()
        tenant = {"name": "demo", "keys": [_hash(key)], "namespaces": ["default"]}
        _write_yaml(self.keys_file, {"tenants": [tenant]})
        ray = {
            "name": RAY_CLUSTER,
            "dashboardURL": head.dashboard_url,
            "serveURL": head.serve_url,
            "tokenFile": str(head.token_file),
            "gatewayTokenFile": str(self.gateway_token),
        }
        _write_yaml(
            self.operator_settings,
            {
                "installation": INSTALLATION,
                "systemNamespace": SYSTEM_NAMESPACE,
                "defaultRayCluster": RAY_CLUSTER,
                "rayClusters": [ray],
                "gatewayURL": addresses.gateway_url,
                "weightSources": {"s3": {"endpoint": store.endpoint, "region": store.region}},
                "metrics": {"host": LOOPBACK, "port": addresses.operator_metrics},
            },
        )
        _write_yaml(
            self.gateway_settings,
            {
                "systemNamespace": SYSTEM_NAMESPACE,
                "listen": {"host": LOOPBACK, "port": addresses.gateway},
                "admin": {"host": LOOPBACK, "port": addresses.gateway_admin},
                "keysFile": str(self.keys_file),
                "defaultRayCluster": RAY_CLUSTER,
                # The gateway has no business with Ray's dashboard: it gets no token for it.
                "rayClusters": [{name: value for name, value in ray.items() if name != "tokenFile"}],
            },
        )
        return head


def _hash(secret: str) -> str:
    return f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    write_private(path, yaml.safe_dump(content, sort_keys=False))
