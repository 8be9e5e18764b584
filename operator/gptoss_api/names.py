"""Every name that two rooms must agree on: API group, annotations, routes and identities."""

import hashlib

GROUP = "serving.gptoss.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "gptoss-operator"
GATEWAY_FIELD_MANAGER = "gptoss-gateway"

RETRY_ANNOTATION = f"{GROUP}/retry"
"""Any new value asks for another start of a deployment that failed."""
PAUSED_ANNOTATION = f"{GROUP}/paused"
"""The value ``true`` stops all writes of the operator but the status."""
WAKE_ANNOTATION = f"{GROUP}/wake"
"""Any new value counts as one request for the model, as `gptoss wake` sends it."""

GATEWAY_TOKEN_HEADER = "x-gptoss-gateway-token"  # noqa: S105 - a header's name
"""Replicas answer only to requests that carry this header with a token they know the hash of."""

CREDENTIALS_SECRET = "gptoss-model-credentials"  # noqa: S105 - a Secret's name
"""The one Secret of a namespace that holds its credentials for sources of weights."""

MAX_REQUEST_SECONDS = 3600
"""Longest permitted generation. HAProxy's hard stop and graceful shutdown derive from it."""

MAX_NAME_LENGTH = 47
"""KubeRay appends suffixes to a RayService's name and refuses longer ones."""


def application_name(installation: str, namespace: str, name: str) -> str:
    """Return the name of a deployment's application on a Ray cluster."""
    return f"gptoss-{installation}-{namespace}-{name}"


def route_prefix(namespace: str, name: str) -> str:
    """Return the HTTP prefix under which a deployment's replicas answer on a Ray cluster."""
    return f"/gptoss/{namespace}/{name}"


def engine_model_id(namespace: str, name: str, uid: str) -> str:
    """Return the engine's own model id: constant, unique, and with ``gpt-oss`` in it.

    Clients such as LiteLLM look for ``gpt-oss`` in a model's name, and vLLM's metrics carry no
    application label, so the id alone must tell two deployments apart. No slash: Ray derives the
    Serve deployment's name from it.
    """
    digest = hashlib.sha256(f"{namespace}/{name}/{uid}".encode()).hexdigest()[:10]
    return f"gpt-oss.{namespace}.{name}.{digest}"
