"""The product as a user installs it, and a user's questions to it."""

import base64
import contextlib
import hashlib
import http.client
import json
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gptoss_api.kuberay import SERVE_PORT
from gptoss_api.names import API_VERSION, GATEWAY_TOKEN_HEADER, GROUP, engine_model_id, route_prefix
from gptoss_cli.local.object_store import S3Access
from tests.controlplane import CRD_GONE_SECONDS, REPOSITORY
from tests.e2e.cluster import Cluster, Raw
from tests.e2e.site import Site

SYSTEM, MODELS = "gptoss-e2e-system", "gptoss-e2e"
RELEASE = "e2e"
NAME = f"{RELEASE}-gptoss-operator"
CHART = REPOSITORY / "charts" / "gptoss-operator"
CRDS = tuple(f"{kind}.{GROUP}" for kind in ("gptossdeployments", "weighttrustpolicies", "gatewayreports"))
SUBJECT = "gpt-oss-tiny"
SHARE = "/models"
"""A claim, where a test makes it one."""
OPERATORS_KEYS, MODELS_KEYS = "gptoss-object-store", "gptoss-model-credentials"
"""Secrets with the object store's keys, by namespace: the operator's and the models'."""
STORE_PORT = 7070
START_SECONDS = 1200.0
"""Two Ray clusters' starts on few CPUs."""
GONE_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of the gateway; status 0 is a connection that broke."""

    status: int
    text: str

    @property
    def content(self) -> str:
        return str(json.loads(self.text)["choices"][0]["message"]["content"])

    @property
    def is_whole(self) -> bool:
        """Whether a streamed answer came to its end without an error."""
        events = [line for line in self.text.splitlines() if line.startswith("data: ")]
        return self.status == 200 and events[-1:] == ["data: [DONE]"] and not any('"error"' in each for each in events)


@dataclass(frozen=True, kw_only=True)
class House:
    """One installation, and the namespace of its models."""

    site: Site
    cluster: Cluster
    key: str = field(default_factory=lambda: f"gptoss-{secrets.token_urlsafe(32)}")
    gateway_token: str = field(default_factory=lambda: secrets.token_hex(32))
    store_keys: tuple[str, str] = field(default_factory=lambda: (secrets.token_hex(10), secrets.token_urlsafe(30)))

    # ── installing ──

    def install(self) -> None:
        """Do what the chart's notes and docs/kuberay.md say, in their order."""
        digest = hashlib.sha256(self.key.encode()).hexdigest()
        keys = {"tenants": [{"name": "e2e", "keys": [f"sha256:{digest}"], "namespaces": [MODELS]}]}
        credentials = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), self.store_keys, strict=True))
        self.cluster.apply(
            _namespace(SYSTEM, "restricted"),
            _namespace(MODELS, "restricted"),
            _secret("gptoss-kuberay", SYSTEM, {"token": self.gateway_token}),
            _secret("gptoss-gateway-keys", SYSTEM, {"keys.yaml": yaml.safe_dump(keys)}),
            _secret(OPERATORS_KEYS, SYSTEM, credentials),
            _secret(MODELS_KEYS, MODELS, credentials),
            *_store(self.site.store_image, self.store_keys),
        )
        self.upgrade()
        for name in ("store", NAME, f"{NAME}-gateway"):
            self.cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", SYSTEM, "--timeout=300s", seconds=330)

    def upgrade(self, **kuberay: Any) -> None:
        """Install the chart, or change KubeRay's settings and wait until the operator has them."""
        values = {
            "image": self.site.image_values,
            "kubeRay": {"image": self.site.serving_image, "settings": kuberay},
            "operator": {
                "weightSources": {"s3": {"endpoint": f"http://store.{SYSTEM}.svc:{STORE_PORT}", "region": "us-east-1"}},
                "envFrom": [{"secretRef": {"name": OPERATORS_KEYS}}],
            },
        }
        path = self.cluster.folder / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        files = [CHART.parent.parent / "tests" / "e2e" / "values.yaml", self.site.values, path]
        chosen = [argument for file in files if file is not None for argument in ("--values", str(file))]
        self.cluster.helm("upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM, *chosen)
        self.cluster.kubectl("rollout", "status", f"deployment/{NAME}", "-n", SYSTEM, "--timeout=300s", seconds=330)

    def is_installed(self) -> bool:
        """Whether `trust`, the last step of an installation, was done."""
        crd = self.cluster.get("crd", CRDS[1])
        return crd is not None and self.cluster.get("weighttrustpolicy", "e2e") is not None

    def uninstall(self) -> None:
        """Do what docs/install.md says to end everything, in its order; what is gone already is no failure."""
        if self.cluster.get("crd", CRDS[0]) is not None:
            self.cluster.kubectl("delete", "gptoss", "--all", "-n", MODELS, "--timeout=300s", seconds=330)
            self.cluster.until(lambda: not self.left(), seconds=GONE_SECONDS, what=lambda: f"{self.left()} went away")
        self.cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait")
        limit = f"--timeout={CRD_GONE_SECONDS}s"
        self.cluster.kubectl("delete", "crd", *CRDS, "--ignore-not-found", limit, seconds=CRD_GONE_SECONDS + 30)

    def clear(self) -> None:
        """Take away what the product was installed into, and everything of ours in there."""
        names = (SYSTEM, MODELS)
        self.cluster.kubectl("delete", "namespace", *names, "--ignore-not-found", "--timeout=300s", seconds=330)

    def remains(self) -> set[str]:
        """Everything in the whole cluster whose name or labels speak of this product: ``Kind/name``."""
        kinds = self.cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
        told = sorted(kind for kind in kinds if not kind.startswith("events") and not kind.endswith(f".{GROUP}"))
        columns = "custom-columns=KIND:.kind,NAME:.metadata.name,LABELS:.metadata.labels"
        lines = self.cluster.kubectl("get", ",".join(told), "-A", "-o", columns, "--no-headers").splitlines()
        return {"/".join(line.split()[:2]) for line in lines if "gptoss" in line}

    def trust(self, public_key: str) -> None:
        """Trust a key for everything in the store and on the share, in the models' namespace."""
        spec = {
            "default": True,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": MODELS}},
            "sources": [{"prefix": "s3://models"}, {"prefix": f"file://{SHARE}"}],
            "authorities": [{"name": "e2e", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_key}}],
        }
        policy = {"apiVersion": API_VERSION, "kind": "WeightTrustPolicy", "metadata": {"name": "e2e"}, "spec": spec}
        self.cluster.apply(policy)

    @contextlib.contextmanager
    def store(self) -> Iterator[S3Access]:
        """Yield the way to the object store from outside the cluster."""
        access, secret = self.store_keys
        with self.cluster.forward("store", STORE_PORT, SYSTEM) as url:
            yield S3Access(endpoint=url, access_key=access, secret_key=secret)

    @contextlib.contextmanager
    def slow_store(self) -> Iterator[None]:
        """Have the object store answer slowly: its Service leads to a program between."""
        itself = {"app": "store"}
        _, behind = _server("store-itself", SYSTEM, STORE_PORT, {}, volumes=[])
        container = {"image": self.site.serving_image, "command": ["python", "-c", _SLOW]}
        deployment, _ = _server("slow-store", SYSTEM, STORE_PORT, container, volumes=[])
        self.cluster.apply({**behind, "spec": {**behind["spec"], "selector": itself}}, deployment)
        try:
            wait = ("rollout", "status", "deployment/slow-store", "-n", SYSTEM, "--timeout=300s")
            self.cluster.kubectl(*wait, seconds=330)
            self._lead_to({"app": "slow-store"})
            yield
        finally:
            self._lead_to(itself)
            self.cluster.kubectl("delete", "deployment/slow-store", "service/store-itself", "-n", SYSTEM)

    def _lead_to(self, selector: dict[str, str]) -> None:
        patch = json.dumps({"spec": {"selector": selector}})
        self.cluster.kubectl("patch", "service", "store", "-n", SYSTEM, "--type=merge", "-p", patch)

    @contextlib.contextmanager
    def redis(self, name: str, port: int) -> Iterator[str]:
        """Yield the password of a Redis in the models' namespace, which lies in a Secret of its name."""
        password = secrets.token_hex(20)
        self.cluster.apply(_secret(name, MODELS, {"password": password}), *_redis(self.site.redis_image, name, port))
        try:
            self.cluster.kubectl("rollout", "status", f"deployment/{name}", "-n", MODELS, "--timeout=300s", seconds=330)
            yield password
        finally:
            self.cluster.kubectl("delete", f"deployment/{name}", f"service/{name}", f"secret/{name}", "-n", MODELS)

    # ── deployments ──

    def deploy(self, name: str, *, uri: str = f"s3://models/{SUBJECT}", memory: str = "6Gi", **spec: Any) -> None:
        """Apply a deployment of the tiny model on KubeRay that computes on a CPU."""
        body = {
            "model": {"name": "custom", "uri": uri},
            "verification": {"subject": SUBJECT},
            "substrate": {"kubeRay": {}},
            "accelerator": {"vendor": "cpu"},
            "pod": {"resources": {"cpu": "400m", "memory": memory}},
            "engine": {"maxModelLen": 2048, "maxNumSeqs": 8},
            "rolloutStrategy": {"type": self.site.rollout},
            "scaling": {"minReplicas": 0, "idleSeconds": 3600, "wakeTimeoutSeconds": 1200},
            **spec,
        }
        metadata = {"name": name, "namespace": MODELS}
        self.cluster.apply({"apiVersion": API_VERSION, "kind": "GptOssDeployment", "metadata": metadata, "spec": body})

    # ── claims ──

    def has_volumes(self, count: int = 1) -> bool:
        """Whether so many claims that name no storage class get a volume."""
        classes = json.loads(self.cluster.kubectl("get", "storageclasses", "-o", "json"))["items"]
        volumes = json.loads(self.cluster.kubectl("get", "persistentvolumes", "-o", "json"))["items"]
        if any((each["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true" for each in classes):
            return True
        free = [each for each in volumes if each["status"].get("phase") == "Available"]
        return len([each for each in free if not each["spec"].get("storageClassName")]) >= count

    @contextlib.contextmanager
    def claim(self, name: str, namespace: str = MODELS) -> Iterator[None]:
        """Have a claim."""
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        metadata = {"name": name, "namespace": namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
        try:
            yield
        finally:
            self.cluster.kubectl("delete", "pvc", name, "-n", namespace, "--timeout=300s", seconds=330)

    def run_beside(self, script: str, *, claim: str, namespace: str = MODELS, secret: str | None = None) -> None:
        """Run Python in a pod of somebody else, with the claim as its working directory and a Secret's environment."""
        container = {
            "name": "stranger",
            "image": self.site.serving_image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", script],
            "workingDir": "/claim",
            "envFrom": [{"secretRef": {"name": secret}}] if secret is not None else [],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
        }
        spec = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 65532),
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
        }
        metadata = {"name": "stranger", "namespace": namespace}
        self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        def over() -> str | None:
            phase = (self.cluster.get("pod", "stranger", namespace) or {}).get("status", {}).get("phase")
            return phase if phase in ("Succeeded", "Failed") else None

        phase = self.cluster.until(
            over, seconds=GONE_SECONDS, what=lambda: str(self.cluster.get("pod", "stranger", namespace))
        )
        said = self.cluster.kubectl("logs", "stranger", "-n", namespace)
        self.cluster.kubectl("delete", "pod", "stranger", "-n", namespace, "--timeout=120s", seconds=150)
        assert phase == "Succeeded", said

    def receipt(self, name: str) -> Raw:
        """Wait until a deployment's one worker has its weights, and return what its fetching container left."""

        def left() -> Raw | None:
            for pod in self.pods(name):
                for each in pod["status"].get("initContainerStatuses") or ():
                    ended = (each.get("state") or {}).get("terminated") or {}
                    if each["name"] == "weights" and ended.get("exitCode") == 0:
                        return dict(json.loads(ended["message"])["receipt"])
            return None

        return dict(self.cluster.until(left, seconds=START_SECONDS, what=lambda: self.describe(name)))

    # ── what is there ──

    def spec(self, name: str) -> Raw | None:
        raw = self.cluster.get("gptoss", name, MODELS)
        return raw["spec"] if raw is not None else None

    def patch(self, name: str, spec: Raw) -> None:
        self.cluster.kubectl("patch", "gptoss", name, "-n", MODELS, "--type=merge", "-p", json.dumps({"spec": spec}))

    def delete(self, name: str) -> None:
        """Delete a deployment and wait until nothing of it is left."""
        self.cluster.kubectl("delete", "gptoss", name, "-n", MODELS, "--ignore-not-found")
        self.cluster.until(
            lambda: not self.left(name), seconds=GONE_SECONDS, what=lambda: f"{self.left(name)} went away"
        )

    def left(self, name: str | None = None) -> list[str]:
        """What there is of a deployment, or of all: pods, Ray's objects, everything that the operator made."""
        selector = "app.kubernetes.io/managed-by=gptoss-operator"
        selector += f",serving.gptoss.dev/deployment={name}" if name else ""
        kinds = "rayservices,pods,services,secrets,configmaps,networkpolicies,poddisruptionbudgets"
        return [f"{each['kind']}/{each['metadata']['name']}" for each in self.cluster.items(kinds, MODELS, selector)]

    def pods(self, name: str, kind: str | None = None) -> list[Raw]:
        """Return the pods of a deployment, or those that KubeRay calls ``head`` or ``worker``."""
        selector = f"serving.gptoss.dev/deployment={name}"
        return self.cluster.items("pods", MODELS, selector + (f",ray.io/node-type={kind}" if kind else ""))

    def uids(self, name: str, kind: str | None = None, *, ready: bool = False) -> set[str]:
        """Return the uids of pods; those that are ready only, if asked so."""
        return {pod["metadata"]["uid"] for pod in self.pods(name, kind) if not ready or _is_ready(pod)}

    def conditions(self, name: str) -> dict[str, tuple[str, str, str]]:
        """What is said of the specification of now, by type: status, reason, message."""
        raw = self.cluster.get("gptoss", name, MODELS)
        status = (raw or {}).get("status") or {}
        if raw is None or status.get("observedGeneration") != raw["metadata"]["generation"]:
            return {}
        return {each["type"]: (each["status"], each["reason"], each["message"]) for each in status["conditions"]}

    def wait(self, name: str, kind: str, status: str, *reasons: str, seconds: float = START_SECONDS) -> str:
        """Wait for a condition and return its message."""

        def told() -> tuple[str, str, str] | None:
            found = self.conditions(name).get(kind)
            return found if found and found[0] == status and (not reasons or found[1] in reasons) else None

        wanted = f"{kind}={status} {'|'.join(reasons)}"
        found = self.cluster.until(told, seconds=seconds, what=lambda: f"{wanted}, but {self.describe(name)}")
        return str(found[2])

    def wait_for_replicas(self, name: str, count: int) -> None:
        """Wait until so many replicas serve, and the pods of no other are left."""

        def there() -> bool:
            raw = self.cluster.get("gptoss", name, MODELS) or {}
            told = (raw.get("status") or {}).get("replicas") or {}
            return told.get("ready") == told.get("desired") == count == len(self.pods(name, "worker"))

        self.cluster.until(
            there, seconds=START_SECONDS, what=lambda: f"{count} replicas of {name}, but {self.describe(name)}"
        )

    def reached(self, pod: Raw, targets: dict[str, tuple[str, int]]) -> set[str]:
        """Return which of these hosts and ports a pod with Python in it reaches, whether anybody listens or not."""
        metadata, container = pod["metadata"], pod["spec"]["containers"][0]["name"]
        command = ("exec", "-i", metadata["name"], "-n", metadata["namespace"], "-c", container, "--", "python3", "-")
        return set(json.loads(self.cluster.kubectl(*command, json.dumps(targets), stdin=_REACH)))

    def describe(self, name: str) -> str:
        """Everything that helps to see why something did not come."""
        pods = [
            {"name": pod["metadata"]["name"], **{key: pod["status"].get(key) for key in _TELLING}}
            for pod in self.pods(name)
        ]
        return json.dumps({"conditions": self.conditions(name), "pods": pods}, indent=1)

    # ── requests ──

    @contextlib.contextmanager
    def gateway(self) -> Iterator[Callable[..., Reply]]:
        """Yield a function that asks a model something through the gateway."""
        with self.cluster.forward(f"{NAME}-gateway", 80, SYSTEM) as url:
            yield lambda model, **more: self._chat(url, model, **more)

    def _chat(
        self, url: str, model: str, *, question: str = "Hello!", seconds: float = START_SECONDS, **more: Any
    ) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, **more}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", data=json.dumps(body).encode(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                return Reply(status=reply.status, text=reply.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(status=error.code, text=error.read().decode())
        except (OSError, ValueError) as error:
            return Reply(status=0, text=repr(error))

    @contextlib.contextmanager
    def listening(self, name: str, pod: Raw, *, tokens: int) -> Iterator["Listener"]:
        """Have a stream run through a pod's own proxy, as a gateway's does whose connection led there."""
        deployment = self.cluster.get("gptoss", name, MODELS)
        assert deployment is not None
        model = engine_model_id(MODELS, name, deployment["metadata"]["uid"])
        exactly = {"prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        headers = {"Content-Type": "application/json", GATEWAY_TOKEN_HEADER: self.gateway_token}
        with self.cluster.forward(pod["metadata"]["name"], SERVE_PORT, MODELS, kind="pod") as url:
            path = f"{route_prefix(MODELS, name)}/v1/completions"
            body = json.dumps({"model": model, "stream": True, **exactly}).encode()
            listener = Listener(urllib.request.Request(url + path, data=body, headers=headers))
            listener.start()
            yield listener
            listener.join(timeout=START_SECONDS)
        assert not listener.is_alive()


class Listener(threading.Thread):
    """Reads a stream to its end, whatever that is."""

    def __init__(self, request: urllib.request.Request) -> None:
        super().__init__(daemon=True)
        self.events: list[str] = []
        self.ended_at = 0.0
        self._request = request

    def run(self) -> None:
        broken = contextlib.suppress(OSError, http.client.HTTPException)
        with broken, urllib.request.urlopen(self._request, timeout=START_SECONDS) as reply:
            for line in reply:
                if line.startswith(b"data: "):
                    self.events.append(line.decode().strip())
        self.ended_at = time.monotonic()


_SLOW = f"""
import asyncio, contextlib

async def passed_on(reader, writer, pause):
    with contextlib.suppress(OSError), contextlib.closing(writer):
        while part := await reader.read(64 * 1024):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

async def between(reader, writer):
    there, back = await asyncio.open_connection("store-itself", {STORE_PORT})
    await asyncio.gather(passed_on(reader, back, 0), passed_on(there, writer, 0.06))

async def main():
    async with await asyncio.start_server(between, port={STORE_PORT}) as server:
        await server.serve_forever()

asyncio.run(main())
"""
"""At most a mebibyte a second on each connection."""
_REACH = """
import json, socket, sys
reached = []
for name, (host, port) in json.loads(sys.argv[1]).items():
    try:
        socket.create_connection((host, port), timeout=3).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        continue
    reached.append(name)
print(json.dumps(reached))
"""
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_TELLING = ("phase", "reason", "conditions", "initContainerStatuses", "containerStatuses")


@contextlib.contextmanager
def talking(ask: Callable[[], Reply], *, clients: int, pause: float = 0.1) -> Iterator[list[Reply]]:
    """Have clients ask one thing after the other; in the end the list holds every reply."""
    replies: list[Reply] = []
    enough = threading.Event()

    def talk() -> None:
        while not enough.is_set():
            replies.append(ask())
            enough.wait(pause)

    threads = [threading.Thread(target=talk) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        enough.set()
        for thread in threads:
            thread.join(timeout=START_SECONDS)
    assert not any(thread.is_alive() for thread in threads)


def _is_ready(pod: Raw) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def upload(access: S3Access, folder: Path, prefix: str) -> None:
    """Put a folder's files under a prefix; the bucket is made if need be."""
    client = access.client()
    deadline = time.monotonic() + 60
    while access.bucket not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
        assert time.monotonic() < deadline, "the store takes no bucket"
        client.create_bucket(Bucket=access.bucket)
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), access.bucket, f"{prefix}/{path.name}")


def _namespace(name: str, standard: str) -> Raw:
    labels = {f"pod-security.kubernetes.io/{kind}": standard for kind in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _secret(name: str, namespace: str, values: dict[str, str]) -> Raw:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": data}


def _store(image: str, keys: tuple[str, str]) -> tuple[Raw, Raw]:
    environment = {"ROOT_ACCESS_KEY": keys[0], "ROOT_SECRET_KEY": keys[1], "VGW_PORT": f":{STORE_PORT}"}
    container = {
        "image": image,
        "args": ["--quiet", "posix", "--sidecar", "/data/metadata", "/data/objects"],
        "env": _values({**environment, "VGW_REGION": "us-east-1"}),
        "volumeMounts": [
            {"name": "data", "mountPath": "/data/objects", "subPath": "objects"},
            {"name": "data", "mountPath": "/data/metadata", "subPath": "metadata"},
        ],
    }
    return _server("store", SYSTEM, STORE_PORT, container, volumes=[{"name": "data", "emptyDir": {"sizeLimit": "2Gi"}}])


def _redis(image: str, name: str, port: int) -> tuple[Raw, Raw]:
    password = {"secretKeyRef": {"name": name, "key": "password"}}
    arguments = ["--port", str(port), "--requirepass", "$(PASSWORD)", "--save", "", "--appendonly", "no"]
    environment = [{"name": "PASSWORD", "valueFrom": password}]
    return _server(name, MODELS, port, {"image": image, "args": arguments, "env": environment}, volumes=[])


def _server(name: str, namespace: str, port: int, container: Raw, *, volumes: list[Raw]) -> tuple[Raw, Raw]:
    """Return the Deployment and Service of a program that takes connections on one port."""
    labels, metadata = {"app": name}, {"name": name, "namespace": namespace}
    whole = {
        "name": name,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": port}],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        **container,
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [whole],
        "volumes": volumes,
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": labels, "ports": [{"port": port, "targetPort": port}]},
    }
    return deployment, service


def _values(environment: dict[str, str]) -> list[Raw]:
    return [{"name": name, "value": value} for name, value in environment.items()]
