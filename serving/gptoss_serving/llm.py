"""Ray LLM's application of one engine, from the operator's arguments.

What it returns says where the verified copy will be; the callback puts it there, on each node.
"""

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from gptoss_api.application import ServingArguments
from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_serving.engine import engine_arguments, placement, runtime_environment
from gptoss_serving.node import Node
from gptoss_serving.server import GptOssServer
from gptoss_serving.weights_callback import WeightsCallback


def application(arguments: ServingArguments, node: Node) -> serve.Application:
    """Return the Serve application of one engine."""
    return build_openai_app({"llm_configs": [_llm_config(arguments, node)]})


def _llm_config(arguments: ServingArguments, node: Node) -> LLMConfig:
    return LLMConfig(
        model_loading_config={
            "model_id": arguments.model_id,
            "model_source": str(node.copy_of(arguments.weights)),
        },
        engine_kwargs=engine_arguments(arguments, node),
        placement_group_config=placement(node, arguments),
        deployment_config={
            # Bounds come with the operator's `deployments` block; these are for a hand-made PUT.
            "autoscaling_config": {"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 32},
            "ray_actor_options": {"num_cpus": 0.1 if node.device == "cpu" else 1},
            "graceful_shutdown_timeout_s": MAX_REQUEST_SECONDS,
        },
        callback_config={
            "callback_class": WeightsCallback,
            "callback_kwargs": WeightsCallback.keywords(arguments.weights),
        },
        runtime_env=runtime_environment(arguments),
        server_cls=GptOssServer,
    )
