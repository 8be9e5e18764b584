"""Small builders for the objects that most tests need. Every argument that a test names is one it is about."""

from typing import Any

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.names import API_VERSION

DIGEST = "sha256:" + "ab" * 32


def deployment_object(
    name: str = "assistant",
    namespace: str = "ml",
    *,
    uid: str = "11111111-2222-3333-4444-555555555555",
    generation: int = 1,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a raw GptOssDeployment; keyword arguments are top-level fields of its spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": "GptOssDeployment",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "generation": generation,
            "resourceVersion": "1",
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}, **spec},
    }


def deployment(name: str = "assistant", namespace: str = "ml", **more: Any) -> GptOssDeployment:
    """Return a parsed GptOssDeployment."""
    return GptOssDeployment.parse(deployment_object(name, namespace, **more))
