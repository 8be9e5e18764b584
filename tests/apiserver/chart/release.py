"""A released chart at work: deployments, what its accounts write, and what the API server says to it in the end."""

import asyncio
import base64
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gptoss_api.names import FIELD_MANAGER
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_kube.client import Kube
from gptoss_kube.errors import Invalid
from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS
from tests.apiserver.chart.helm import NAME, Raw

PATIENCE = 150.0


def deployment(name: str = "assistant", **spec: object) -> str:
    body = {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}, **spec}
    raw = {
        "apiVersion": "serving.gptoss.dev/v1alpha1",
        "kind": "GptOssDeployment",
        "metadata": {"name": name},
        "spec": body,
    }
    return json.dumps(raw)


def found(plane: ControlPlane, kind: str, name: str, namespace: str) -> Raw:
    return json.loads(plane.kubectl("get", kind, name, "-n", namespace, "-o", "json"))


def pod_token(plane: ControlPlane, namespace: str, pod: str) -> str:
    """A token of the operator's account as the kubelet gives it to a pod: bound to it, with its name in it."""
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod},
        "spec": {"serviceAccountName": NAME, "containers": [{"name": "operator", "image": "none"}]},
    }
    plane.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(raw))
    token = plane.kubectl(
        "create", "token", NAME, "-n", namespace, "--bound-object-kind=Pod", f"--bound-object-name={pod}"
    ).strip()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["kubernetes.io"]["pod"]["name"] == pod
    return token


def write_status(plane: ControlPlane, namespace: str, token: str, name: str = "assistant") -> None:
    """Apply the status as the operator does: one PATCH, with the resourceVersion as its guard."""
    kubeconfig = json.loads(plane.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token}
    metadata = found(plane, "gptoss", name, namespace)["metadata"]
    known = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")}

    async def write(path: Path) -> None:
        async with Kube(kubeconfig=path) as kube:
            status = {"metadata": known, "status": {"observedGeneration": metadata["generation"]}}
            await kube.apply_status(status, resource=GPT_OSS_DEPLOYMENTS, field_manager=FIELD_MANAGER)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kubeconfig"
        path.write_text(json.dumps(kubeconfig))
        asyncio.run(write(path))


def eventually_refused(what: Callable[[], None], why: str) -> str:
    """Wait until the API server has seen a new policy, parameter or label; return what it says.

    Until it has seen that an old policy is gone, it may refuse for another reason.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            what()
        except (StepError, Invalid) as error:
            if why in str(error):
                return str(error)
            if time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "never refused"


def eventually_allowed(what: Callable[[], None], why: str) -> None:
    """Wait until the API server has seen a new role or label, and no more says `why`."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            what()
        except StepError as error:
            if why not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
