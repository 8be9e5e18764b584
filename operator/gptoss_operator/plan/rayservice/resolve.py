"""From a specification to a workload for KubeRay, within what an administrator allows."""

from collections.abc import Mapping
from typing import Any

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.architecture import architecture_of
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.pod import Pod
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload
from gptoss_weights.errors import SourceNotAllowedError


def check_kuberay(deployment: GptOssDeployment, site: KubeRaySite) -> None:
    """Check what a CRD's schema can't.

    Raises:
        ValueError: names the field, the value and what to do.
    """
    spec = deployment.spec
    claim = spec.cache.claim if spec.cache is not None else None
    if spec.model.uri.startswith("file://"):
        _check_folder(spec.model.uri, site.settings, cache_claim=claim)
    accelerator = spec.accelerator or AcceleratorRequest()
    for field in ("tensor", "pipeline"):
        if accelerator.vendor == "cpu" and getattr(spec.parallelism, field) > 1:
            raise ValueError(
                f"spec.parallelism.{field} is {getattr(spec.parallelism, field)} with spec.accelerator.vendor cpu: set "
                "it to 1"
            )
    limits = site.settings.limits_of(deployment.namespace)
    each = spec.parallelism.tensor * spec.parallelism.pipeline
    count = 0 if accelerator.resource is None else spec.scaling.max_replicas * each
    refusal = limits.refusal(spec.pod or Pod(), count, claim=claim) if limits is not None else None
    if refusal is not None:
        raise ValueError(refusal)


def workload_of(deployment: GptOssDeployment, application: Mapping[str, Any], manifest_digest: str) -> Workload:
    """Return a deployment's workload with its application and pinned weights."""
    spec = deployment.spec
    least = max(1, spec.scaling.min_replicas)
    # Of the model as it is published, whatever this source holds: what pods ask for must not depend on a look at it.
    architecture = architecture_of(spec.model.name)
    return Workload(
        namespace=deployment.namespace,
        name=deployment.name,
        uid=deployment.uid,
        tensor=spec.parallelism.tensor,
        pods_per_replica=spec.parallelism.pipeline,
        min_replicas=least,
        max_replicas=max(least, spec.scaling.max_replicas),
        blue_green=spec.rollout_strategy.type == "BlueGreen",
        accelerator=spec.accelerator or AcceleratorRequest(),
        pod=spec.pod or Pod(),
        application=application,
        weights_uri=spec.model.uri,
        weights_revision=spec.model.revision,
        subject=spec.subject,
        manifest_digest=manifest_digest,
        cache_claim=spec.cache.claim if spec.cache is not None else None,
        cache_max_bytes=spec.cache.max_bytes if spec.cache is not None else None,
        weight_bytes=architecture.checkpoint_bytes if architecture is not None else None,
    )


def _check_folder(uri: str, settings: KubeRaySettings, *, cache_claim: str | None) -> None:
    try:
        root = settings.file_root_of(uri)
    except SourceNotAllowedError as error:
        raise ValueError(f"spec.model.uri is {uri}: {error.message}") from error
    if root is None:
        offered = ", ".join(each.path for each in settings.file_roots) or "none"
        raise ValueError(
            f"spec.model.uri {uri} names a folder that pods of KubeRay have not: of all folders they have those that "
            f"are claims ({offered}). Correct it, put the weights into an object store (s3://, az://) or a hub "
            "(hf://), or ask an administrator to list a claim with them in kubeRay.fileRoots"
        )
    if root.claim_name == cache_claim:
        raise ValueError(
            f"spec.cache uses claim {cache_claim}, on which spec.model.uri {uri} lies already: set spec.cache.type to "
            "None, or name another claim in spec.cache.claimName"
        )
