"""Builders of what the KubeRay substrate renders from."""

from typing import Any

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.pod import Pod
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload
from tests.builders import DIGEST

UID = "11111111-2222-3333-4444-555555555555"
APPLICATION = {
    "name": "gptoss-test-ml-assistant",
    "route_prefix": "/gptoss/ml/assistant",
    "import_path": "gptoss_serving.app:build",
    "args": {"schema": 1, "modelId": "gpt-oss.ml.assistant.0", "engine": {"seed": 1}},
    "deployments": [{"name": "GptOssServer:x", "autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}],
}


def workload(**changes: Any) -> Workload:
    values: dict[str, Any] = {
        "namespace": "ml",
        "name": "assistant",
        "uid": UID,
        "tensor": 2,
        "pods_per_replica": 1,
        "min_replicas": 1,
        "max_replicas": 1,
        "blue_green": True,
        "accelerator": AcceleratorRequest(),
        "pod": Pod(),
        "application": APPLICATION,
        "weights_uri": "s3://models/gpt-oss-120b",
        "subject": "gpt-oss-120b",
        "manifest_digest": DIGEST,
    }
    return Workload(**{**values, **changes})


def settings(**changes: Any) -> KubeRaySettings:
    values = {"gatewayTokenFile": "/etc/gptoss/gateway-token", "image": "serving@sha256:" + "1" * 64}
    return KubeRaySettings.model_validate({**values, **changes})


def site(**changes: Any) -> KubeRaySite:
    values: dict[str, Any] = {
        "settings": settings(),
        "system_namespace": "gptoss-system",
        "s3_endpoint": None,
        "s3_region": "eu-central-1",
        "gateway_token_hashes": ("ab" * 32,),
    }
    return KubeRaySite(**{**values, **changes})
