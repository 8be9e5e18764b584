"""Which arguments an engine is to have: those it runs with, unless the specification wants others."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from gptoss_api.application import EngineArgument
from gptoss_api.engine import EngineConfig, serving_arguments
from gptoss_api.profiles import profile_for
from gptoss_operator.plan.applications import application_config
from gptoss_operator.plan.fit import engine_for, engines_for_other_hardware
from gptoss_operator.plan.observation import Observation, Presence, Site, Trusted
from gptoss_operator.plan.rayservice.render import Rendered, render
from gptoss_operator.plan.rayservice.resolve import check_kuberay, workload_of
from gptoss_operator.plan.rayservice.workload import KubeRaySite


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The application that a deployment should have.

    Attributes:
        config: Ray's configuration of it.
        line: the engine's arguments for people.
        profile: profile and version they come from.
        max_num_seqs: sequences that one replica works on at once.
        customized: arguments that the specification sets to another value than the profile.
        manifest_digest: what replicas are pinned to.
        rendered: what KubeRay is given for it, where KubeRay runs it.
        newer: what the next change of the specification would bring besides, each in some words.
    """

    config: Mapping[str, Any]
    line: str
    profile: str
    max_num_seqs: int
    customized: tuple[str, ...]
    manifest_digest: str
    rendered: Rendered | None = None
    newer: tuple[str, ...] = ()


def wanted_application(observed: Observation, site: Site) -> Wanted | None:
    """Return the application that is wanted, with what KubeRay is given for it where KubeRay runs it.

    Raises:
        ValueError: the specification can't be resolved, or isn't allowed.
    """
    if observed.placement.on_kuberay:
        if site.kube_ray is None or observed.application.presence is Presence.UNKNOWN:
            return None  # What runs is not known, and it is not to be changed for that.
        check_kuberay(observed.deployment, site.kube_ray)
        wanted = _wanted_application(observed, site)
        return wanted and _on_kuberay(observed, wanted, site.kube_ray)
    for field in ("accelerator", "pod", "cache"):
        if getattr(observed.deployment.spec, field) is not None:
            raise ValueError(
                f"spec.{field} shapes pods that KubeRay makes, and this deployment runs on a Ray cluster that is "
                "there already: remove it, or use spec.substrate.kubeRay in a new deployment"
            )
    if observed.deployment.spec.parallelism.pipeline > 1:
        raise ValueError(
            f"spec.parallelism.pipeline is {observed.deployment.spec.parallelism.pipeline} and spans pods that KubeRay "
            "makes, but this deployment runs on a Ray cluster that is there already: set it to 1, or use "
            "spec.substrate.kubeRay in a new deployment"
        )
    return _wanted_application(observed, site)


def _on_kuberay(observed: Observation, wanted: Wanted, site: KubeRaySite) -> Wanted:
    """Add what KubeRay is given, and the revision that is to run.

    What was proved runs on as it was made, with the image and the templates of then: another release of
    the operator restarts no engine and changes none that sleeps, until the specification changes.
    """
    rendered = render(workload_of(observed.deployment, wanted.config, wanted.manifest_digest), site)
    deployed = observed.application.deployed or {}
    kept = (
        observed.status.proved_generation == observed.deployment.generation
        and deployed.get("revision") is not None
        and all(deployed.get(name) == wanted.config.get(name) for name in ("args", "import_path"))
    )
    revision = deployed["revision"] if kept else rendered.revision
    newer = wanted.newer
    if revision != rendered.revision:
        newer = (*newer, f"pods of this release of the operator with image {site.settings.image}")
    return replace(wanted, config={**wanted.config, "revision": revision}, rendered=rendered, newer=newer)


def _wanted_application(observed: Observation, site: Site) -> Wanted | None:
    """Return the application that is wanted, or None while its weights may not be started.

    What runs stays byte for byte as it is while the specification asks for nothing else: neither
    weights that were signed anew nor an operator with other profiles restart a serving engine. One that
    KubeRay keeps asleep wakes with the settings that it had, and with the weights that are signed then.

    Raises:
        ValueError: the specification can't be resolved.
    """
    deployment = observed.deployment
    profile = profile_for(deployment.spec.model.name)
    engine = engine_for(deployment.spec, profile, observed.hardware)
    deployed = _deployed_arguments(observed)
    newer: tuple[str, ...] = ()
    if deployed is not None:
        digest = str((deployed.get("weights") or {}).get("manifestDigest"))
        kept = _kept(observed, engine, deployed, digest, site)
        asleep = observed.application.presence is Presence.ABSENT
        newer = (f"profile {engine.profile}",) if kept is not None and kept.profile != engine.profile else ()
        if kept is not None and asleep:
            engine = kept
        elif kept is not None and deployment.spec.verification.manifest_digest in {None, digest}:
            return replace(_wanted(observed, kept, deployed, digest, site), newer=newer)
    if not isinstance(observed.trust, Trusted):
        return None
    digest = observed.trust.manifest_digest
    wanted = _wanted(observed, engine, _arguments(observed, engine, digest, site), digest, site)
    return replace(wanted, newer=newer)


def _kept(
    observed: Observation, engine: EngineConfig, deployed: Mapping[str, Any], digest: str, site: Site
) -> EngineConfig | None:
    """Return the engine behind what is deployed, if the specification asks for no other."""
    same = _as_deployed(observed, engine, digest, site)
    if same == deployed:
        return engine
    spec = observed.deployment.spec
    for other in engines_for_other_hardware(spec, profile_for(spec.model.name)):
        # Nodes came or went since: no reason to start it anew.
        if _as_deployed(observed, other, digest, site) == deployed:
            return other
    status = observed.status.engine
    if status is None or not _still_as_proved(observed, same, deployed):
        return None
    return EngineConfig(
        arguments=dict(deployed["engine"]),
        environment=dict(deployed.get("environment") or {}),
        max_num_seqs=int(deployed["engine"].get("max_num_seqs", engine.max_num_seqs)),
        profile=status.profile_version,
        customized=status.customized,
    )


def _deployed_arguments(observed: Observation) -> Mapping[str, Any] | None:
    """Return the arguments of what runs, or of what KubeRay would wake."""
    application = observed.application
    if not application.deployed:
        return None
    arguments = application.deployed.get("args")
    return arguments if isinstance(arguments, Mapping) and isinstance(arguments.get("engine"), Mapping) else None


def _still_as_proved(observed: Observation, wanted: Mapping[str, Any], deployed: Mapping[str, Any]) -> bool:
    """This generation was proved with exactly these arguments; only what we would make of it has changed."""
    status = observed.status
    if status.proved_generation != observed.deployment.generation or status.engine is None:
        return False
    of_the_profile = {"engine": None, "environment": None}
    others_same = {**wanted, **of_the_profile} == {**deployed, **of_the_profile}
    return others_same and _line(deployed["engine"]) == status.engine.line


def _line(arguments: Mapping[str, EngineArgument]) -> str:
    return EngineConfig(arguments=dict(arguments), max_num_seqs=0, profile="").line


def _arguments(observed: Observation, engine: EngineConfig, digest: str, site: Site) -> dict[str, Any]:
    try:
        arguments = serving_arguments(
            observed.deployment, engine, installation=site.installation, manifest_digest=digest
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"spec gives an engine no valid {where}: {first['msg']}; correct the field") from error
    return arguments.wire()


def _as_deployed(observed: Observation, engine: EngineConfig, digest: str, site: Site) -> dict[str, Any]:
    """Return the arguments with what is deployed for weights; none if that can't be of our making."""
    try:
        return _arguments(observed, engine, digest, site)
    except ValueError:
        return {}


def _wanted(
    observed: Observation, engine: EngineConfig, arguments: Mapping[str, Any], digest: str, site: Site
) -> Wanted:
    config = application_config(
        observed.deployment,
        engine,
        arguments,
        min_replicas=observed.floor.replicas,
        installation=site.installation,
        import_path=site.import_path,
    )
    return Wanted(
        config=config,
        line=engine.line[:4096],
        profile=engine.profile,
        max_num_seqs=engine.max_num_seqs,
        customized=engine.customized,
        manifest_digest=digest,
    )
