"""Whether a deployment fits the accelerators of its cluster, and which profile they ask for.

Unknown is not zero: a cluster that tells nothing of its accelerators stops no start. One that tells
enough to know that no node can hold the model does, before weights are fetched or a GPU is taken. What
has answered once is never stopped: the engine knows better than an estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptoss_api.architecture import Architecture, architecture_of
from gptoss_api.conditions import Reason
from gptoss_api.deployment import GptOssDeploymentSpec
from gptoss_api.deployment_status import FitStatus
from gptoss_api.engine import EngineConfig, resolve
from gptoss_api.fit import Estimate, Fit, Verdict, assess, load_of
from gptoss_api.hardware import GIB, Accelerator, accelerators
from gptoss_api.profiles import Profile
from gptoss_operator.plan.observation import Hardware, Observation, Trusted

_STATUS = {
    Verdict.FITS: ("True", Reason.FITS),
    Verdict.UNVERIFIED: ("Unknown", Reason.UNVERIFIED),
    Verdict.FITS_WITH_REDUCED_CONTEXT: ("False", Reason.FITS_WITH_REDUCED_CONTEXT),
    Verdict.DOES_NOT_FIT: ("False", Reason.DOES_NOT_FIT),
}


_PARTITIONS = (16 * GIB, 24 * GIB, 80 * GIB)
"""Memory of parts of a larger card, one below each bound that a profile has."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is told of the fit: a condition's status, reason and message, and the estimate behind it, if there is one.

    ``blocks``: it must not be started.
    """

    status: str
    reason: str
    message: str
    estimate: FitStatus | None = None
    blocks: bool = False


def engine_for(spec: GptOssDeploymentSpec, profile: Profile, hardware: Hardware | None) -> EngineConfig:
    """Resolve the engine for the cluster's accelerators; where they ask for different ones, for none of them.

    Raises:
        ValueError: the specification can't be resolved.
    """
    cards = [card for kind in (hardware.kinds if hardware is not None else ()) for card in kind.candidates]
    engines = [resolve(spec, profile, card) for card in cards]
    if engines and all(engine == engines[0] for engine in engines):
        return engines[0]
    return resolve(spec, profile)


def engines_for_other_hardware(spec: GptOssDeploymentSpec, profile: Profile) -> Iterator[EngineConfig]:
    """Yield what this very specification would be resolved to on any accelerator that is known."""
    yield resolve(spec, profile)
    for card in accelerators():
        for memory in (card.memory_bytes, *_PARTITIONS):
            yield resolve(spec, profile, card.with_memory(memory))


def fit_of(observed: Observation, engine: EngineConfig) -> Finding | None:
    """Say whether the deployment fits. None while the cluster has not been looked at."""
    hardware = observed.hardware
    if hardware is None:
        return None
    model = observed.deployment.spec.model.name
    architecture = architecture_of(model)
    if architecture is None:
        return _unknown(
            Reason.MODEL_UNKNOWN, f"The sizes of spec.model.name {model} are not known, so its fit is not either."
        )
    request = observed.deployment.spec.accelerator
    if request is not None and request.vendor == "cpu":
        return _unknown(
            Reason.HARDWARE_UNKNOWN, "spec.accelerator.vendor is cpu: what an engine takes on a CPU is not estimated."
        )
    tensor = observed.deployment.spec.parallelism.tensor
    if not hardware.kinds:
        return _unknown(
            Reason.HARDWARE_UNKNOWN,
            f"No node of {hardware.where} tells of an accelerator that is known here"
            + (f" (it has {', '.join(hardware.strangers)})" if hardware.strangers else "")
            + f"; {hardware.how_to_tell}.",
        )
    roomy = [kind for kind in hardware.kinds if kind.count is None or kind.count >= tensor]
    if not roomy:
        most = max(kind.count or 0 for kind in hardware.kinds)
        return _on_no_node(
            hardware,
            f"spec.parallelism.tensor is {tensor} and no node of {hardware.where} has so many accelerators (the most "
            f"is {most}); set it to {max(size for size in architecture.tensor_sizes if size <= most)} or less, or have "
            "it run elsewhere.",
        )
    cards = list(dict.fromkeys(card for kind in roomy for card in kind.candidates))
    return _together(hardware, [(card, _assessed(observed, architecture, engine, card)) for card in cards])


def _assessed(observed: Observation, architecture: Architecture, engine: EngineConfig, card: Accelerator) -> Fit:
    trust = observed.trust
    return assess(
        architecture,
        card,
        load_of(engine.arguments, architecture, card),
        checkpoint_bytes=trust.weight_bytes if isinstance(trust, Trusted) else None,
        others=accelerators(),
    )


def _together(hardware: Hardware, fits: list[tuple[Accelerator, Fit]]) -> Finding:
    """One answer from what each kind of accelerator says."""
    verdicts = {fit.verdict for _, fit in fits}
    if len(verdicts) == 1:
        # Candidates stand in order of memory: the smallest one's message holds for all.
        card, fit = fits[0]
        status, reason = _STATUS[fit.verdict]
        estimate = _told(card, fit.estimate) if fit.estimate is not None else None
        if fit.verdict is Verdict.DOES_NOT_FIT:
            return replace(_on_no_node(hardware, fit.message), estimate=estimate)
        return Finding(status=status, reason=reason, message=fit.message, estimate=estimate)
    told = "; ".join(f"{card.name}: {fit.verdict}" for card, fit in fits)
    return _unknown(
        Reason.DEPENDS_ON_NODE,
        f"In {hardware.where} are, or may be, accelerators of different kinds, and any may be taken ({told}); have it "
        f"run where there is one kind, or {hardware.how_to_tell}.",
    )


def _told(card: Accelerator, estimate: Estimate) -> FitStatus:
    return FitStatus(
        accelerator=card.name,
        memory_bytes=estimate.memory,
        weights_bytes=estimate.weights,
        kv_cache_bytes=estimate.kv_available,
        largest_context=estimate.largest_context,
    )


def _on_no_node(hardware: Hardware, message: str) -> Finding:
    if hardware.strangers:
        return _unknown(
            Reason.DEPENDS_ON_NODE,
            f"{message} In {hardware.where} is also {', '.join(hardware.strangers)}, which is not known here.",
        )
    message = f"{message} {hardware.unseen}".rstrip()
    return Finding(status="False", reason=Reason.DOES_NOT_FIT, message=message, blocks=True)


def _unknown(reason: Reason, message: str) -> Finding:
    return Finding(status="Unknown", reason=reason, message=message)
