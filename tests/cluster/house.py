"""The operator's process with everything real around it but KubeRay and machines: weights in an S3 server, the
scheduler and controllers of Kubernetes, kubelets that kwok plays, and our stand-in for KubeRay."""

import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptoss_api.names import CREDENTIALS_SECRET
from gptoss_cli.local.object_store import S3Access
from gptoss_kube.client import Kube
from gptoss_weights.sign import generate_key
from gptoss_weights.signature import parse_bundle
from tests.apiserver.operator.house import SYSTEM, House, signed_weights
from tests.apiserver.operator.kuberay import GATEWAY_TOKEN, StandInKubeRay, standing_in
from tests.cluster.cluster import Cluster, Raw, node
from tests.cluster.kubelet import FATE, SAYS, Fate
from tests.controlplane import REPOSITORY

GPU_LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
}
"""Of gpu-feature-discovery."""


def gpu_node(name: str, *, gpu: int = 2) -> Raw:
    """A node with accelerators, as gpu-feature-discovery labels it."""
    return node(name, labels={**GPU_LABELS, "nvidia.com/gpu.count": str(gpu)}, gpu=str(gpu))


@dataclass
class KubeRayHouse(House):
    """One deployment's world."""

    cluster: Cluster = field(kw_only=True)
    kuberay: StandInKubeRay = field(kw_only=True)
    store: S3Access = field(kw_only=True)

    @property
    def uri(self) -> str:
        return self.store.uri(f"{self.namespace}/gpt-oss-20b")

    @property
    def source(self) -> str:
        return self.store.uri(self.namespace)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "installation": self.installation,
            "systemNamespace": SYSTEM,
            "namespaces": [self.namespace],
            "kubeRay": {
                "image": "registry.example.com/serving@sha256:" + "1" * 64,
                "gatewayTokenFile": str(self.folder / "gateway-token"),
                "rayClusterDeletionDelaySeconds": 0,  # there are not nodes for three
                "serviceURL": f"http://127.0.0.1:{self.kuberay.port}/{{namespace}}/{{service}}",
            },
            "weightSources": {"s3": {"endpoint": self.store.endpoint, "region": self.store.region}},
            "resyncSeconds": 5,
            "metrics": {"host": "127.0.0.1", "port": self.metrics_port},
        }

    def upload(self) -> None:
        """Put the signed folder where the deployment's weights are."""
        for path in sorted(self.weights.iterdir()):
            self.store.client().upload_file(str(path), self.store.bucket, f"{self.namespace}/gpt-oss-20b/{path.name}")

    async def serve(self, **spec: Any) -> None:
        """Apply a deployment that is up at all times, and wait until just this one serves."""
        await self.apply(**always_up(**spec))
        applied = (await self.deployment())["metadata"]["generation"]

        async def serves() -> bool:
            conditions = ((await self.deployment()).get("status") or {}).get("conditions", ())
            ready = {"type": "Ready", "status": "True", "reason": "Serving", "observedGeneration": applied}
            return any(ready.items() <= each.items() for each in conditions)

        await self.eventually(serves, f"generation {applied} serves")

    async def message(self, kind: str, status: str, reason: str) -> str:
        """Wait for a condition; return its message."""
        found = await self.wait_for(kind, status, reason)
        return next(each["message"] for each in found["status"]["conditions"] if each["type"] == kind)

    async def condition(self, kind: str) -> tuple[str, str]:
        found = (await self.deployment())["status"]["conditions"]
        return next((each["status"], each["reason"]) for each in found if each["type"] == kind)

    async def pods(self) -> dict[str, Raw]:
        """The pods there are, by name."""
        listed = json.loads(await self.kubectl("get", "pods", "-n", self.namespace, "-o", "json"))
        return {each["metadata"]["name"]: each for each in listed["items"]}

    async def worker(self) -> Raw:
        """The pod with the engine, of the newest Ray cluster."""
        return (await self.pods())[f"{self.kuberay.made[-1]}-worker-0"]

    async def wait_for_no_pods(self) -> None:
        async def none() -> bool:
            return not await self.pods()

        await self.eventually(none, "no pod is left")

    def doom(self, fate: Fate, says: str = "") -> None:
        """Workers that are made from now on have a fate."""
        self.kuberay.worker_annotations = {FATE: fate.value, SAYS: says}

    async def spare(self) -> None:
        """What befell workers is over, and befalls none to come."""
        self.kuberay.worker_annotations = {}
        await self.kubectl("annotate", "pods", "--all", "-n", self.namespace, f"{FATE}-")

    def refusal(self) -> str:
        """What the container that fetches weights says of those that are in the store now, by running it."""
        said, copy = self.folder / "termination-log", self.folder / "copy"
        digest = parse_bundle((self.weights / "model.sig").read_bytes()).manifest_digest
        command = [str(Path(sys.executable).parent / "gptoss"), "weights", "pull", self.uri, "--to", str(copy)]
        command += ["--model", "gpt-oss-20b", "--manifest-digest", digest, "--termination-log", str(said)]
        environment = {**self.store.environment(), "HOME": str(self.folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        shutil.rmtree(copy, ignore_errors=True)
        assert done.returncode == 3, done.stderr
        return said.read_text()

    async def around(self) -> str:
        pods = {name: [pod["metadata"], pod.get("status")] for name, pod in (await self.pods()).items()}
        rayservices = await self.kubectl("get", "rayservices", "-n", self.namespace, "-o", "json")
        return f"pods {json.dumps(pods, indent=1)}\nRayServices {rayservices}\nKubeRay {self.kuberay}"


def always_up(**spec: Any) -> Mapping[str, Any]:
    """A deployment that never sleeps, with an engine on two accelerators."""
    return {"parallelism": {"tensor": 2}, "scaling": {"minReplicas": 1}, **spec}


@asynccontextmanager
async def kuberay_house(
    cluster: Cluster, namespace: str, store: S3Access, folder: Path, port: int
) -> AsyncIterator[KubeRayHouse]:
    """The operator runs, and nothing is deployed."""
    (folder / "gateway-token").write_text(GATEWAY_TOKEN)
    key = folder / "key"
    generate_key(key)
    plane = cluster.plane
    async with (
        Kube(kubeconfig=plane.kubeconfig) as admin,
        standing_in(admin, namespace, kubelet=False) as kuberay,
    ):
        built = KubeRayHouse(
            plane,
            namespace,
            folder,
            key,
            f"i{namespace}",
            metrics_port=port,
            cluster=cluster,
            kuberay=kuberay,
            store=store,
        )
        await built.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / "rbac.yaml"))
        signed_weights(built.weights, key)
        built.upload()
        await built.policy()
        secret = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
        await built.apply_object(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": CREDENTIALS_SECRET, "namespace": namespace},
                "stringData": secret,
            }
        )
        await built.start_operator()
        try:
            yield built
        finally:
            await built.stop_operator()
            await built.kubectl("delete", "gptoss", "--all", "-n", namespace)
            await built.kubectl("delete", "weighttrustpolicy", f"policy-{namespace}", "--ignore-not-found")
