"""What the chart renders: valid for the API server, restricted, checked values, nothing by default that is optional."""

import copy
import json
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_gateway.settings import GatewaySettings
from gptoss_operator.kuberay_settings import KubeRaySettings
from gptoss_operator.settings import SettingsError, load_settings
from gptoss_weights.sources.endpoint import is_forbidden
from tests.apiserver.chart.helm import CHART, VALUES_FILES, Helm, HelmError, Raw, of_kind
from tests.controlplane import CRDS

METADATA_ADDRESSES = (
    *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe"),
)
IDENTITY = {
    "namespaces": ["ml"],
    "serviceAccountName": "gptoss-weights",
    "aws": {
        "roleARN": "arn:aws:iam::123456789012:role/gptoss-weights",
        "audience": "sts.amazonaws.com",
        "stsEndpoint": "https://sts.eu-central-1.amazonaws.com",
    },
}
EVERYTHING = {
    "global": {"imagePullSecrets": ["pull"], "commonLabels": {"team": "platform"}},
    "operator": {
        "fence": True,
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"operator": "Exists"}],
    },
    "gateway": {
        "autoscaling": {"enabled": True},
        "ingress": {"enabled": True, "hosts": ["gptoss.example.com"]},
        "affinity": {"nodeAffinity": {}},
        "tls": {"secretName": "gptoss-gateway-tls", "clientCA": {"secretName": "clients"}},
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "enginePodMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    },
    "networkPolicy": {"gatewayFrom": [{"podSelector": {}}]},
    "admission": {
        "policyUse": True,
        "auditUse": True,
        "namespaces": [
            {"matchLabels": {"weights.example.com/tier": "new", "empty": ""}, "audit": True},
            {"policies": ["*", "experimental"]},
        ],
    },
    "kubeRay": {
        "enabled": True,
        "image": "images.test/gptoss-serving",
        "settings": {
            "workloadIdentities": [IDENTITY],
            "fileRoots": [{"path": "/models", "claimName": "models"}, {"path": "/mnt/archive", "claimName": "0"}],
            "gcsFaultTolerance": [
                {
                    "namespaces": ["*"],
                    "redisAddress": "rediss://redis.{namespace}.svc:6379",
                    "passwordSecret": {"name": "redis"},
                }
            ],
        },
    },
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}, "data": {"in": "{{ .Release.Name }}"}},
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: text}, data: {in: '{{ .Release.Name }}'}}",
    ],
}
RAY = {
    "name": "shared",
    "dashboardURL": "http://ray:8265",
    "serveURL": "http://ray:8000",
    "gatewayTokenSecret": {"name": "ray", "key": "gateway"},
    "tokenSecret": {"name": "ray", "key": "token"},
}


def rendered(helm: Helm, namespace: str, which: Path | None, values: Raw | None = None) -> list[Raw]:
    """Render for a namespace; the examples' own namespaces are replaced by it, for it exists."""
    text = (which.read_text() if which else "").replace("watchNamespaces: [ml]", f"watchNamespaces: [{namespace}]")
    return helm.render(namespace, values={**(yaml.safe_load(text) or {}), **(values or {})})


def gateway_url(objects: list[Raw]) -> str:
    """Return the address that every deployment's status tells."""
    (text,) = (
        each["data"]["operator.yaml"] for each in of_kind(objects, "ConfigMap") if "operator.yaml" in each["data"]
    )
    return str(yaml.safe_load(text)["gatewayURL"])


def reaches(block: Raw, address: str) -> bool:
    """Tell whether a NetworkPolicy's block lets an address through."""
    reached = ip_address(address)
    return reached in ip_network(block["cidr"]) and not any(reached in ip_network(each) for each in block["except"])


@pytest.mark.parametrize("values", VALUES_FILES, ids=lambda path: path.stem)
def test_is_linted_strictly(helm: Helm, values: Path):
    helm.run("lint", "--strict", str(CHART), "--values", str(values))


@pytest.mark.parametrize(
    "which", [None, *VALUES_FILES, EVERYTHING], ids=["defaults", *(f.stem for f in VALUES_FILES), "everything"]
)
def test_the_api_server_accepts_every_object(
    control_plane: ControlPlane,
    crds: list[str],
    monitoring_kinds: Path,
    helm: Helm,
    namespace: str,
    which: Path | Raw | None,
):
    objects = rendered(helm, namespace, *((None, which) if isinstance(which, dict) else (which,)))
    assert len(objects) > 15
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    arguments = (
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-n",
        namespace,
        "-f",
        "-",
    )
    told = control_plane.kubectl(*arguments, stdin=json.dumps(items))
    assert len(told.splitlines()) == len(objects)


def test_pods_pass_the_restricted_standard(control_plane: ControlPlane, helm: Helm, namespace: str):
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    deployments = of_kind(helm.render(namespace, values={"rayClusters": [RAY]}), "Deployment")
    assert {each["metadata"]["name"] for each in deployments} == {
        "gptoss-gptoss-operator",
        "gptoss-gptoss-operator-gateway",
    }
    for deployment in deployments:
        template = deployment["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "pod-", **template["metadata"]},
            "spec": template["spec"],
        }
        control_plane.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
        loose = copy.deepcopy(pod)
        del loose["spec"]["securityContext"]
        with pytest.raises(StepError, match="violates PodSecurity"):
            control_plane.kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=json.dumps(loose))


def test_nothing_is_killed_for_starting_slowly(helm: Helm):
    deployments = of_kind(helm.render("any"), "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        starts, lives = container["startupProbe"], container["livenessProbe"]
        assert starts["httpGet"] == lives["httpGet"]
        assert starts["periodSeconds"] * starts["failureThreshold"] >= 300


def test_settings_files_are_what_operator_and_gateway_read(helm: Helm, tmp_path: Path):
    values = {
        "rayClusters": [RAY],
        "defaultRayCluster": "shared",
        "operator": {
            "settings": {"workers": 3},
            "weightSources": {
                "s3": {"region": "eu-central-1"},
                "azure": {"account": "acmemodels"},
                "huggingFace": {"downloadHosts": ["*.example.com"]},
            },
        },
    }
    files = {
        name: text
        for each in of_kind(helm.render("gpt", values=values), "ConfigMap")
        for name, text in each["data"].items()
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    operator = load_settings(tmp_path / "operator.yaml")
    assert operator.installation == "gptoss"
    assert operator.system_namespace == "gpt"
    assert operator.workers == 3
    assert operator.leader_election is not None
    assert operator.leader_election.lease_seconds == 12
    assert operator.weight_sources.s3.region == "eu-central-1"
    assert (operator.sources().azure_account, operator.sources().azure_endpoint) == ("acmemodels", None)
    assert operator.sources().hf_download_hosts == ("*.example.com",)
    assert str(operator.ray_clusters[0].token_file) == "/etc/gptoss/ray/shared/token"
    gateway = GatewaySettings.load(tmp_path / "gateway.yaml")
    assert gateway.ray_clusters[0].token_file is None, "the gateway has no business with Ray's dashboard"
    assert gateway.ray_clusters[0].gateway_token_file == operator.ray_clusters[0].gateway_token_file
    assert gateway.default_ray_cluster == operator.default_ray_cluster == "shared"


def test_kuberays_settings_reach_both(helm: Helm, tmp_path: Path):
    image = "images.test/gptoss-serving@sha256:" + "ab" * 32
    values = {"kubeRay": {"enabled": True, "image": image, "settings": {"headMemory": "8Gi"}}}
    objects = helm.render("gpt", values=values)
    for name, text in (item for each in of_kind(objects, "ConfigMap") for item in each["data"].items()):
        (tmp_path / name).write_text(text)
    operator = load_settings(tmp_path / "operator.yaml").kube_ray
    gateway = GatewaySettings.load(tmp_path / "gateway.yaml").kube_ray
    assert operator is not None
    assert gateway is not None
    assert (operator.image, operator.head_memory) == (image, "8Gi")
    assert operator.gateway_token_file == gateway.gateway_token_file
    for deployment in of_kind(objects, "Deployment"):
        mounts = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert str(operator.gateway_token_file.parent) in {mount["mountPath"] for mount in mounts}


def test_a_certificate_is_mounted_where_the_settings_look_and_the_address_is_https(helm: Helm, tmp_path: Path):
    tls = {"secretName": "certificate", "minimumVersion": "TLSv1.3", "clientCA": {"secretName": "clients"}}
    objects = helm.render("gpt", values={"gateway": {"tls": tls}})
    for name, text in (item for each in of_kind(objects, "ConfigMap") for item in each["data"].items()):
        (tmp_path / name).write_text(text)
    read = GatewaySettings.load(tmp_path / "gateway.yaml").tls
    assert read is not None
    assert read.minimum_version == "TLSv1.3"
    pod = next(
        each["spec"]["template"]["spec"]
        for each in of_kind(objects, "Deployment")
        if each["metadata"]["name"].endswith("-gateway")
    )
    folders = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    mounted = {
        f"{folders[volume['name']]}/{item['path']}": volume["secret"]["secretName"]
        for volume in pod["volumes"]
        for item in volume.get("secret", {}).get("items", [])
    }
    assert mounted == {
        str(read.cert_file): "certificate",
        str(read.key_file): "certificate",
        str(read.client_ca_file): "clients",
    }
    ports = [port for each in of_kind(objects, "Service") for port in each["spec"]["ports"] if port["name"] == "http"]
    assert [(port["port"], port["appProtocol"]) for port in ports] == [(443, "https")]
    url = load_settings(tmp_path / "operator.yaml").gateway_url
    assert str(url) == "https://gptoss-gptoss-operator-gateway.gpt.svc:443/v1"


@pytest.mark.parametrize("port", [None, 8443])
def test_a_certificate_in_the_settings_file_makes_the_address_https_too(helm: Helm, port: int | None):
    tls = {"certFile": "/certificates/tls.crt", "keyFile": "/certificates/tls.key"}
    objects = helm.render("gpt", values={"gateway": {"settings": {"tls": tls}, "service": {"port": port}}})
    ports = [port for each in of_kind(objects, "Service") for port in each["spec"]["ports"] if port["name"] == "http"]
    assert [(port["port"], port["appProtocol"]) for port in ports] == [(port or 443, "https")]
    assert gateway_url(objects) == f"https://gptoss-gptoss-operator-gateway.gpt.svc:{port or 443}/v1"
    assert gateway_url(helm.render("gpt")) == "http://gptoss-gptoss-operator-gateway.gpt.svc:80/v1"


@pytest.mark.parametrize(
    "values",
    [
        {"kubeRay": {"settings": {"serviceURL": "http://{service}.{namespace}.svc.cluster.test"}}},
        {
            "kubeRay": {"settings": {"serviceURL": "http://{service}.overruled"}},
            "operator": {"settings": {"kubeRay": {"serviceURL": "http://{service}.{namespace}.svc.cluster.test"}}},
        },
    ],
    ids=["kubeRay.settings", "operator.settings"],
)
def test_operator_and_gateway_look_for_engines_in_one_place(helm: Helm, tmp_path: Path, values: Raw):
    kube_ray = {"enabled": True, "image": "images.test/gptoss-serving", **values["kubeRay"]}
    for each in of_kind(helm.render("gpt", values={**values, "kubeRay": kube_ray}), "ConfigMap"):
        for name, text in each["data"].items():
            (tmp_path / name).write_text(text)
    operator, gateway = load_settings(tmp_path / "operator.yaml"), GatewaySettings.load(tmp_path / "gateway.yaml")
    assert operator.kube_ray is not None
    assert gateway.kube_ray is not None
    url = gateway.kube_ray.engine_url("ml", "a")
    assert url == operator.kube_ray.engine_url("ml", "a")
    assert url.startswith("http://a-gptoss.ml.svc.cluster.test/")


@pytest.mark.parametrize(
    "values",
    [
        {"kubeRay": {"settings": {"fileRoots": [{"path": "/models", "claimName": "models"}]}}},
        {
            "kubeRay": {"settings": {"fileRoots": [{"path": "/overruled", "claimName": "overruled"}]}},
            "operator": {"settings": {"kubeRay": {"fileRoots": [{"path": "/models", "claimName": "models"}]}}},
        },
    ],
    ids=["kubeRay.settings", "operator.settings"],
)
def test_the_operator_has_the_claims_of_file_roots_where_its_settings_say(helm: Helm, tmp_path: Path, values: Raw):
    kube_ray = {"enabled": True, "image": "images.test/gptoss-serving", **values["kubeRay"]}
    objects = helm.render("gpt", values={**values, "kubeRay": kube_ray})
    for name, text in (item for each in of_kind(objects, "ConfigMap") for item in each["data"].items()):
        (tmp_path / name).write_text(text)
    assert [str(each) for each in load_settings(tmp_path / "operator.yaml").sources().file_roots] == ["/models"]
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment")}
    operator, gateway = pods["gptoss-gptoss-operator"], pods["gptoss-gptoss-operator-gateway"]
    (volume,) = [each for each in operator["volumes"] if "persistentVolumeClaim" in each]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    mounts = {mount["mountPath"]: mount for mount in operator["containers"][0]["volumeMounts"]}
    assert mounts["/models"] == {"name": volume["name"], "mountPath": "/models", "readOnly": True}
    # No root that the operator's settings accept hides a folder of its own pod.
    taken = {f"/{path.split('/')[1]}" for path in mounts if path != "/models"}
    assert taken == {"/etc", "/tmp"}
    good = (tmp_path / "operator.yaml").read_text()
    for path in taken:
        (tmp_path / "operator.yaml").write_text(good.replace("/models", path))
        with pytest.raises(SettingsError, match=f"lies in {path}"):
            load_settings(tmp_path / "operator.yaml")
    assert not any("persistentVolumeClaim" in each for each in gateway["volumes"])
    assert "persistentVolumeClaim" not in json.dumps(
        helm.render("gpt", values={"kubeRay": {**kube_ray, "settings": {}}})
    )


def test_pods_reach_no_address_that_is_refused_as_a_source(helm: Helm):
    policies = of_kind(helm.render("gpt"), "NetworkPolicy")
    assert len(policies) == 2
    for policy in policies:
        blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule.get("to", ())]
        for address in METADATA_ADDRESSES:
            assert is_forbidden(address)
            assert not any(reaches(block, address) for block in blocks)
        for address in ("100.100.100.201", "10.0.0.1", "fd00:ec3::253"):
            assert not is_forbidden(address)
            assert any(reaches(block, address) for block in blocks)


@pytest.mark.parametrize(
    ("gateway", "requests", "limits"),
    [
        ({}, ("250m", "256Mi"), {"memory": "1Gi"}),
        ({"workers": 4}, ("1000m", "1024Mi"), {"memory": "4Gi"}),
        ({"settings": {"workers": 2}}, ("500m", "512Mi"), {"memory": "2Gi"}),
        (
            {"workers": 4, "resources": {"requests": {"cpu": 3}, "limits": {"memory": "6Gi", "cpu": "8"}}},
            (3, "1024Mi"),
            {"memory": "6Gi", "cpu": "8"},
        ),
        ({"resources": {"limits": {"memory": None}}}, ("250m", "256Mi"), {}),
    ],
)
def test_the_memory_of_a_gateway_grows_with_its_workers(
    helm: Helm, gateway: Raw, requests: tuple[str | int, str], limits: Raw
):
    deployments = of_kind(helm.render("gpt", values={"gateway": gateway}), "Deployment")
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in deployments}
    resources = pods["gptoss-gptoss-operator-gateway"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": requests[0], "memory": requests[1]}, "limits": limits}


@pytest.mark.parametrize(
    ("gateway", "seconds"),
    [
        ({}, 5 + 600 + 15),
        ({"shutdown": {"delaySeconds": 10, "graceSeconds": 3600}}, 10 + 3600 + 15),
        ({"settings": {"shutdown": {"delaySeconds": 2.5, "graceSeconds": 1200}}}, 3 + 1200 + 15),
    ],
)
def test_a_gateway_is_killed_only_after_its_own_grace(helm: Helm, gateway: Raw, seconds: int):
    objects = helm.render("gpt", values={"gateway": gateway})
    pods = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in of_kind(objects, "Deployment")}
    assert pods["gptoss-gptoss-operator-gateway"]["terminationGracePeriodSeconds"] == seconds


def test_tokens_are_mounted_where_the_settings_look_and_the_gateway_gets_no_dashboard_token(helm: Helm):
    for deployment in of_kind(helm.render("gpt", values={"rayClusters": [RAY]}), "Deployment"):
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        sources = next(volume for volume in volumes if volume["name"] == "ray")["projected"]["sources"]
        paths = {item["path"] for source in sources for item in source["secret"]["items"]}
        wanted = {"shared/gateway-token"} | (
            {"shared/token"} if not deployment["metadata"]["name"].endswith("gateway") else set()
        )
        assert paths == wanted


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "images.test/gptoss-operator:0.1.0"),
        ({"image": {"tag": "1.2"}}, "images.test/gptoss-operator:1.2"),
        ({"global": {"imageRegistry": "mirror:5000/a"}}, "mirror:5000/a/gptoss-operator:0.1.0"),
        ({"image": {"registry": "registry.example.com/b", "repository": "c"}}, "registry.example.com/b/c:0.1.0"),
        (
            {"image": {"tag": "1.2", "digest": "sha256:" + "ab" * 32}},
            "images.test/gptoss-operator@sha256:" + "ab" * 32,
        ),
    ],
)
def test_images_come_from_where_the_values_say(helm: Helm, values: Raw, image: str):
    deployments = of_kind(helm.render("gpt", values=values), "Deployment")
    assert {c["image"] for each in deployments for c in each["spec"]["template"]["spec"]["containers"]} == {image}


@pytest.mark.parametrize(
    ("registry", "image", "pulled"),
    [
        ("", "serving:1", "serving:1"),
        ("mirror:5000/a", "serving:1", "mirror:5000/a/serving:1"),
        ("mirror:5000/a", "team/serving@sha256:" + "1" * 64, "mirror:5000/a/team/serving@sha256:" + "1" * 64),
        ("mirror:5000/a", "registry.example.com/serving:1", "registry.example.com/serving:1"),
        ("mirror:5000/a", "registry:5000/serving", "registry:5000/serving"),
        ("mirror:5000/a", "localhost/serving", "localhost/serving"),
    ],
)
def test_replicas_come_from_the_common_registry_unless_they_name_one(
    helm: Helm, tmp_path: Path, registry: str, image: str, pulled: str
):
    values = {"global": {"imageRegistry": registry}, "kubeRay": {"enabled": True, "image": image}}
    assert kube_ray_settings(helm, tmp_path, values).image == pulled


@pytest.mark.parametrize(
    ("own", "used"), [({}, ("pull.example",)), ({"imagePullSecrets": ["other"]}, ("other",))], ids=["common", "own"]
)
def test_replicas_are_pulled_with_the_common_secrets_unless_others_are_named(
    helm: Helm, tmp_path: Path, own: Raw, used: tuple[str, ...]
):
    kube_ray = {"enabled": True, "image": "images.test/gptoss-serving", "settings": own}
    values = {"global": {"imagePullSecrets": ["pull.example"]}, "kubeRay": kube_ray}
    assert kube_ray_settings(helm, tmp_path, values).image_pull_secrets == used


def kube_ray_settings(helm: Helm, folder: Path, values: Raw) -> KubeRaySettings:
    """What the operator is told of KubeRay, as it reads it."""
    for each in of_kind(helm.render("gpt", values=values), "ConfigMap"):
        for name, text in each["data"].items():
            (folder / name).write_text(text)
    settings = load_settings(folder / "operator.yaml").kube_ray
    assert settings is not None
    return settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"registry": ""}}, "image.registry is empty"),
        ({"kubeRay": {"enabled": True}}, "kubeRay.image is empty"),
        ({"replica": 1}, "replica"),
        ({"operator": {"replicas": "two"}}, "/operator/replicas"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest"),
        ({"rayClusters": [{"name": "a"}]}, "/rayClusters/0"),
        ({"watchNamespaces": ["Bad_Name"]}, "/watchNamespaces/0"),
        ({"gateway": {"tls": {"secretName": "a", "minimumVersion": "1.3"}}}, "/gateway/tls/minimumVersion"),
        ({"gateway": {"tls": {"clientCA": {"secretName": "a"}}}}, "gateway.tls.secretName is not"),
        ({"admission": {"namespaces": [{"audit": "yes"}]}}, "/admission/namespaces/0/audit"),
        ({"admission": {"namespaces": [{"policies": ["Bad'"]}]}}, "/admission/namespaces/0/policies/0"),
        ({"admission": {"namespaces": [{"matchLabels": {"a": 'b"'}}]}}, "/admission/namespaces/0/matchLabels/a"),
        ({"admission": {"namespaces": [{"matchLabels": {'a"': "b"}}]}}, "does not match pattern"),
        ({"admission": {"namespaces": [{}]}}, "/admission/namespaces/0"),
        ({"gateway": {"shutdown": {"graceSeconds": 7200}}}, "/gateway/shutdown/graceSeconds"),
        (
            {"kubeRay": {"settings": {"workloadIdentities": [{"namespaces": [], "serviceAccountName": "a"}]}}},
            "/kubeRay/settings/workloadIdentities/0/namespaces",
        ),
        ({"kubeRay": {"settings": {"fileRoots": [{"path": "/models"}]}}}, "claimName"),
        (
            {"kubeRay": {"settings": {"gcsFaultTolerance": [{"namespaces": ["ml"], "redisAddress": "redis:6379"}]}}},
            "/kubeRay/settings/gcsFaultTolerance/0/redisAddress",
        ),
        (
            {"kubeRay": {"settings": {"rayClusterDeletionDelaySeconds": 86401}}},
            "/kubeRay/settings/rayClusterDeletionDelaySeconds",
        ),
        (
            {"kubeRay": {"settings": {"fileRoots": [{"path": "models", "claimName": "models"}]}}},
            "/kubeRay/settings/fileRoots/0/path",
        ),
        (
            {"kubeRay": {"settings": {"fileRoots": [{"path": "/models", "claimName": "a/b"}]}}},
            "/kubeRay/settings/fileRoots/0/claimName",
        ),
        (
            {"operator": {"weightSources": {"huggingFace": {"downloadHosts": ["https://cdn.example.com"]}}}},
            "/operator/weightSources/huggingFace/downloadHosts/0",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, values: Raw, said: str):
    with pytest.raises(HelmError, match=re.escape(said)):
        helm.render("gpt", values=values)


def test_crds_are_the_generated_ones_and_stay_by_default(helm: Helm):
    crds = {each["metadata"]["name"]: each for each in of_kind(helm.render("gpt"), "CustomResourceDefinition")}
    for path in CRDS.glob("*.yaml"):
        generated = json.loads(path.read_text())
        chart = crds.pop(generated["metadata"]["name"])
        assert chart["spec"] == generated["spec"]
        assert chart["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert crds == {}
    for each in of_kind(helm.render("gpt", values={"crds": {"keep": False}}), "CustomResourceDefinition"):
        assert "helm.sh/resource-policy" not in each["metadata"].get("annotations", {})
    assert of_kind(helm.render("gpt", values={"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def test_what_needs_other_operators_is_off_by_default(helm: Helm):
    kinds = {each["apiVersion"].partition("/")[0] for each in helm.render("gpt")}
    assert "monitoring.coreos.com" not in kinds
    assert "admissionregistration.k8s.io" not in kinds
    maps = of_kind(helm.render("gpt"), "ConfigMap")
    assert not any("grafana_dashboard" in each["metadata"]["labels"] for each in maps)


def test_admission_policies_judge_the_namespaces_that_are_served(helm: Helm):
    for watched in ([], ["ml", "research"]):
        values = {"admission": EVERYTHING["admission"], "watchNamespaces": watched}
        bindings = of_kind(helm.render("gpt", values=values), "ValidatingAdmissionPolicyBinding")
        assert {each["spec"]["policyName"].removeprefix("gptoss-gptoss-operator-") for each in bindings} == {
            "policy-use",
            "audit-use",
            "namespaces",
        }
        names = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": watched}
        where = {"namespaceSelector": {"matchExpressions": [names]}} if watched else None
        assert [each["spec"].get("matchResources") for each in bindings] == [where] * 3


def test_alerts_and_dashboard_are_the_files_of_the_chart(helm: Helm):
    objects = helm.render("gpt", values=EVERYTHING)
    (group,) = of_kind(objects, "PrometheusRule")[0]["spec"]["groups"]
    text = (CHART / "files" / "rules.yaml").read_text()
    assert group["rules"] == yaml.safe_load(text.replace("{{ .Release.Namespace }}", "gpt"))
    boards = {
        name: json.loads(text)
        for each in of_kind(objects, "ConfigMap")
        if "grafana_dashboard" in each["metadata"].get("labels", {})
        for name, text in each["data"].items()
    }
    assert boards == {path.name: json.loads(path.read_text()) for path in CHART.glob("files/dashboards/*.json")} != {}


def test_nobody_gets_a_wildcard_a_shell_or_the_status(helm: Helm):
    for values in ({}, {"watchNamespaces": ["ml"]}):
        objects = helm.render("gpt", values=values)
        for role in of_kind(objects, "ClusterRole") + of_kind(objects, "Role"):
            aggregated = any("aggregate-to" in label for label in role["metadata"]["labels"])
            for rule in role["rules"]:
                words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
                assert "*" not in words
                if rule.get("resourceNames") == ["gptoss-model-credentials"]:
                    assert words == ["", "secrets", "get"]
                    continue
                assert not {"secrets", "pods", "pods/exec", "escalate", "bind", "impersonate"} & set(words)
                assert not (aggregated and any(resource.endswith("/status") for resource in rule["resources"]))


@pytest.mark.parametrize(
    "values",
    [{"kubeRay": {"settings": {"readNodes": False}}}, {"operator": {"settings": {"kubeRay": {"readNodes": False}}}}],
    ids=["kubeRay.settings", "operator.settings"],
)
def test_nodes_that_are_not_read_may_not_be_read(helm: Helm, namespace: str, values: Raw):
    kube_ray = {"enabled": True, "image": "images.test/gptoss-serving", **values.get("kubeRay", {})}
    objects = rendered(helm, namespace, None, {**values, "kubeRay": kube_ray})
    granted = {kind for role in of_kind(objects, "ClusterRole") for rule in role["rules"] for kind in rule["resources"]}
    assert "rayservices" in granted
    assert "nodes" not in granted
