"""Which of an engine's routes exist, and for whom: the OpenAI API's and Anthropic's messages, for a gateway.

vLLM registers three dozen routes, all reachable through HAProxy: scaling, aborting other people's
requests, tokenizing, metrics. An allow-list stays right when a new vLLM adds another.
"""

from typing import Any

from gptoss_serving.gate import GatewayTokenMiddleware, GatewayTokens
from gptoss_serving.in_flight import InFlight

ALLOWED = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model:path}"),
        ("GET", "/v1/models/{model_id:path}"),
    }
)
"""Method and path as the engine (and Ray, for a single model) declare them."""


def restrict(app: Any, tokens: GatewayTokens, in_flight: InFlight) -> Any:
    """Take every other route out of a Starlette application and ask for a gateway's token before the rest.

    What passes is shown as in flight until it has been answered.
    """
    app.router.routes[:] = [route for route in app.router.routes if _allowed(route)]
    app.middleware_stack = None  # vLLM has built it already; Starlette makes it anew
    app.add_middleware(GatewayTokenMiddleware, tokens=tokens, in_flight=in_flight)
    return app


def _allowed(route: Any) -> bool:
    methods = getattr(route, "methods", None) or ()
    return any((method, getattr(route, "path", None)) in ALLOWED for method in methods)
