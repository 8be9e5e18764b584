"""Does a model fit? The memory that vLLM takes on each accelerator, before anything is started. Pure.

::

    budget = memory x gpu_memory_utilization
    KV cache = budget - weights - profiling peak - CUDA graphs
    fits, if the KV cache holds one sequence of max_model_len tokens

That last line is vLLM's own condition for starting. Fewer bytes than ``max_model_len x max_num_seqs``
is no failure: sequences are seldom that long, and those that find no room wait.

The KV cache is counted as vLLM's hybrid manager allocates it. A layer with full attention keeps the
whole context. A layer with a sliding window keeps the window and what is in flight, however long the
context is. Both take blocks of the same size from one pool.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gptoss_api.application import EngineArgument
from gptoss_api.architecture import Architecture
from gptoss_api.hardware import GIB, Accelerator, Family

SMALLEST_CONTEXT = 256
"""Shortest ``spec.engine.maxModelLen``, in tokens."""

_DEFAULT_UTILIZATION = 0.92
"""vLLM 0.32, ``CacheConfig.gpu_memory_utilization``."""
_BLOCK_TOKENS = 16
_FIXED_BYTES = 0.55 * GIB
"""Libraries, communication buffers and allocator slack.

This and the next two are fitted, as upper bounds, to the logs that ``tests/unit/api/test_fit.py`` cites.
"""
_SAMPLER_BYTES = 37
"""For each sequence and entry of the vocabulary: logits, their sorted copy with indices, sums and masks."""
_ACTIVATION_BYTES = 256 * 1024
"""For each token of a batch: inputs and outputs of the top four experts, attention, residuals."""
_GRAPH_BYTES = 0.6 * GIB
"""CUDA graphs up to 1,024 tokens, which vLLM counts against the budget since 0.21. An assumption: no figure
for gpt-oss was found; logs of other models say 0.17 to 0.58 GiB."""
_UNBUDGETED_BYTES = 0.6 * GIB
"""What the driver and the process hold before vLLM measures what is free."""
_HIGHEST_UTILIZATION = 0.98
_HIGHEST_GROUP_UTILIZATION = 0.94
"""For tensor groups on CUDA; on AMD the recipe itself takes 0.95. "When running TP2 on H100, set your gpu memory
utilization below 0.95 as that will also cause OOM" (https://github.com/vllm-project/recipes/blob/main/OpenAI/GPT-OSS.md)."""


class Verdict(StrEnum):
    """Whether a model fits."""

    FITS = "Fits"
    UNVERIFIED = "Unverified"
    """By its bytes it fits, but vLLM's recipes don't say that gpt-oss runs on this accelerator."""
    FITS_WITH_REDUCED_CONTEXT = "FitsWithReducedContext"
    DOES_NOT_FIT = "DoesNotFit"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What an engine is asked to hold.

    Attributes:
        max_model_len: longest context in tokens.
        max_num_seqs: sequences worked on at once.
        max_num_batched_tokens: tokens of one step.
        utilization: share of the memory that the engine may take.
        tensor: accelerators that share each layer.
        pipeline: stages that share the layers.
        expert: accelerators hold whole experts.
        kv_element_bytes: 2 for bfloat16, 1 for fp8.
        block_tokens: tokens of one block of the KV cache.
        graphs: CUDA graphs are captured.
        steps_in_flight: one for each stage, and one more with asynchronous scheduling.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    utilization: float
    tensor: int = 1
    pipeline: int = 1
    expert: bool = False
    kv_element_bytes: int = 2
    block_tokens: int = _BLOCK_TOKENS
    graphs: bool = True
    steps_in_flight: int = 2

    def on(self, accelerator: Accelerator) -> str:
        """How many of an accelerator it is spread over, for messages."""
        stages = f" in {self.pipeline} stages" if self.pipeline > 1 else ""
        return f"{self.tensor * self.pipeline} x {accelerator.name}{stages}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each accelerator.

    Attributes:
        memory: what there is.
        budget: what the engine may take of it.
        weights: the model.
        working: profiling peak: activations, sampler, libraries.
        graphs: CUDA graphs.
        kv_available: what is left for the KV cache; negative if nothing is.
        kv_sequence: what one sequence of the full context takes.
        kv_all: what ``max_num_seqs`` sequences of the full context would take.
        largest_context: longest context that one sequence may have, at most the model's; 0 if none.
    """

    memory: int
    budget: int
    weights: int
    working: int
    graphs: int
    kv_available: int
    kv_sequence: int
    kv_all: int
    largest_context: int

    @property
    def full_sequences(self) -> float:
        """Sequences of the full context that fit at once, as vLLM's log tells ("Maximum concurrency")."""
        return max(0.0, self.kv_available / self.kv_sequence)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The answer.

    Attributes:
        verdict: whether it fits.
        message: why, and what would fit, in one or two sentences.
        estimate: the bytes; None where memory is not what is wrong.
    """

    verdict: Verdict
    message: str
    estimate: Estimate | None


def load_of(arguments: Mapping[str, EngineArgument], architecture: Architecture, accelerator: Accelerator) -> Load:
    """Return what an engine with these vLLM arguments holds, vLLM's defaults filled in.

    Source of the defaults: vLLM 0.32, ``EngineArgs.get_batch_defaults`` for the API server.
    """
    roomy = accelerator.memory_bytes >= 70 * GIB and not accelerator.name.startswith("A100")
    huge = accelerator.memory_bytes >= 160 * GIB
    tokens = 16384 if huge else 8192 if roomy else 2048
    cache = str(arguments.get("kv_cache_dtype", "auto"))
    pipeline = int(arguments.get("pipeline_parallel_size", 1))
    return Load(
        max_model_len=int(arguments.get("max_model_len", architecture.max_context)),
        max_num_seqs=int(arguments.get("max_num_seqs", 1024 if roomy else 256)),
        max_num_batched_tokens=int(arguments.get("max_num_batched_tokens", tokens)),
        utilization=float(arguments.get("gpu_memory_utilization", _DEFAULT_UTILIZATION)),
        tensor=int(arguments.get("tensor_parallel_size", 1)),
        pipeline=pipeline,
        expert=bool(arguments.get("enable_expert_parallel", False)),
        kv_element_bytes=1 if cache.startswith("fp8") else 2,
        block_tokens=int(arguments.get("block_size", _BLOCK_TOKENS)),
        graphs=not arguments.get("enforce_eager", False) and accelerator.family is not Family.CPU,
        steps_in_flight=pipeline + (0 if arguments.get("async_scheduling") is False else 1),
    )


def estimate(
    architecture: Architecture, accelerator: Accelerator, load: Load, *, checkpoint_bytes: int | None = None
) -> Estimate:
    """Return the bytes that an engine takes on each accelerator.

    Args:
        checkpoint_bytes: size of the safetensors files, where known. Those of a checkpoint that is not
            the published MXFP4 one (a fine-tuned copy in bfloat16) replace what the shape says.
    """
    weights = architecture.loaded_bytes(
        tensor=load.tensor, padding=accelerator.padding, pipeline=load.pipeline, expert=load.expert
    )
    if checkpoint_bytes is not None and not _as_published(architecture, checkpoint_bytes):
        weights = -(-checkpoint_bytes // (load.tensor * load.pipeline))
    budget = int(accelerator.memory_bytes * load.utilization)
    peak = max(
        _SAMPLER_BYTES * architecture.vocabulary * load.max_num_seqs, _ACTIVATION_BYTES * load.max_num_batched_tokens
    )
    working = int(_FIXED_BYTES) + peak
    graphs = int(_GRAPH_BYTES) if load.graphs else 0
    available = budget - weights - working - graphs
    return Estimate(
        memory=accelerator.memory_bytes,
        budget=budget,
        weights=weights,
        working=working,
        graphs=graphs,
        kv_available=available,
        kv_sequence=kv_bytes(architecture, load, load.max_model_len),
        kv_all=kv_bytes(architecture, load, load.max_model_len) * load.max_num_seqs,
        largest_context=_largest_context(architecture, load, available),
    )


def kv_bytes(architecture: Architecture, load: Load, context: int) -> int:
    """Return the bytes of KV cache that one sequence of ``context`` tokens takes on each accelerator.

    Source: vLLM 0.32, ``FullAttentionSpec`` and ``SlidingWindowSpec.max_admission_blocks_per_request``:
    the window's last 127 tokens, the tokens in flight, and one block more, for windows begin anywhere.
    """
    in_flight = load.max_num_batched_tokens * load.steps_in_flight
    windowed = min(architecture.sliding_window - 1 + in_flight, context)
    full_blocks = -(-context // load.block_tokens)
    sliding_blocks = -(-windowed // load.block_tokens) + 1
    page = load.block_tokens * architecture.kv_bytes_per_token(tensor=load.tensor, element_bytes=load.kv_element_bytes)
    # One block of the pool holds a page of as many layers as either kind has.
    group = -(-architecture.stage_layers(load.pipeline) // 2)
    return (full_blocks + sliding_blocks) * page * group


def assess(
    architecture: Architecture,
    accelerator: Accelerator,
    load: Load,
    *,
    checkpoint_bytes: int | None = None,
    others: tuple[Accelerator, ...] = (),
) -> Fit:
    """Say whether a model fits on an accelerator, and if not, what would.

    Args:
        others: accelerators that may be named as large enough, in order of preference.
    """
    refusal = _refusal(architecture, accelerator, load)
    if refusal is not None:
        return Fit(verdict=Verdict.DOES_NOT_FIT, message=refusal, estimate=None)
    found = estimate(architecture, accelerator, load, checkpoint_bytes=checkpoint_bytes)
    where = f"{architecture.name} on {load.on(accelerator)}"
    if found.largest_context >= load.max_model_len:
        message = (
            f"{where}: {_gib(found.kv_available)} are left for the KV cache, enough for {found.full_sequences:.1f} "
            f"sequences of {load.max_model_len} tokens at once."
        )
        if accelerator.verified:
            return Fit(verdict=Verdict.FITS, message=message, estimate=found)
        warning = f" vLLM's recipes do not say that gpt-oss runs on {accelerator.name}: try it before you rely on it."
        return Fit(verdict=Verdict.UNVERIFIED, message=message + warning, estimate=found)
    remedies = _remedies(architecture, accelerator, load, checkpoint_bytes, others)
    if found.largest_context >= SMALLEST_CONTEXT:
        alternatives = f", or one of: {'; '.join(remedies)}" if remedies else ""
        return Fit(
            verdict=Verdict.FITS_WITH_REDUCED_CONTEXT,
            message=f"{where}: one sequence of {load.max_model_len} tokens takes {_gib(found.kv_sequence)} of KV cache "
            f"and {_gib(found.kv_available)} are left; set spec.engine.maxModelLen to "
            f"{_round_down(found.largest_context)} or less{alternatives}.",
            estimate=found,
        )
    need = found.weights + found.working + found.graphs + kv_bytes(architecture, load, SMALLEST_CONTEXT)
    would = f"what would fit: {'; '.join(remedies)}" if remedies else "nothing that is known here is large enough"
    return Fit(
        verdict=Verdict.DOES_NOT_FIT,
        message=f"{where}: the engine needs at least {_gib(need)} on each ({_gib(found.weights)} of weights) and may "
        f"take {_gib(found.budget)} of {_gib(found.memory)}; {would}.",
        estimate=found,
    )


def _refusal(architecture: Architecture, accelerator: Accelerator, load: Load) -> str | None:
    """Say what is wrong besides the amount of memory."""
    if not accelerator.supported:
        return (
            f"{accelerator.name} has compute capability {accelerator.capability} and vLLM's MXFP4 kernels need 8.0; "
            "use an accelerator of the generation Ampere or later"
        )
    if load.tensor not in architecture.tensor_sizes:
        sizes = ", ".join(str(size) for size in architecture.tensor_sizes)
        return (
            f"spec.parallelism.tensor {load.tensor} does not divide {architecture.name}'s {architecture.kv_heads} "
            f"key-value heads; use one of {sizes}"
        )
    if accelerator.family is Family.CPU and load.tensor > 1:
        return "spec.parallelism.tensor must be 1 on a CPU"
    highest = _highest_utilization(accelerator, load.tensor)
    if load.utilization > highest:
        return (
            f"gpu-memory-utilization {load.utilization:g} leaves too little of each {accelerator.name} to driver and "
            f"communication; use {highest:g} or less"
        )
    return None


def _highest_utilization(accelerator: Accelerator, tensor: int) -> float:
    if accelerator.family is Family.CPU:
        return 1.0
    if tensor > 1 and accelerator.family not in {Family.CDNA3, Family.CDNA4}:
        return _HIGHEST_GROUP_UTILIZATION
    return min(_HIGHEST_UTILIZATION, math.floor((1 - _UNBUDGETED_BYTES / accelerator.memory_bytes) * 100) / 100)


def _remedies(
    architecture: Architecture,
    accelerator: Accelerator,
    load: Load,
    checkpoint_bytes: int | None,
    others: tuple[Accelerator, ...],
) -> tuple[str, ...]:
    """Return the changes that make it fit, the cheapest first, at most three."""

    def holds(on: Accelerator, with_: Load) -> bool:
        return _context(architecture, on, with_, checkpoint_bytes) >= load.max_model_len

    highest = min(0.95, _highest_utilization(accelerator, load.tensor))
    changes = [
        (f"spec.engine.maxNumSeqs {seqs}", replace(load, max_num_seqs=seqs))
        for seqs in (128, 64, 32, 16, 8)
        if seqs < load.max_num_seqs
    ]
    if load.utilization < highest:
        changes.append((f"spec.engine.gpuMemoryUtilization {highest:g}", replace(load, utilization=highest)))
    found = [text for text, changed in changes if holds(accelerator, changed)][:1] or _squeezed(
        architecture, accelerator, load, checkpoint_bytes
    )
    if accelerator.family is not Family.CPU:
        wider = (
            replace(load, tensor=size, utilization=min(load.utilization, _highest_utilization(accelerator, size)))
            for size in architecture.tensor_sizes
            if size > load.tensor
        )
        found += [f"spec.parallelism.tensor {each.tensor}" for each in wider if holds(accelerator, each)][:1]
    found += [load.on(each) for each in others if each.verified and holds(each, load)][:1]
    return tuple(found)


def _squeezed(
    architecture: Architecture, accelerator: Accelerator, load: Load, checkpoint_bytes: int | None
) -> list[str]:
    """Return the settings that leave the most to the KV cache, if any context fits with them."""
    utilization = max(load.utilization, min(0.95, _highest_utilization(accelerator, load.tensor)))
    tight = replace(load, max_num_seqs=8, max_num_batched_tokens=512, utilization=utilization, graphs=False)
    context = _context(architecture, accelerator, tight, checkpoint_bytes)
    if context < SMALLEST_CONTEXT:
        return []
    return [
        f"spec.engine with maxModelLen {_round_down(min(context, load.max_model_len))}, maxNumSeqs 8, "
        f'gpuMemoryUtilization {utilization:g} and extraArgs enforce-eager "true", max-num-batched-tokens 512'
    ]


def _context(architecture: Architecture, accelerator: Accelerator, load: Load, checkpoint_bytes: int | None) -> int:
    """Return the longest context that fits, 0 if none does."""
    if _refusal(architecture, accelerator, load) is not None:
        return 0
    return estimate(architecture, accelerator, load, checkpoint_bytes=checkpoint_bytes).largest_context


def _largest_context(architecture: Architecture, load: Load, available: int) -> int:
    low, high = 0, architecture.max_context
    while low < high:
        middle = (low + high + 1) // 2
        if kv_bytes(architecture, load, middle) <= available:
            low = middle
        else:
            high = middle - 1
    return low


def _as_published(architecture: Architecture, checkpoint_bytes: int) -> bool:
    """A few metadata bytes apart, it is the MXFP4 checkpoint."""
    return abs(checkpoint_bytes - architecture.checkpoint_bytes) < 0.02 * architecture.checkpoint_bytes


def _round_down(context: int) -> int:
    step = 1024 if context >= 8192 else SMALLEST_CONTEXT
    return context // step * step


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB"
