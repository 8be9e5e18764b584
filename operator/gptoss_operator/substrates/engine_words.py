"""What engines say when they die, translated into a reason and an advice. Pure.

The patterns are vLLM's, PyTorch's, NCCL's and Ray's own sentences. The first that fits counts, so the
particular stand before the general.
"""

import re

from gptoss_api.conditions import Reason
from gptoss_operator.plan.observation import Failure

LONGEST = 400
_ANSI = re.compile(r"\x1b\[[0-9;]*m")

_WORDS: tuple[tuple[str, Reason, str], ...] = (
    (
        r"KV cache is needed, which is larger than the available|estimated maximum model length",
        Reason.OUT_OF_ACCELERATOR_MEMORY,
        "lower spec.engine.maxModelLen or raise spec.parallelism.tensor",
    ),
    (
        r"No available memory for the cache blocks|Free memory on device .* is less than desired",
        Reason.OUT_OF_ACCELERATOR_MEMORY,
        "the weights leave no room: raise spec.parallelism.tensor, choose larger accelerators, or free them of others",
    ),
    (
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|HIP out of memory|CUDA error: out of memory",
        Reason.OUT_OF_ACCELERATOR_MEMORY,
        "lower spec.engine.maxModelLen or spec.engine.maxNumSeqs, or raise spec.parallelism.tensor",
    ),
    (
        r"no kernel image is available|not supported on this (GPU|device)|requires? (GPU )?compute capability"
        r"|Unsupported .*(kernel|backend|arch)|sm_\d+ is not",
        Reason.UNSUPPORTED_HARDWARE,
        "this accelerator has no kernels for the model: choose another with spec.accelerator.product",
    ),
    (
        r"CUDA driver version is insufficient|driver .* is too old|forward compatibility was attempted",
        Reason.DRIVER_TOO_OLD,
        "an administrator updates the nodes' driver or uses a serving image for it",
    ),
    (
        r"libcuda\.so|No CUDA GPUs are available|Found no NVIDIA driver|Failed to infer device type|No HIP GPUs",
        Reason.ACCELERATOR_MISSING,
        "the pod sees no accelerator: check the device plugin, and spec.pod.runtimeClassName if nodes need one",
    ),
    (
        r"NCCL (error|WARN)|ncclSystemError|ncclUnhandled|RCCL",
        Reason.COMMUNICATION_FAILED,
        "accelerators can't speak to each other: check their links and kubeRay.sharedMemorySize",
    ),
    (
        r"Bus error|SIGBUS|shared memory",
        Reason.COMMUNICATION_FAILED,
        "shared memory is too small: an administrator raises kubeRay.sharedMemorySize",
    ),
    (
        r"No space left on device",
        Reason.VOLUME_FULL,
        "a volume of the pod is full: an administrator raises its size limit",
    ),
    (
        r"unexpected keyword argument|unrecognized arguments|is not a valid|Extra inputs are not permitted"
        r"|ValueError: .*(argument|must be|divisible|greater than the derived max_model_len)",
        Reason.INVALID_ENGINE_ARGUMENT,
        "correct spec.engine (status.engine.line shows what the engine was given)",
    ),
    (
        r"killed due to memory pressure|OutOfMemoryError: Task was killed|node running low on memory|(?-i:\bOOM\b)",
        Reason.OUT_OF_MEMORY,
        "raise spec.pod.resources.memory",
    ),
    (
        r"ModuleNotFoundError|ImportError|No module named",
        Reason.IMAGE_INCOMPLETE,
        "the serving image lacks a package: an administrator corrects kubeRay.image",
    ),
    (
        r"Permission denied|Read-only file system",
        Reason.IMAGE_INCOMPLETE,
        "the image writes where it may not: an administrator uses a serving image that runs as any user",
    ),
    (
        r"ActorDiedError|The actor died|Worker exit type: SYSTEM_ERROR|EngineDeadError|Engine core .* (failed|died)",
        Reason.ENGINE_CRASHED,
        "look at the pod's log for what came before",
    ),
)


def translated(text: str) -> Failure | None:
    """Return the reason and the advice for an engine's last words, or None for words that say nothing known."""
    plain = _ANSI.sub("", text)
    for pattern, reason, advice in _WORDS:
        if found := re.search(pattern, plain, re.IGNORECASE):
            return Failure(reason=reason, message=f"{_line_around(plain, found.start())[:LONGEST]}: {advice}")
    return None


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in _ANSI.sub("", text).splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else ""


def _line_around(text: str, position: int) -> str:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return text[start : end if end >= 0 else len(text)].strip().rstrip(".")
