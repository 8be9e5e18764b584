"""Accelerators that gpt-oss may meet: memory, compute capability, and what vLLM says of them.

Memory is what a process sees, as PyTorch reports it ("has a total capacity of …"), a little less than
what drivers and data sheets say. Where no such report was at hand, it is the driver's total less
`_UNSEEN_GIB`, the largest difference among the others. Compute capabilities:
https://developer.nvidia.com/cuda-gpus. Verified: the ``hardware`` list and the A100 section of vLLM's
recipes (https://github.com/vllm-project/recipes, models/openai/gpt-oss-*.yaml, OpenAI/GPT-OSS.md).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gptoss_api.architecture import Padding

GIB = 1024**3
_UNSEEN_GIB = 0.85
"""Driver's total less PyTorch's: 0.60 (H200) to 0.85 (A100-80GB: 80.00 and 79.15)."""
_UNSEEN_ROCM_GIB = 0.31
"""192 GiB are seen as 191.69 by PyTorch on an MI300X."""
_SAME_MEMORY = 0.03
"""Difference, as a share, up to which a driver's figure is that of the catalogue."""
_MINIMUM_CAPABILITY = (8, 0)
"""Lowest CUDA capability for MXFP4. Source: vLLM 0.32, ``GptOssMxfp4Config.get_min_capability``."""


class Family(StrEnum):
    """Generations that engine settings differ for."""

    OLDER = "Older"
    AMPERE = "Ampere"
    ADA = "Ada"
    HOPPER = "Hopper"
    BLACKWELL = "Blackwell"
    BLACKWELL_RTX = "BlackwellRTX"
    CDNA3 = "CDNA3"
    CDNA4 = "CDNA4"
    XE2 = "Xe2"
    CPU = "CPU"


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind of accelerator.

    Attributes:
        name: how people name it here.
        family: its generation.
        memory_bytes: what one process sees; 0 where it must be told (a CPU's share, or nobody has published it).
        capability: CUDA compute capability, the LLVM target of an AMD one, or Intel's name of its own.
        ray_types: what Ray calls it in ``accelerator_type:…``.
        aliases: further names whose words a product label may hold.
        verified: vLLM's recipes say that gpt-oss runs on it.
        source: where the memory is from.
    """

    name: str
    family: Family
    memory_bytes: int
    capability: str
    ray_types: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    verified: bool = False
    source: str = ""

    @property
    def padding(self) -> Padding:
        """What vLLM's kernels round the experts' sizes up to here (the largest of those it may choose)."""
        match self.family:
            case Family.CPU:
                return Padding(intermediate=32, hidden=32)
            case Family.CDNA3 | Family.CDNA4:
                return Padding(intermediate=256, hidden=256)
            case _:
                return Padding(intermediate=128, hidden=256)

    @property
    def supported(self) -> bool:
        """vLLM has kernels for MXFP4 on it."""
        return self.family is not Family.OLDER

    def with_memory(self, memory_bytes: int) -> "Accelerator":
        """Return it with another amount of memory: a partition, or what a CPU may use."""
        return replace(self, memory_bytes=memory_bytes)


def accelerators() -> tuple[Accelerator, ...]:
    """Return the catalogue, in the order that people look things up in it."""
    return tuple(_CATALOGUE.values())


def accelerator_named(name: str) -> Accelerator:
    """Return an accelerator by its name, upper or lower case.

    Raises:
        ValueError: it is not in the catalogue; the message lists what is.
    """
    try:
        return _CATALOGUE[name.upper()]
    except KeyError:
        names = ", ".join(each.name for each in _CATALOGUE.values())
        raise ValueError(f"accelerator {name!r} is not known: use one of {names}") from None


def accelerators_of_ray_type(ray_type: str) -> tuple[Accelerator, ...]:
    """Return what Ray may mean by ``accelerator_type:…``, the smallest memory first; nothing if unknown."""
    found = (each for each in _CATALOGUE.values() if ray_type in each.ray_types)
    return tuple(sorted(found, key=lambda each: each.memory_bytes))


def accelerators_of_product(product: str, *, driver_mib: int | None = None) -> tuple[Accelerator, ...]:
    """Return what a node's product label may mean, such as NVIDIA-H100-80GB-HBM3 or AMD_Instinct_MI300X_OAM.

    A label holds all words of the accelerator's name. A partition (MIG) is the card with less memory, so it
    needs ``driver_mib``: what the driver counts on each, in MiB.
    """
    words = set(re.split(r"[-_ ]", product.upper()))
    found = [each for each in _CATALOGUE.values() if any(_words(name) <= words for name in (each.name, *each.aliases))]
    if driver_mib is not None:
        found = [_as_told(each, product, driver_mib) for each in found]
    elif "MIG" in words:
        return ()
    return tuple(sorted(dict.fromkeys(found), key=lambda each: each.memory_bytes))


def accelerator_by_figures(name: str, *, capability: str, driver_mib: int) -> Accelerator | None:
    """Return a CUDA accelerator that is not in the catalogue, from what its driver tells; None if that says nothing."""
    major, _, minor = capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        return None
    family = _family(int(major), int(minor))
    memory = _seen_bytes(driver_mib, _UNSEEN_GIB)
    if family is None or memory <= 0:
        return None
    return Accelerator(
        name=name, family=family, memory_bytes=memory, capability=capability, source="the labels of its node"
    )


def _as_told(card: Accelerator, product: str, driver_mib: int) -> Accelerator:
    """The catalogue's figure where the driver's agrees, else the driver's: a partition, or a variant of the card."""
    unseen = _UNSEEN_ROCM_GIB if card.family in {Family.CDNA3, Family.CDNA4} else _UNSEEN_GIB
    seen = _seen_bytes(driver_mib, unseen)
    same = abs(seen - card.memory_bytes) <= _SAME_MEMORY * card.memory_bytes
    return card if same else replace(card, name=product, memory_bytes=seen)


def _seen_bytes(driver_mib: int, unseen_gib: float) -> int:
    return max(0, int((driver_mib / 1024 - unseen_gib) * GIB))


def _words(name: str) -> set[str]:
    return set(name.upper().split("-"))


def _family(major: int, minor: int) -> Family | None:
    """The generation of a CUDA compute capability; of a newer one within a known major, that one's."""
    if (major, minor) < _MINIMUM_CAPABILITY:
        return Family.OLDER
    return _FAMILIES.get((major, minor)) or _FAMILIES.get((major, 0))


def _cuda(
    name: str,
    capability: str,
    *,
    seen: float | None = None,
    driver: int | None = None,
    source: str,
    ray_types: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    verified: bool = False,
) -> Accelerator:
    """``seen``: GiB that PyTorch reports; ``driver``: MiB that nvidia-smi does."""
    gib = seen if seen is not None else (driver or 0) / 1024 - _UNSEEN_GIB
    major, minor = (int(part) for part in capability.split("."))
    return Accelerator(
        name=name,
        family=_FAMILIES[major, minor] if (major, minor) >= _MINIMUM_CAPABILITY else Family.OLDER,
        memory_bytes=int(gib * GIB),
        capability=capability,
        ray_types=ray_types,
        aliases=aliases,
        verified=verified,
        source=source,
    )


def _rocm(
    name: str, family: Family, target: str, gib: int, *, ray_types: tuple[str, ...], verified: bool
) -> Accelerator:
    return Accelerator(
        name=name,
        family=family,
        memory_bytes=int((gib - _UNSEEN_ROCM_GIB) * GIB),
        capability=target,
        ray_types=ray_types,
        verified=verified,
        source="https://rocm.docs.amd.com/en/latest/reference/gpu-specs.html",
    )


_FAMILIES: Mapping[tuple[int, int], Family] = {
    (8, 0): Family.AMPERE,
    (8, 6): Family.AMPERE,
    (8, 9): Family.ADA,
    (9, 0): Family.HOPPER,
    (10, 0): Family.BLACKWELL,
    (10, 3): Family.BLACKWELL,
    (12, 0): Family.BLACKWELL_RTX,
    (12, 1): Family.BLACKWELL_RTX,
}
_SMI = "nvidia-smi of the card"

_CATALOGUE: Mapping[str, Accelerator] = {
    each.name.upper(): each
    for each in (
        _cuda("T4", "7.5", driver=15360, source=_SMI, ray_types=("T4",)),
        _cuda("V100-16GB", "7.0", driver=16384, source=_SMI, ray_types=("V100",)),
        _cuda("V100-32GB", "7.0", driver=32768, source=_SMI, ray_types=("V100",)),
        _cuda("A10", "8.6", seen=21.99, source="https://github.com/zai-org/CogVLM/issues/236", ray_types=("A10",)),
        _cuda("A10G", "8.6", driver=23028, source=_SMI, ray_types=("A10G",)),
        _cuda(
            "RTX-3090",
            "8.6",
            seen=23.58,
            source="https://github.com/vllm-project/vllm/issues/10517",
            ray_types=("GeForce-RTX-3090",),
        ),
        _cuda("A100-40GB", "8.0", driver=40960, source=_SMI, ray_types=("A100", "A100-40G"), verified=True),
        _cuda(
            "A100-80GB",
            "8.0",
            seen=79.15,
            source="https://github.com/vllm-project/vllm/issues/4408",
            ray_types=("A100", "A100-80G"),
            verified=True,
        ),
        _cuda("L4", "8.9", driver=23034, source=_SMI, ray_types=("L4",)),
        _cuda(
            "RTX-4090",
            "8.9",
            seen=23.52,
            source="https://github.com/Soul-AILab/SoulX-FlashTalk/issues/5",
            ray_types=("GeForce-RTX-4090",),
        ),
        _cuda("L40", "8.9", seen=44.40, source="https://github.com/QwenLM/Qwen3-VL/issues/2097", ray_types=("L40",)),
        _cuda("L40S", "8.9", driver=46068, source=_SMI, ray_types=("L40S",)),
        _cuda(
            "H100-80GB",
            "9.0",
            driver=81559,
            source="https://github.com/vllm-project/vllm/issues/27508",
            ray_types=("H100",),
            aliases=("H100-PCIe",),
            verified=True,
        ),
        _cuda("H100-NVL", "9.0", driver=95830, source=_SMI, ray_types=("H100",), verified=True),
        _cuda("H200", "9.0", driver=143771, source=_SMI, ray_types=("H200",), verified=True),
        _cuda(
            "B200",
            "10.0",
            seen=178.35,
            source="https://github.com/unslothai/unsloth/issues/3411",
            ray_types=("B200",),
            verified=True,
        ),
        _cuda("GB200", "10.0", driver=189471, source=_SMI, ray_types=("GB200",)),
        _cuda("B300", "10.3", driver=275040, source=_SMI, ray_types=("B300",)),
        _cuda("GB300", "10.3", driver=284208, source=_SMI, ray_types=("GB300",)),
        _cuda(
            "RTX-5080",
            "12.0",
            seen=15.48,
            source="https://github.com/vllm-project/vllm/issues/14452",
            ray_types=("GeForce-RTX-5080",),
        ),
        _cuda(
            "RTX-5090",
            "12.0",
            driver=32607,
            source="https://github.com/vllm-project/vllm/issues/34076",
            ray_types=("GeForce-RTX-5090",),
        ),
        _cuda("RTX-PRO-6000", "12.0", driver=97887, source=_SMI, ray_types=("RTX-PRO-6000",)),
        _rocm(
            "MI300X",
            Family.CDNA3,
            "gfx942",
            192,
            ray_types=("AMD-Instinct-MI300X-OAM", "AMD-Instinct-MI300X-HF"),
            verified=True,
        ),
        _rocm("MI325X", Family.CDNA3, "gfx942", 256, ray_types=("AMD-Instinct-MI325X-OAM",), verified=True),
        _rocm("MI350X", Family.CDNA4, "gfx950", 288, ray_types=("AMD-Instinct-MI350X-OAM",), verified=False),
        _rocm("MI355X", Family.CDNA4, "gfx950", 288, ray_types=("AMD-Instinct-MI355X-OAM",), verified=True),
        Accelerator(
            name="Arc-Pro-B60",
            family=Family.XE2,
            memory_bytes=0,
            capability="Xe2",
            source="must be told; that gpt-oss runs: https://github.com/vllm-project/vllm/pull/27786",
        ),
        Accelerator(
            name="CPU",
            family=Family.CPU,
            memory_bytes=0,
            capability="",
            source="what the engine may use must be told",
        ),
    )
}
