"""The Serve deployment of one engine: Ray LLM's server with the gateway's token and the OpenAI routes only."""

from typing import Any

from ray.llm._internal.serve.core.server.llm_server import LLMServer

from gptoss_serving.gate import GatewayTokens
from gptoss_serving.in_flight import InFlight
from gptoss_serving.node import Node
from gptoss_serving.ray_logs import replicas_ray_logs
from gptoss_serving.routes import restrict
from gptoss_serving.serve_logs import kept_serve_logs


class GptOssServer(LLMServer):
    """Named in ``gptoss_api.application``: Ray derives the deployment's name from the class."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        """Start the engine, as Ray's server does."""
        with kept_serve_logs():
            await super().__init__(*args, **kwargs)

    async def __serve_build_asgi_app__(self) -> Any:
        """Return the engine's own application, restricted. Ray calls it once the engine has started."""
        tokens = GatewayTokens(Node.from_environment().gateway_tokens_file)
        with kept_serve_logs():
            app = await super().__serve_build_asgi_app__()  # type: ignore[no-untyped-call]
        return restrict(app, tokens, InFlight(replicas_ray_logs()))
