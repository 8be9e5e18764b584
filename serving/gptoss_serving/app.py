"""The application that Ray imports: from the operator's arguments to Ray LLM's, on a node that was found fit for it.

Nothing is read or downloaded here: ``build`` runs in a task of its own on the head node.
"""

import importlib
from typing import Any

from gptoss_serving.gate import GatewayTokens
from gptoss_serving.node import Node
from gptoss_serving.preflight import check_node, parse_arguments

_BUILT_ON_RAY = "gptoss_serving.llm"
"""Imported once the node is known to be fit: an older Ray lacks modules of it, and says so without saying why."""


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application for the operator's arguments (``ServingArguments`` as JSON).

    Raises:
        ServingError: arguments of another release, or a node that lacks something; says which.
    """
    arguments = parse_arguments(args)
    check_node()
    node = Node.from_environment()
    GatewayTokens(node.gateway_tokens_file)
    return importlib.import_module(_BUILT_ON_RAY).application(arguments, node)
