"""Pod templates of a deployment's Ray cluster: restricted, without tokens, everything writable named and bounded.

The engine runs as another user than the container that fetched its weights, and mounts them
read-only. Credentials for the source reach that container alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptoss_api.kuberay import SERVE_PORT
from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_api.pod import Toleration, amount
from gptoss_api.pull_report import REPORT_PORT
from gptoss_operator.plan.rayservice.credentials import Credentials, credentials_of
from gptoss_operator.plan.rayservice.workload import (
    CACHE_VOLUME,
    ENGINE_CONTAINER,
    HEAD,
    REVISION_LABEL,
    ROLE_LABEL,
    SOURCE_VOLUME,
    WEIGHTS_CONTAINER,
    WORKER,
    KubeRaySite,
    Raw,
    Workload,
    gateway_tokens_config,
)
from gptoss_weights.sources.settings import (
    AZURE_ACCOUNT_VARIABLE,
    AZURE_ENDPOINT_VARIABLE,
    FILE_ROOTS_VARIABLE,
    HUB_DOWNLOAD_HOSTS_VARIABLE,
    HUB_ENDPOINT_VARIABLE,
)

METRICS_PORT = 8080
DASHBOARD_PORT = 8265
GRACE_SECONDS = MAX_REQUEST_SECONDS + 60
"""A pod that is told to go may finish the longest permitted request first."""
_HEADLESS = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(GRACE_SECONDS)}
"""How long a worker goes on without its head, by Ray a minute. A head that is told to go with its workers may have no
request to wait for, and theirs would break off. A head that comes anew ends workers that it does not know.

Source: Ray's ray_config_def.h.
"""

_WEIGHTS_USER = 65532
_WEIGHTS = "/gptoss/weights"
_TOKENS = "/gptoss/gateway"
_TOKENS_FILE = "gateway-tokens"
_HOME = "/gptoss/home"
_CACHE = "/gptoss/cache"
_CLAIM = "/gptoss/claim"
_CLAIM_FOLDER = "gptoss-weights"
"""Ours on a claim, whose root belongs to its volume and holds things of that."""
_API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder
_OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Ray's object store: requests stream past it, so the least that Ray is at ease with."""
_EPHEMERAL_STORAGE = "ephemeral-storage"
_SCRATCH_BYTES = 4 * 2**30
"""What Ray's logs and compile caches take as a rule, with the tokenizer's files; their volumes' limits are higher."""
_LOG_BYTES = 2**30
"""Containers' own output, which nodes rotate, and what a read-only container writes besides."""
_RESTRICTED: Raw = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class _Storage:
    """A part of a container's resources."""

    requests: Mapping[str, str]
    limits: Mapping[str, str]


def head_group(workload: Workload, site: KubeRaySite, revision: str) -> Raw:
    """Return KubeRay's head group: Ray's and Serve's own processes, and no engine."""
    settings = site.settings
    volumes = [*_scratch(site), *_tokens_volume(workload)]
    if workload.autoscales:
        volumes.append(_api_token_volume())
        volumes.append(_empty_dir("autoscaler-tmp", "1Gi"))
    storage = _storage(volumes)
    container = _ray_container(
        "ray-head",
        site,
        environment=_environment(workload, settings.env),
        requests={"cpu": settings.head_cpu, "memory": settings.head_memory, **storage.requests},
        limits={"memory": settings.head_memory, **storage.limits},
        ports=[("gcs-server", 6379), ("dashboard", DASHBOARD_PORT), ("client", 10001), ("serve", SERVE_PORT)],
    )
    pod = _pod_spec(workload, site, [container], volumes)
    if settings.head_node_selector:
        pod["nodeSelector"] = dict(sorted(settings.head_node_selector.items()))
    if settings.head_tolerations:
        pod["tolerations"] = _tolerations(settings.head_tolerations)
    return {
        "rayStartParams": {
            "dashboard-host": "0.0.0.0",  # noqa: S104 - KubeRay asks it from its own pod; the token guards it
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": str(_OBJECT_STORE_BYTES),
        },
        "template": {"metadata": {"labels": _pod_labels(workload, HEAD, revision)}, "spec": pod},
    }


def worker_group(workload: Workload, site: KubeRaySite, revision: str) -> Raw:
    """Return KubeRay's worker group: one pod for each tensor group."""
    settings, chosen = site.settings, workload.pod.resources
    credentials = credentials_of(workload, site)
    volumes = [*_scratch(site), *_tokens_volume(workload), _empty_dir("weights", settings.weights_size_limit)]
    storage = _storage(volumes, weights=_weights_on_disk(workload, settings.weights_size_limit))
    requests = {
        "cpu": chosen.cpu or str(settings.cpus_per_accelerator * workload.tensor),
        "memory": chosen.memory or f"{settings.memory_gib_per_accelerator * workload.tensor}Gi",
        **storage.requests,
    }
    limits = {"memory": requests["memory"], **storage.limits}
    if (resource := workload.accelerator.resource) is not None:
        requests[resource] = limits[resource] = str(workload.tensor)
    container = _ray_container(
        ENGINE_CONTAINER,
        site,
        environment={**_environment(workload, settings.env), **_HEADLESS},
        requests=requests,
        limits=limits,
        ports=[("serve", SERVE_PORT)],
    )
    container["volumeMounts"].append({"name": "weights", "mountPath": _WEIGHTS, "readOnly": True})
    pod = _pod_spec(workload, site, [container], [*volumes, *credentials.volumes])
    pod["initContainers"] = [_weights_container(workload, site, credentials, cpu=requests["cpu"], storage=storage)]
    # Or each container's program is process 1, which a SIGTERM does not end: KubeRay's wait for the head is a shell,
    # and a pod that is told to go while it runs would stay for all its grace. No two containers run here at a time.
    pod["shareProcessNamespace"] = True
    if settings.supplemental_groups:
        pod["securityContext"]["supplementalGroups"] = list(settings.supplemental_groups)
    if workload.cache_claim is not None:
        pod["volumes"].append({"name": CACHE_VOLUME, "persistentVolumeClaim": {"claimName": workload.cache_claim}})
        # A volume's root is root's. The group opens it to the fetching container; the engine's has no mount of it.
        pod["securityContext"] |= {"fsGroup": _WEIGHTS_USER, "fsGroupChangePolicy": "OnRootMismatch"}
    if (root := settings.file_root_of(workload.weights_uri)) is not None:
        # Read-only as a volume too: then no fsGroup changes the owners of what is there.
        claim = {"claimName": root.claim_name, "readOnly": True}
        pod["volumes"].append({"name": SOURCE_VOLUME, "persistentVolumeClaim": claim})
    if credentials.service_account is not None:
        pod["serviceAccountName"] = credentials.service_account
    selector = {**workload.pod.node_selector, **workload.accelerator.node_selector}
    if selector:
        pod["nodeSelector"] = dict(sorted(selector.items()))
    if workload.pod.tolerations:
        pod["tolerations"] = _tolerations(workload.pod.tolerations)
    if workload.pod.runtime_class_name is not None:
        pod["runtimeClassName"] = workload.pod.runtime_class_name
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {**workload.identity, ROLE_LABEL: WORKER}},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    # One more CPU than accelerators: the replica's own actor takes one beside its workers'.
    params = {"num-cpus": str(workload.tensor + 1), "object-store-memory": str(_OBJECT_STORE_BYTES)}
    params["num-gpus"] = str(workload.tensor if workload.accelerator.resource is not None else 0)
    metadata: Raw = {"labels": _pod_labels(workload, WORKER, revision)}
    if credentials.annotations:
        metadata["annotations"] = dict(credentials.annotations)
    return {"rayStartParams": params, "template": {"metadata": metadata, "spec": pod}}


def autoscaler_options(site: KubeRaySite) -> Raw:
    """Return the sidecar's settings: restricted too, and alone with a token for the API server."""
    return {
        # v2 forbids containers to restart, so a failed fetch would lose its message in a loop of new pods.
        "version": "v1",
        "imagePullPolicy": site.settings.image_pull_policy,
        "securityContext": {**_RESTRICTED, "runAsUser": site.settings.run_as_user},
        "resources": {
            "requests": {"cpu": "200m", "memory": "512Mi", _EPHEMERAL_STORAGE: "256Mi"},
            "limits": {"memory": "512Mi", _EPHEMERAL_STORAGE: "1Gi"},
        },
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 - the sidecar's own volume
        "volumeMounts": [
            {"name": "api-token", "mountPath": _API_TOKEN, "readOnly": True},
            {"name": "autoscaler-tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }


def _pod_spec(workload: Workload, site: KubeRaySite, containers: list[Raw], volumes: list[Raw]) -> Raw:
    settings = site.settings
    spec: Raw = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "runAsGroup": settings.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": containers,
        "volumes": volumes,
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if workload.pod.priority_class_name is not None:
        spec["priorityClassName"] = workload.pod.priority_class_name
    return spec


def _ray_container(
    name: str,
    site: KubeRaySite,
    *,
    environment: Mapping[str, str],
    requests: Mapping[str, str],
    limits: Mapping[str, str],
    ports: list[tuple[str, int]],
) -> Raw:
    settings = site.settings
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": _env(environment),
        "ports": [{"name": port, "containerPort": number, "protocol": "TCP"} for port, number in ports],
        "resources": {"requests": dict(requests), "limits": dict(limits)},
        "securityContext": _RESTRICTED,
        # SIGTERM ends Ray at once: before it comes, running requests are waited for.
        "lifecycle": {"preStop": {"exec": {"command": ["python", "-m", "gptoss_serving.drain"]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
            {"name": "home", "mountPath": _HOME},
            {"name": "cache", "mountPath": _CACHE},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "gateway-tokens", "mountPath": _TOKENS, "readOnly": True},
        ],
    }


def _weights_container(
    workload: Workload, site: KubeRaySite, credentials: Credentials, *, cpu: str, storage: _Storage
) -> Raw:
    """Return the container that fetches and verifies; the engine's pod starts only if it succeeds.

    It asks for the engine's ``cpu`` and ``storage``, which it has before the engine: more would make the pod larger
    than was chosen.
    """
    command = ["gptoss", "weights", "pull", workload.weights_uri, "--to", f"{_WEIGHTS}/{_COPIES}"]
    if workload.weights_revision is not None:
        command += ["--revision", workload.weights_revision]
    command += ["--model", workload.subject, "--manifest-digest", workload.manifest_digest]
    command += ["--readable", "--termination-log", "/dev/termination-log", "--report-port", str(REPORT_PORT)]
    mounts = [{"name": "weights", "mountPath": _WEIGHTS}, *credentials.mounts]
    if workload.cache_claim is not None:
        mounts.append({"name": CACHE_VOLUME, "mountPath": _CLAIM})
        command += ["--cache", f"{_CLAIM}/{_CLAIM_FOLDER}"]
        if workload.cache_max_bytes is not None:
            command += ["--cache-max-bytes", workload.cache_max_bytes]
    environment = {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    if (root := site.settings.file_root_of(workload.weights_uri)) is not None:
        mounts.append({"name": SOURCE_VOLUME, "mountPath": root.path, "readOnly": True})
        environment[FILE_ROOTS_VARIABLE] = root.path
    else:
        environment |= _store_environment(workload.scheme, site)
    return {
        "name": WEIGHTS_CONTAINER,
        "image": site.settings.image,
        "imagePullPolicy": site.settings.image_pull_policy,
        # Kubernetes puts variables into a command, $(NAME), and some of these hold the namespace's keys.
        "command": [part.replace("$", "$$") for part in command],
        "env": [*_env({**site.settings.env, **environment}), *credentials.env],
        "ports": [{"name": "pull-report", "containerPort": REPORT_PORT, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": cpu, "memory": "1Gi", **storage.requests},
            "limits": {"memory": "1Gi", **storage.limits},
        },
        "securityContext": {**_RESTRICTED, "runAsUser": _WEIGHTS_USER, "runAsGroup": _WEIGHTS_USER},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _store_environment(scheme: str, site: KubeRaySite) -> dict[str, str]:
    found = {
        "s3": {"AWS_ENDPOINT_URL_S3": site.s3_endpoint, "AWS_REGION": site.s3_region},
        "az": {AZURE_ACCOUNT_VARIABLE: site.azure_account, AZURE_ENDPOINT_VARIABLE: site.azure_endpoint},
        "hf": {
            HUB_ENDPOINT_VARIABLE: site.hf_endpoint,
            HUB_DOWNLOAD_HOSTS_VARIABLE: ",".join(site.hf_download_hosts),
        },
    }
    return {name: value for name, value in found[scheme].items() if value}


_COPIES = "copies"


def _environment(workload: Workload, further: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which ``ray start`` runs: what nodes tell replicas, and Ray's own switches."""
    return {
        **further,
        "GPTOSS_DEVICE": "cpu" if workload.accelerator.vendor == "cpu" else "gpu",
        "GPTOSS_GATEWAY_TOKENS_FILE": f"{_TOKENS}/{_TOKENS_FILE}",
        "GPTOSS_WEIGHTS_DIR": f"{_WEIGHTS}/{_COPIES}",
        "GPTOSS_WEIGHTS_PREPARED": "1",
        "GPTOSS_VOCABULARY_DIR": f"{_CACHE}/vocabularies",
        "HF_HUB_OFFLINE": "1",
        "HOME": _HOME,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "5",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(MAX_REQUEST_SECONDS),
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TRITON_CACHE_DIR": f"{_CACHE}/triton",
        # The image may have no name for kubeRay.runAsUser, and PyTorch asks for one when it is imported.
        "USER": "gptoss",
        "VLLM_CACHE_ROOT": f"{_CACHE}/vllm",
        "VLLM_NO_USAGE_STATS": "1",
        "XDG_CACHE_HOME": _CACHE,
    }


def _env(values: Mapping[str, str]) -> list[Raw]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def _scratch(site: KubeRaySite) -> list[Raw]:
    return [
        _empty_dir("tmp", "10Gi"),
        _empty_dir("home", "1Gi"),
        _empty_dir("cache", site.settings.cache_size_limit),
        _empty_dir("shm", site.settings.shared_memory_size, medium="Memory"),
    ]


def _empty_dir(name: str, size: str, *, medium: str | None = None) -> Raw:
    return {"name": name, "emptyDir": {"sizeLimit": size, **({"medium": medium} if medium else {})}}


def _tolerations(tolerations: Iterable[Toleration]) -> list[Raw]:
    return [each.model_dump(by_alias=True, mode="json", exclude_none=True) for each in tolerations]


def _storage(volumes: Iterable[Raw], *, weights: int = 0) -> _Storage:
    """Return what a pod asks for of its node's disk, and the most that it may take.

    Without a request a node under pressure evicts it first, for it takes more than it asked for; so it asks for what it
    takes as a rule, and for ``weights`` bytes of weights. The limit is what its volumes may take together, and logs.
    """
    disks = [each["emptyDir"] for each in volumes if "emptyDir" in each and "medium" not in each["emptyDir"]]
    most = sum(amount(each["sizeLimit"]) for each in disks) + _LOG_BYTES
    return _Storage(
        requests={_EPHEMERAL_STORAGE: _mebibytes(weights + _SCRATCH_BYTES)},
        limits={_EPHEMERAL_STORAGE: _mebibytes(most)},
    )


def _weights_on_disk(workload: Workload, size_limit: str) -> int:
    """Return the bytes of a pod's copy of the weights; where nobody knows them, the most that they may take."""
    most = amount(size_limit)
    return most if workload.weight_bytes is None else min(most, workload.weight_bytes)


def _mebibytes(count: int) -> str:
    return f"{-(-count // 2**20)}Mi"


def _tokens_volume(workload: Workload) -> list[Raw]:
    return [{"name": "gateway-tokens", "configMap": {"name": gateway_tokens_config(workload.name)}}]


def _api_token_volume() -> Raw:
    return {
        "name": "api-token",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {
                    "downwardAPI": {
                        "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}],
                    }
                },
            ]
        },
    }


def _pod_labels(workload: Workload, role: str, revision: str) -> dict[str, str]:
    return {**workload.labels, ROLE_LABEL: role, REVISION_LABEL: revision}
