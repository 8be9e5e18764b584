"""Models and callers as the gateway's parts see them."""

from typing import Any

from gptoss_gateway.catalogue import ServedModel


def model(uid: str = "u-1", name: str = "assistant", namespace: str = "ml", **more: Any) -> ServedModel:
    """Return a sleeping model; keyword arguments are what the test is about."""
    values: dict[str, Any] = {
        "served_name": name,
        "created": 0,
        "cluster_name": None,
        "on_kuberay": None,
        "may_sleep": True,
        "wake_timeout_seconds": 600.0,
        "max_held_requests": 100,
        "ramp": 32,
        "capacity": 32,
        "engine_ready": False,
        "draining_epoch": None,
        "unattended": True,
        "refusal": None,
        "manifest_digest": None,
        "last_wake_seconds": None,
        "wake_stage": None,
        "pull_progress": None,
    }
    return ServedModel(uid=uid, name=name, namespace=namespace, **(values | more))
