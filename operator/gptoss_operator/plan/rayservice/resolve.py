"""From a specification to a workload for KubeRay, within what an administrator allows."""

from collections.abc import Mapping
from typing import Any

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.deployment import GptOssDeployment
from gptoss_api.pod import Pod
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload


def check_kuberay(deployment: GptOssDeployment, site: KubeRaySite) -> None:
    """Check what a CRD's schema can't.

    Raises:
        ValueError: names the field, the value and what to do.
    """
    spec = deployment.spec
    if spec.model.uri.startswith("file://"):
        raise ValueError(
            f"spec.model.uri {spec.model.uri} names a folder, and pods that KubeRay makes see none of a node's: "
            "put the weights into an object store (s3://, az://) or a hub (hf://)"
        )
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
    claim = spec.cache.claim if spec.cache is not None else None
    refusal = limits.refusal(spec.pod or Pod(), count, claim=claim) if limits is not None else None
    if refusal is not None:
        raise ValueError(refusal)


def workload_of(deployment: GptOssDeployment, application: Mapping[str, Any], manifest_digest: str) -> Workload:
    """Return a deployment's workload with its application and pinned weights."""
    spec = deployment.spec
    least = max(1, spec.scaling.min_replicas)
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
    )
