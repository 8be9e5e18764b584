"""The application that Ray imports: from the operator's arguments to Ray LLM's, on a node that was found fit for it.

Nothing is read or downloaded here: ``build`` runs in a task of its own on the head node.
"""

from typing import TYPE_CHECKING, Any

from gptoss_serving.gate import GatewayTokens
from gptoss_serving.node import Node
from gptoss_serving.preflight import check_node, parse_arguments

if TYPE_CHECKING:
    from ray import serve


def build(args: dict[str, Any]) -> "serve.Application":
    """Return the Serve application for the operator's arguments (``ServingArguments`` as JSON).

    Raises:
        ServingError: arguments of another release, or a node that lacks something; says which.
    """
    arguments = parse_arguments(args)
    check_node()
    node = Node.from_environment()
    GatewayTokens(node.gateway_tokens_file)
    # Only now: an older Ray lacks modules that this is built on, and would say so without saying why.
    from gptoss_serving.llm import application

    return application(arguments, node)
