"""Model profiles: engine settings that are known to be right for a gpt-oss model on an accelerator.

A profile's version changes whenever one of its numbers does. A running deployment keeps what it
was started with until its specification changes.

The rules follow vLLM's recipes (`RECIPE`, and ``models/openai/gpt-oss-*.yaml`` beside it). Left out is what
they recommend for benchmarks only (no prefix caching, ``stream-interval``), what trades exactness for speed
(``VLLM_ROCM_QUICK_REDUCE_QUANTIZATION``), and what vLLM chooses by itself (kernels for MXFP4, attention on CUDA).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gptoss_api.application import EngineArgument
from gptoss_api.hardware import GIB, Accelerator, Family

RECIPE = "https://github.com/vllm-project/recipes/blob/main/OpenAI/GPT-OSS.md"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings for some accelerators.

    Attributes:
        source: where the values are from.
        arguments: vLLM's keyword arguments.
        environment: environment variables of the engine's processes.
        families: generations it is for; None is every one.
        tensor: tensor parallel sizes it is for; None is every one.
        below: bytes of memory below which an accelerator must be; None is any.
        unknown: also for hardware that is not known.
    """

    source: str
    arguments: Mapping[str, EngineArgument] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    families: frozenset[Family] | None = None
    tensor: frozenset[int] | None = None
    below: float | None = None
    unknown: bool = False

    def applies(self, accelerator: Accelerator | None, tensor: int) -> bool:
        """Tell whether the rule is for this accelerator (None: not known) and tensor parallel size."""
        if self.tensor is not None and tensor not in self.tensor:
            return False
        if accelerator is None:
            return self.unknown
        if self.families is not None and accelerator.family not in self.families:
            return False
        return self.below is None or accelerator.memory_bytes < self.below


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Engine settings of one model.

    Attributes:
        name: what ``spec.model.name`` says.
        version: grows with every change of a number below.
        max_model_len: context in tokens; None leaves it to the model's own configuration.
        max_num_seqs: sequences one replica works on at once.
        rules: what differs by accelerator; of two, the later one wins.
    """

    name: str
    version: int
    max_model_len: int | None
    max_num_seqs: int
    rules: tuple[Rule, ...] = ()

    @property
    def label(self) -> str:
        """Name and version, as status shows them."""
        return f"{self.name}/{self.version}"

    def arguments(self, accelerator: Accelerator | None, tensor: int) -> dict[str, EngineArgument]:
        """Return vLLM's keyword arguments on an accelerator (None: not known)."""
        found: dict[str, EngineArgument] = {"max_num_seqs": self.max_num_seqs}
        if self.max_model_len is not None:
            found["max_model_len"] = self.max_model_len
        for rule in self._rules(accelerator, tensor):
            found |= rule.arguments
        return found

    def environment(self, accelerator: Accelerator | None, tensor: int) -> dict[str, str]:
        """Return the environment variables of the engine's processes on an accelerator."""
        return {name: value for rule in self._rules(accelerator, tensor) for name, value in rule.environment.items()}

    def _rules(self, accelerator: Accelerator | None, tensor: int) -> Iterator[Rule]:
        return (rule for rule in self.rules if rule.applies(accelerator, tensor))


_BATCHES = Rule(
    source=f"{RECIPE}, GPT-OSS_Hopper.yaml and GPT-OSS_Blackwell.yaml",
    families=frozenset({Family.HOPPER, Family.BLACKWELL}),
    arguments={"max_num_batched_tokens": 8192},
)
_BLACKWELL = Rule(
    source=f"{RECIPE}, GPT-OSS_Blackwell.yaml",
    families=frozenset({Family.BLACKWELL}),
    arguments={"kv_cache_dtype": "fp8"},
)
_INSTINCT = Rule(
    source=f"{RECIPE}, MI300x/MI325x and MI355x",
    families=frozenset({Family.CDNA3, Family.CDNA4}),
    arguments={"attention_backend": "ROCM_AITER_UNIFIED_ATTN", "block_size": 64, "gpu_memory_utilization": 0.95},
    environment={"AMDGCN_USE_BUFFER_OPS": "0", "HSA_NO_SCRATCH_RECLAIM": "1", "VLLM_ROCM_USE_AITER": "1"},
)

_PROFILES = {
    profile.name: profile
    for profile in (
        # 131,072 tokens: the model card's context length.
        Profile(
            name="gpt-oss-20b",
            version=2,
            max_model_len=131072,
            max_num_seqs=256,
            rules=(
                _BATCHES,
                _BLACKWELL,
                _INSTINCT,
                Rule(
                    source="docs/sizing.md: the whole context then fits 24 GB",
                    tensor=frozenset({1}),
                    below=30 * GIB,
                    arguments={"max_num_seqs": 64},
                ),
                Rule(
                    source="docs/sizing.md: what then fits 16 GB, which the recipe gives as the least",
                    tensor=frozenset({1}),
                    below=18 * GIB,
                    arguments={
                        "enforce_eager": True,
                        "gpu_memory_utilization": 0.95,
                        "max_model_len": 8192,
                        "max_num_batched_tokens": 512,
                        "max_num_seqs": 8,
                    },
                ),
            ),
        ),
        Profile(
            name="gpt-oss-120b",
            version=2,
            max_model_len=131072,
            max_num_seqs=256,
            rules=(
                _BATCHES,
                _BLACKWELL,
                _INSTINCT,
                Rule(
                    source=f"{RECIPE}, known limitations: one H100 of 80 GB, where nothing else is known too",
                    tensor=frozenset({1}),
                    below=90 * GIB,
                    unknown=True,
                    arguments={"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 1024},
                ),
            ),
        ),
        Profile(name="custom", version=1, max_model_len=None, max_num_seqs=32),
    )
}


def profiles() -> tuple[Profile, ...]:
    """Return every profile."""
    return tuple(_PROFILES.values())


def profile_for(model_name: str) -> Profile:
    """Return the profile that ``spec.model.name`` selects.

    Raises:
        ValueError: no such profile; the message lists those there are.
    """
    try:
        return _PROFILES[model_name]
    except KeyError:
        raise ValueError(f"spec.model.name {model_name!r} has no profile: use one of {', '.join(_PROFILES)}") from None
