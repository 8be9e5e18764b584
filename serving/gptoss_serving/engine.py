"""From the operator's arguments to vLLM's on this kind of node. Pure, and without Ray."""

from typing import Any

from gptoss_api.application import EngineArgument, ServingArguments
from gptoss_serving.errors import NodeMisconfiguredError
from gptoss_serving.node import Node

_GPU_ONLY = frozenset({"gpu_memory_utilization", "disable_custom_all_reduce", "kv_cache_dtype"})
TELLS: dict[str, EngineArgument] = {"enable_prompt_tokens_details": True}
"""Without it vLLM tells in Responses alone how much of a prompt came from its cache, and gateways count that."""


def engine_arguments(arguments: ServingArguments, node: Node) -> dict[str, EngineArgument]:
    """Return vLLM's keyword arguments: the operator's, and what every engine tells; bent to a CPU if there is no more.

    Raises:
        NodeMisconfiguredError: tensor or pipeline parallelism on a CPU.
    """
    if node.device == "gpu":
        return {**arguments.engine, **TELLS}
    for field, size in (("tensor", arguments.tensor), ("pipeline", arguments.pipeline)):
        if size > 1:
            raise NodeMisconfiguredError(
                f"spec.parallelism.{field} is {size} and this Ray cluster computes on the CPU: set it to 1"
            )
    kept = {name: value for name, value in arguments.engine.items() if name not in _GPU_ONLY}
    return {**kept, **TELLS, "enforce_eager": True, "dtype": "bfloat16"}


def runtime_environment(arguments: ServingArguments) -> dict[str, Any] | None:
    """Return Ray's runtime environment of the engine's processes; None if there is nothing to set."""
    return {"env_vars": dict(arguments.environment)} if arguments.environment else None


def placement(node: Node, arguments: ServingArguments) -> dict[str, Any]:
    """Return the placement: one GPU for each worker, all of a tensor group on one node.

    A pipeline's stages are spread by what nodes have: each holds exactly one tensor group, and vLLM gives
    neighbouring ranks to workers of one node.
    """
    if node.device == "cpu":
        return {"bundles": [{"CPU": 1}]}
    strategy = "STRICT_PACK" if arguments.pipeline == 1 else "PACK"
    return {"bundle_per_worker": {"GPU": 1, "CPU": 1}, "strategy": strategy}
