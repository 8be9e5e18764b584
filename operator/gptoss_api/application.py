"""The Serve application's arguments: the one document that crosses from the operator to Ray's nodes.

Bytes are stable, for Ray restarts an engine when they change. The schema number is checked by the
builder, so an operator and a serving image that do not fit say so instead of guessing.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from gptoss_api.model import Digest, Name, StrictModel

SCHEMA: Literal[1] = 1

EngineArgument = str | int | float | bool
"""A value of a vLLM keyword argument."""

_SERVER_CLASS = "GptOssServer"
ROUTER_DEPLOYMENT = "LLMRouter"
"""Serve deployment that picks a replica for each request; Ray's own."""


class WeightsArguments(StrictModel):
    """Which weights every node must hold before the engine may start."""

    uri: str
    manifest_digest: Digest
    subject: Annotated[str, Field(min_length=1, max_length=128)]
    revision: str | None = None


class ServingArguments(StrictModel):
    """Arguments of ``gptoss_serving.app:build``. They carry no secret and no address."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    installation: Name
    namespace: Name
    name: Name
    model_id: str
    weights: WeightsArguments
    tensor: Literal[1, 2, 4, 8]
    pipeline: Annotated[int, Field(ge=1, le=8)] = 1
    engine: dict[str, EngineArgument]
    environment: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = Field(default_factory=dict)

    def wire(self) -> dict[str, Any]:
        """Return the JSON document, keys in a fixed order."""
        document = self.model_dump(by_alias=True, mode="json")
        # Releases before these were there made the same bytes, so they restart no engine of theirs.
        if not self.environment:
            del document["environment"]
        if self.pipeline == 1:
            del document["pipeline"]
        if self.weights.revision is None:
            del document["weights"]["revision"]
        return document


def server_deployment_name(model_id: str) -> str:
    """Return the name of the Serve deployment that runs the engine.

    ``ray.serve.llm`` derives it from the server class and the model id
    (``LLMServer.get_deployment_options``), with characters that Serve refuses replaced.
    """
    return f"{_SERVER_CLASS}:{model_id.replace('/', '--').replace('.', '_')}"


def is_ours(application: dict[str, Any], installation: str) -> bool:
    """Tell whether a deployed application (Ray's configuration of it) was put there by this installation.

    The name alone is no proof: only an application whose arguments carry our marker is ever changed
    or removed.
    """
    arguments = application.get("args") or {}
    return (
        str(application.get("name", "")).startswith(f"gptoss-{installation}-")
        and "schema" in arguments
        and arguments.get("installation") == installation
    )
