"""Specification + profile → engine settings. Pure, and byte-stable: equal input gives equal output.

Three layers, the later one wins: what every gpt-oss needs, the profile for the accelerator and the
tensor parallel size, the manifest's own fields.
"""

from dataclasses import dataclass, field

from gptoss_api.application import EngineArgument, ServingArguments, WeightsArguments
from gptoss_api.deployment import GptOssDeployment, GptOssDeploymentSpec, Parallelism
from gptoss_api.engine_arguments import typed
from gptoss_api.hardware import Accelerator
from gptoss_api.names import engine_model_id
from gptoss_api.profiles import Profile

_EVERY_GPT_OSS: dict[str, EngineArgument] = {
    # gpt-oss speaks harmony; its tool calls come back as such only with this parser.
    "enable_auto_tool_choice": True,
    "tool_call_parser": "openai",
}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What one replica's engine is started with.

    Attributes:
        arguments: vLLM's keyword arguments, sorted by name.
        max_num_seqs: sequences the engine works on at once.
        profile: profile and version they come from.
        environment: environment variables of the engine's processes, sorted by name.
        customized: arguments that the manifest sets to another value than the profile.
    """

    arguments: dict[str, EngineArgument]
    max_num_seqs: int
    profile: str
    environment: dict[str, str] = field(default_factory=dict)
    customized: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The arguments as vLLM's command line would have them."""
        return " ".join(_flag(name, value) for name, value in self.arguments.items())


def resolve(spec: GptOssDeploymentSpec, profile: Profile, accelerator: Accelerator | None = None) -> EngineConfig:
    """Resolve a specification against a profile, for an accelerator where one is known.

    Raises:
        ValueError: an engine argument that is not permitted or mistyped.
    """
    tensor = spec.parallelism.tensor
    usual = {**_EVERY_GPT_OSS, **profile.arguments(accelerator, tensor), **_spread(spec.parallelism)}
    chosen = _chosen(spec)
    arguments = usual | chosen
    return EngineConfig(
        arguments=dict(sorted(arguments.items())),
        max_num_seqs=int(arguments["max_num_seqs"]),
        profile=profile.label,
        environment=dict(sorted(profile.environment(accelerator, tensor).items())),
        customized=tuple(sorted(name for name, value in chosen.items() if usual.get(name) != value)),
    )


def _spread(parallelism: Parallelism) -> dict[str, EngineArgument]:
    """Return vLLM's arguments for the parallelism; what is as it is by default is left out."""
    found: dict[str, EngineArgument] = {"tensor_parallel_size": parallelism.tensor}
    if parallelism.pipeline > 1:
        found["pipeline_parallel_size"] = parallelism.pipeline
    if parallelism.expert:
        found["enable_expert_parallel"] = True
    return found


def _chosen(spec: GptOssDeploymentSpec) -> dict[str, EngineArgument]:
    """Return the arguments that the manifest itself sets."""
    named: dict[str, EngineArgument | None] = {
        "gpu_memory_utilization": spec.engine.gpu_memory_utilization,
        "kv_cache_dtype": spec.engine.kv_cache_dtype,
        "max_model_len": spec.engine.max_model_len,
        "max_num_seqs": spec.engine.max_num_seqs,
    }
    return {name: value for name, value in named.items() if value is not None} | typed(spec.engine.extra_args)


def target_ongoing_requests(spec: GptOssDeploymentSpec, sequences: int) -> int:
    """Return how many requests per replica call for another one, with ``sequences`` worked on at once."""
    return spec.scaling.target_ongoing_requests or max(1, sequences * 3 // 4)


def max_ongoing_requests(spec: GptOssDeploymentSpec, sequences: int) -> int:
    """Return how many requests one replica takes at once; the others queue before it.

    Where another replica may come, they are more than the target: with no more than that, none would be called for.
    """
    more = 1 if spec.scaling.max_replicas > 1 else 0
    return max(sequences, target_ongoing_requests(spec, sequences) + more)


def serving_arguments(
    deployment: GptOssDeployment, engine: EngineConfig, *, installation: str, manifest_digest: str
) -> ServingArguments:
    """Return the Serve application's arguments for verified weights (``manifest_digest``: ``sha256:…``)."""
    return ServingArguments(
        installation=installation,
        namespace=deployment.namespace,
        name=deployment.name,
        model_id=engine_model_id(deployment.namespace, deployment.name, deployment.uid),
        weights=WeightsArguments(
            uri=deployment.spec.model.uri,
            revision=deployment.spec.model.revision,
            manifest_digest=manifest_digest,
            subject=deployment.spec.subject,
        ),
        tensor=deployment.spec.parallelism.tensor,
        pipeline=deployment.spec.parallelism.pipeline,
        engine=engine.arguments,
        environment=engine.environment,
    )


def _flag(name: str, value: EngineArgument) -> str:
    flag = "--" + name.replace("_", "-")
    if value is True:
        return flag
    if value is False:
        return "--no-" + name.replace("_", "-")
    return f"{flag} {value}"
