"""What KubeRay is given for a deployment: sizes, security, and bytes that change only when engines must."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gptoss_api.accelerator import AcceleratorRequest
from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_api.pod import Pod, amount
from gptoss_api.pull_report import REPORT_PORT
from gptoss_gateway.lines import LINE_SECONDS
from gptoss_operator.kuberay_settings import KubeRaySettings, NamespaceLimits
from gptoss_operator.plan.rayservice.render import Rendered, canonical, leading_to, render
from gptoss_operator.plan.rayservice.resolve import check_kuberay, workload_of
from gptoss_operator.plan.rayservice.workload import KubeRaySite, Workload
from gptoss_serving import drain
from gptoss_weights.sources.endpoint import METADATA_SERVICES
from tests.builders import DIGEST, deployment
from tests.unit.operator import rayservices
from tests.unit.operator.rayservices import APPLICATION, site, workload

NOWHERE = {*METADATA_SERVICES, ip_network("169.254.0.0/16"), ip_network("fe80::/10")}
TOLERATIONS = [{"key": "nvidia.com/gpu"}, {"key": "amd.com/gpu", "operator": "Equal", "value": "x"}]


def cluster(of: Workload, at: KubeRaySite | None = None) -> dict[str, Any]:
    return render(of, at or site()).rayservice["spec"]["rayClusterConfig"]


def head(of: Workload) -> dict[str, Any]:
    return cluster(of)["headGroupSpec"]


def workers(of: Workload) -> dict[str, Any]:
    return cluster(of)["workerGroupSpecs"][0]


def pods(of: Workload) -> list[dict[str, Any]]:
    return [head(of)["template"]["spec"], workers(of)["template"]["spec"]]


workloads = st.builds(
    workload,
    tensor=st.sampled_from([1, 2, 4, 8]),
    pods_per_replica=st.integers(1, 4),
    min_replicas=st.integers(1, 3),
    max_replicas=st.integers(3, 9),
    blue_green=st.booleans(),
    cache_claim=st.sampled_from([None, "gptoss-weights-cache"]),
    accelerator=st.builds(
        AcceleratorRequest, vendor=st.sampled_from(["nvidia", "amd", "cpu"]), product=st.sampled_from([None, "H100"])
    ),
    pod=st.builds(
        lambda selector, tolerations: Pod.model_validate({"nodeSelector": selector, "tolerations": tolerations}),
        st.dictionaries(st.sampled_from(["zone", "pool", "a/b"]), st.sampled_from(["x", "y"])),
        st.lists(st.sampled_from(TOLERATIONS), max_size=2),
    ),
)


@given(workloads)
@hypothesis_settings(deadline=None, max_examples=25)
def test_equal_input_gives_equal_bytes(of: Workload) -> None:
    again = replace(of, pod=Pod.model_validate(json.loads(of.pod.model_dump_json(by_alias=True))))
    one, two = render(of, site()), render(again, site())
    assert canonical([one.rayservice, one.others]) == canonical([two.rayservice, two.others])
    assert one.revision == two.revision
    # Not only by content: nothing depends on the order in which dictionaries came to be.
    assert json.dumps(one.rayservice) == json.dumps(two.rayservice)


def test_another_process_renders_the_same_bytes() -> None:
    program = (
        "import json; from gptoss_operator.plan.rayservice.render import render;"
        "from tests.unit.operator.rayservices import site, workload;"
        "print(json.dumps(render(workload(max_replicas=3), site()).rayservice), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    found = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == json.dumps(render(workload(max_replicas=3), site()).rayservice)


@given(workloads)
@hypothesis_settings(deadline=None, max_examples=25)
def test_every_pod_is_restricted_and_bounded(of: Workload) -> None:
    for pod in pods(of):
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod
        assert pod["terminationGracePeriodSeconds"] >= 3600
        # A SIGTERM ends what is not process 1; where a second container has a token, nobody may see its processes.
        assert pod.get("shareProcessNamespace", False) is (len(pod["containers"]) == 1 and "initContainers" in pod)
        for volume in pod["volumes"]:
            kind = next(iter(volume.keys() - {"name"}))
            assert kind in {"emptyDir", "configMap", "projected", "persistentVolumeClaim"}
            assert kind != "emptyDir" or volume["emptyDir"]["sizeLimit"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["runAsNonRoot"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert not security["allowPrivilegeEscalation"]
            assert container["resources"]["requests"]["cpu"]
            assert container["resources"]["limits"]["memory"]
            storage = [amount(container["resources"][kind]["ephemeral-storage"]) for kind in ("requests", "limits")]
            assert 0 < storage[0] <= storage[1]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}
            assert "api-token" not in mounted


GIB = 2**30


def test_a_pod_asks_for_the_disk_that_it_takes_and_may_fill_its_volumes() -> None:
    def asked(model: str | None, **changes: Any) -> tuple[int, int]:
        spec = deployment(model={"name": model, "uri": "s3://models/x"})
        resolved = workload_of(spec, APPLICATION, DIGEST)
        group = cluster(resolved, site(settings=rayservices.settings(**changes)))["workerGroupSpecs"][0]
        pod = group["template"]["spec"]
        (engine,), (fetch,) = pod["containers"], pod["initContainers"]
        named = [each["resources"] for each in (engine, fetch)]
        assert [each["limits"]["ephemeral-storage"] for each in named] == [
            engine["resources"]["limits"]["ephemeral-storage"]
        ] * 2
        volumes = [each["emptyDir"] for each in pod["volumes"] if "medium" not in each.get("emptyDir", {"medium": ""})]
        most = sum(amount(each["sizeLimit"]) for each in volumes)
        request, limit = (amount(engine["resources"][kind]["ephemeral-storage"]) for kind in ("requests", "limits"))
        assert limit > most, "a volume's own limit comes first, and names it"
        return request, limit

    small, large, other = asked("gpt-oss-20b"), asked("gpt-oss-120b"), asked("custom")
    assert 13 * GIB < small[0] < 20 * GIB
    assert 60 * GIB < large[0] < 70 * GIB
    assert other[0] > 200 * GIB, "nobody knows its size, and it may take so much"
    assert asked("custom", weightsSizeLimit="50Gi")[0] < 60 * GIB
    assert asked("gpt-oss-120b", weightsSizeLimit="2Gi")[0] < 10 * GIB, "it can't take more"


def test_a_head_goes_where_an_administrator_says() -> None:
    plain = head(workload())["template"]["spec"]
    assert plain.keys().isdisjoint({"nodeSelector", "tolerations"})
    chosen = site(
        settings=rayservices.settings(headNodeSelector={"pool": "system"}, headTolerations=[{"key": "nvidia.com/gpu"}])
    )
    of = workload(pod=Pod.model_validate({"nodeSelector": {"pool": "gpu"}, "tolerations": TOLERATIONS}))
    made = cluster(of, chosen)
    placed = made["headGroupSpec"]["template"]["spec"]
    assert placed["nodeSelector"] == {"pool": "system"}
    assert placed["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "value": ""}]
    worker = made["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["nodeSelector"] == {"pool": "gpu"}
    assert [each["key"] for each in worker["tolerations"]] == ["nvidia.com/gpu", "amd.com/gpu"]


def test_workers_are_in_the_groups_that_may_open_accelerators_and_heads_are_not() -> None:
    there = site(settings=rayservices.settings(supplementalGroups=[44, 109]))
    for of in (workload(), workload(cache_claim="gptoss-weights-cache")):
        made, plain = cluster(of, there), cluster(of)
        security = made["workerGroupSpecs"][0]["template"]["spec"]["securityContext"]
        before = plain["workerGroupSpecs"][0]["template"]["spec"]["securityContext"]
        assert security == {**before, "supplementalGroups": [44, 109]}
        assert "supplementalGroups" not in json.dumps([plain, made["headGroupSpec"]])


@pytest.mark.parametrize("groups", [[0], [-1], ["render"], list(range(1, 18))])
def test_groups_that_can_not_be_meant_are_refused_by_name(groups: list[Any]) -> None:
    with pytest.raises(ValueError, match="supplementalGroups"):
        rayservices.settings(supplementalGroups=groups)


def test_users_choose_priority_and_runtime_of_workers() -> None:
    chosen = Pod.model_validate({"priorityClassName": "serving", "runtimeClassName": "nvidia"})
    beside, worker = pods(workload(pod=chosen))
    assert (worker["priorityClassName"], worker["runtimeClassName"]) == ("serving", "nvidia")
    assert beside["priorityClassName"] == "serving", "a head that is preempted takes its workers with it"
    assert "runtimeClassName" not in beside, "a head has no accelerator"
    for pod in pods(workload()):
        assert pod.keys().isdisjoint({"priorityClassName", "runtimeClassName"})


def test_replicas_are_spread_among_their_own_as_far_as_there_are_nodes() -> None:
    group = workers(workload())["template"]
    labels, spread = group["metadata"]["labels"], group["spec"]["topologySpreadConstraints"]
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    others = head(workload())["template"]["metadata"]["labels"]
    for each in spread:
        assert (each["maxSkew"], each["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
        chosen = each["labelSelector"]["matchLabels"].items()
        assert chosen <= labels.items()
        assert not chosen <= others.items(), "a head is no replica"


def test_rays_containers_wait_for_their_requests_before_they_are_told_to_end() -> None:
    for pod in pods(workload()):
        (container,) = pod["containers"]
        assert container["lifecycle"] == {"preStop": {"exec": {"command": ["python", "-m", drain.__name__]}}}
        assert pod["terminationGracePeriodSeconds"] > MAX_REQUEST_SECONDS, "or the wait itself would be killed"


def test_only_the_fetching_container_writes_weights_and_knows_credentials() -> None:
    pod = workers(workload())["template"]["spec"]
    (engine,), (fetch,) = pod["containers"], pod["initContainers"]
    assert {"name": "weights", "mountPath": "/gptoss/weights", "readOnly": True} in engine["volumeMounts"]
    assert fetch["volumeMounts"] == [{"name": "weights", "mountPath": "/gptoss/weights"}]
    assert fetch["securityContext"]["runAsUser"] != pod["securityContext"]["runAsUser"]
    assert "gptoss-model-credentials" in json.dumps(fetch)
    assert "gptoss-model-credentials" not in json.dumps([engine, head(workload())])
    assert fetch["command"][:4] == ["gptoss", "weights", "pull", "s3://models/gpt-oss-120b"]
    assert "weights" not in {volume["name"] for volume in head(workload())["template"]["spec"]["volumes"]}


def test_the_fetching_container_tells_how_far_it_is_where_the_operator_asks_it() -> None:
    (fetch,) = workers(workload())["template"]["spec"]["initContainers"]
    assert fetch["command"][fetch["command"].index("--report-port") + 1] == str(REPORT_PORT)
    assert [each["containerPort"] for each in fetch["ports"]] == [REPORT_PORT]
    taken = [port["containerPort"] for pod in pods(workload()) for port in pod["containers"][0]["ports"]]
    assert REPORT_PORT not in taken


def test_a_claim_is_mounted_where_weights_are_fetched_and_nowhere_else() -> None:
    of = workload(cache_claim="gptoss-weights-cache", cache_max_bytes="200Gi")
    pod = workers(of)["template"]["spec"]
    (engine,), (fetch,) = pod["containers"], pod["initContainers"]
    assert {"name": "claim", "persistentVolumeClaim": {"claimName": "gptoss-weights-cache"}} in pod["volumes"]
    assert {"name": "claim", "mountPath": "/gptoss/claim"} in fetch["volumeMounts"]
    assert "claim" not in json.dumps([engine, head(of)])
    assert fetch["command"][-4:] == ["--cache", "/gptoss/claim/gptoss-weights", "--cache-max-bytes", "200Gi"]
    # Its group opens the volume's root to the one user that writes there.
    assert pod["securityContext"]["fsGroup"] == fetch["securityContext"]["runAsGroup"]
    assert pod["securityContext"]["fsGroup"] != pod["securityContext"]["runAsGroup"]
    assert "--cache-max-bytes" not in json.dumps(workers(workload(cache_claim="gptoss-weights-cache")))


@pytest.mark.parametrize("name", ["$(AWS_SECRET_ACCESS_KEY)", "$$(AWS_SECRET_ACCESS_KEY)", "a$b", "$", "$$", "x$("])
def test_no_variable_of_the_fetching_container_gets_into_its_command(name: str) -> None:
    uri = f"s3://models/{name}"
    (fetch,) = workers(workload(weights_uri=uri, subject=name))["template"]["spec"]["initContainers"]
    told = [as_kubernetes_does(part, {"AWS_SECRET_ACCESS_KEY": "secret"}) for part in fetch["command"]]
    assert told[3] == uri
    assert told[told.index("--model") + 1] == name


def as_kubernetes_does(part: str, variables: dict[str, str]) -> str:
    """Put variables into a part of a command: `$(NAME)` is one, `$$` is a dollar. Source: Kubernetes' expansion.go."""

    def put(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", put, part)


def test_a_cache_is_another_pod_and_none_leaves_pods_as_they_are() -> None:
    plain, cached = (render(workload(cache_claim=claim), site()) for claim in (None, "gptoss-weights-cache"))
    assert plain.revision != cached.revision
    assert not any(word in json.dumps(plain.rayservice) for word in ("fsGroup", "persistentVolumeClaim", "--cache"))
    head_of = [made.rayservice["spec"]["rayClusterConfig"]["headGroupSpec"] for made in (plain, cached)]
    for group in head_of:
        del group["template"]["metadata"]["labels"]["serving.gptoss.dev/revision"]
    assert head_of[0] == head_of[1]


@pytest.mark.parametrize(
    ("cache", "allowed", "claim", "said"),
    [
        (None, None, None, None),
        ({}, None, None, None),
        ({"type": "None"}, [], None, None),
        ({"type": "PersistentVolumeClaim"}, None, "gptoss-weights-cache", None),
        ({"type": "PersistentVolumeClaim", "maxBytes": "200Gi"}, None, "gptoss-weights-cache", None),
        ({"type": "PersistentVolumeClaim", "claimName": "models"}, ["models"], "models", None),
        (
            {"type": "PersistentVolumeClaim", "claimName": "data-postgres-0"},
            None,
            None,
            "spec.cache uses claim data-postgres-0, and this namespace may use gptoss-weights-cache: correct",
        ),
        ({"type": "PersistentVolumeClaim"}, ["models"], None, "uses claim gptoss-weights-cache, .* may use models"),
        ({"type": "PersistentVolumeClaim"}, [], None, "may use none: .*cacheClaims of kubeRay.limits"),
    ],
)
def test_only_claims_that_are_offered_are_caches(
    cache: dict[str, Any] | None, allowed: list[str] | None, claim: str | None, said: str | None
) -> None:
    asked = deployment(**({"cache": cache} if cache is not None else {}))
    where = site(settings=rayservices.settings(**({} if allowed is None else {"limits": [{"cacheClaims": allowed}]})))
    if said is not None:
        with pytest.raises(ValueError, match=said):
            check_kuberay(asked, where)
        return
    check_kuberay(asked, where)
    made = workload_of(asked, APPLICATION, DIGEST)
    assert made.cache_claim == claim
    assert made.cache_max_bytes == (cache or {}).get("maxBytes")


def test_processes_have_a_user_name_whatever_the_image_says() -> None:
    # Without one, getpass.getuser() fails where /etc/passwd does not know kubeRay.runAsUser.
    for pod in pods(workload()):
        (container,) = pod["containers"]
        assert {"name": "USER", "value": "gptoss"} in container["env"]


def test_fetching_weights_makes_no_pod_larger_than_was_chosen() -> None:
    small = workload(pod=Pod.model_validate({"resources": {"cpu": "500m", "memory": "4Gi"}}))
    for of in (small, workload()):
        pod = workers(of)["template"]["spec"]
        (engine,), (fetch,) = pod["containers"], pod["initContainers"]
        assert fetch["resources"]["requests"]["cpu"] == engine["resources"]["requests"]["cpu"]


def test_only_what_a_source_needs_reaches_the_fetching_container() -> None:
    commit = "0123456789" * 4
    hub = {"hf_endpoint": "https://hub.example.com:8443", "hf_download_hosts": ("*.example.com", "files.example.org")}
    azure = {"azure_account": "acme", "azure_endpoint": "https://blobs.example.com:9443"}
    rendered = {}
    for uri, revision in (
        ("s3://models/gpt-oss-120b", None),
        ("az://models/gpt-oss-120b", None),
        ("hf://acme/gpt-oss-120b", commit),
    ):
        made = workload(weights_uri=uri, weights_revision=revision)
        (fetch,) = cluster(made, site(**hub, **azure))["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
        rendered[uri[:2]] = fetch, {each["name"]: each.get("value") for each in fetch["env"]}
    fetch, environment = rendered["hf"]
    assert fetch["command"][3:7] == ["hf://acme/gpt-oss-120b", "--to", "/gptoss/weights/copies", "--revision"]
    assert fetch["command"][7] == commit
    assert environment["HF_ENDPOINT"] == "https://hub.example.com:8443"
    assert environment["GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS"] == "*.example.com,files.example.org"
    assert "HF_TOKEN" in environment
    assert not any(name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED" for name in environment)
    fetch, environment = rendered["az"]
    assert fetch["command"][3] == "az://models/gpt-oss-120b"
    assert {name: value for name, value in environment.items() if name.startswith("AZURE_")} == {
        "AZURE_STORAGE_ACCOUNT_NAME": "acme",
        "AZURE_STORAGE_ENDPOINT": "https://blobs.example.com:9443",
        "AZURE_STORAGE_SAS_TOKEN": None,
        "AZURE_STORAGE_ACCOUNT_KEY": None,
    }
    secrets = [each["valueFrom"]["secretKeyRef"] for each in fetch["env"] if "valueFrom" in each]
    assert {each["name"] for each in secrets} == {"gptoss-model-credentials"}
    assert not any(name.startswith(("HF_", "AWS_ACCESS", "AWS_SECRET")) for name in environment)
    fetch, environment = rendered["s3"]
    assert "--revision" not in fetch["command"]
    assert not any("HF_" in name or "AZURE_" in name for name in environment), (
        "what served before a hub was configured restarts for nothing"
    )
    policies = [each for each in render(workload(), site(**hub, **azure)).others if each["kind"] == "NetworkPolicy"]
    (policy,) = (each for each in policies if each["metadata"]["name"].endswith("worker"))
    assert {8443, 9443} <= {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({}, (1, 1, 1)),
        ({"min_replicas": 3, "max_replicas": 3}, (3, 3, 3)),
        ({"min_replicas": 2, "max_replicas": 2, "pods_per_replica": 2}, (4, 4, 4)),
        ({"min_replicas": 2, "max_replicas": 5}, (2, 1, 1024)),
        ({"min_replicas": 2, "max_replicas": 5, "pods_per_replica": 2}, (4, 2, 1024)),
    ],
)
def test_worker_pods_are_counted_from_replicas_and_pipeline(
    change: dict[str, Any], counts: tuple[int, int, int]
) -> None:
    group = workers(workload(**change))
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == counts
    assert cluster(workload(**change))["enableInTreeAutoscaling"] is (counts[1] != counts[2])


@pytest.mark.parametrize(
    ("accelerator", "tensor", "resource", "params"),
    [
        ({}, 4, {"nvidia.com/gpu": "4"}, ("5", "4")),
        ({"vendor": "amd"}, 1, {"amd.com/gpu": "1"}, ("2", "1")),
        ({"resourceName": "nvidia.com/mig-3g.40gb"}, 1, {"nvidia.com/mig-3g.40gb": "1"}, ("2", "1")),
        ({"vendor": "cpu"}, 1, {}, ("2", "0")),
    ],
)
def test_a_worker_holds_one_tensor_group(
    accelerator: dict[str, str], tensor: int, resource: dict[str, str], params: tuple[str, str]
) -> None:
    group = workers(workload(accelerator=AcceleratorRequest.model_validate(accelerator), tensor=tensor))
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert {name: count for name, count in limits.items() if name not in {"memory", "ephemeral-storage"}} == resource
    assert (group["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-gpus"]) == params


def test_the_head_does_no_model_work() -> None:
    assert head(workload())["rayStartParams"]["num-cpus"] == "0"
    assert head(workload())["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head(workload()))


def test_only_the_autoscaler_gets_a_token_for_the_api_server() -> None:
    assert "api-token" not in json.dumps(cluster(workload()))
    scaled = cluster(workload(max_replicas=2))
    assert scaled["autoscalerOptions"]["version"] == "v1"
    assert [mount["name"] for mount in scaled["autoscalerOptions"]["volumeMounts"]] == ["api-token", "autoscaler-tmp"]
    assert "api-token" not in json.dumps(scaled["workerGroupSpecs"])


def test_ray_asks_for_a_token_from_our_own_secret_that_outlives_clusters() -> None:
    found = cluster(workload())["authOptions"]
    assert found == {"mode": "token", "secretName": "assistant-ray-11111111"}
    other = replace(workload(), uid="99999999-0000-0000-0000-000000000000")
    assert cluster(other)["authOptions"]["secretName"] != found["secretName"]


def test_everything_goes_with_its_deployment() -> None:
    rendered = render(workload(), site())
    for each in (rendered.rayservice, *rendered.others, render(workload(), site()).service):
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("GptOssDeployment", rayservices.UID)
        assert len(each["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    "change",
    [
        {"tensor": 4},
        {"manifest_digest": "sha256:" + "cd" * 32},
        {"application": {**APPLICATION, "args": {"schema": 1, "modelId": "x", "engine": {"seed": 2}}}},
        {"pod": Pod.model_validate({"resources": {"memory": "48Gi"}})},
        {"pod": Pod.model_validate({"tolerations": TOLERATIONS})},
        {"max_replicas": 2},
        {"min_replicas": 2, "max_replicas": 2},
    ],
)
def test_what_engines_are_made_of_changes_the_revision(change: dict[str, Any]) -> None:
    assert render(workload(**change), site()).revision != render(workload(), site()).revision


def test_an_image_changes_the_revision() -> None:
    other = site(settings=rayservices.settings(image="serving@sha256:" + "2" * 64))
    assert render(workload(), other).revision != render(workload(), site()).revision


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ({"max_replicas": 4}, {"max_replicas": 6}),
        ({"max_replicas": 4}, {"min_replicas": 2}),
        ({}, {"application": {**APPLICATION, "deployments": [{"name": "GptOssServer:x", "max_ongoing_requests": 9}]}}),
        ({}, {"blue_green": False}),
    ],
)
def test_bounds_and_strategy_restart_no_engine(before: dict[str, Any], change: dict[str, Any]) -> None:
    changed = workload(**{**before, **change})
    assert render(changed, site()).revision == render(workload(**before), site()).revision


def test_the_revision_stands_on_every_pod_so_that_kuberay_sees_a_change() -> None:
    rendered = render(workload(), site())
    for template in (head(workload())["template"], workers(workload())["template"]):
        assert template["metadata"]["labels"]["serving.gptoss.dev/revision"] == rendered.revision
    assert rendered.rayservice["metadata"]["annotations"]["serving.gptoss.dev/revision"] == rendered.revision


def test_workers_outlast_a_head_that_is_told_to_go_with_them() -> None:
    (engine,), (beside,) = (pod["containers"] for pod in reversed(pods(workload())))
    variable = "RAY_gcs_rpc_server_reconnect_timeout_s"
    waits = {each["name"]: each["value"] for each in engine["env"]}[variable]
    assert int(waits) >= workers(workload())["template"]["spec"]["terminationGracePeriodSeconds"]
    assert variable not in {each["name"] for each in beside["env"]}, "a head has its control store beside it"


@pytest.mark.parametrize(("blue_green", "strategy"), [(True, "NewCluster"), (False, "None")])
def test_the_roll_out_strategy_becomes_kuberays(blue_green: bool, strategy: str) -> None:
    spec = render(workload(blue_green=blue_green), site()).rayservice["spec"]
    assert spec["upgradeStrategy"] == {"type": strategy}
    assert spec["rayClusterDeletionDelaySeconds"] > LINE_SECONDS, (
        "no gateway sends a request to the old cluster any more"
    )


@pytest.mark.parametrize("seconds", [0, 600, 86400])
def test_an_administrator_says_how_long_a_replaced_cluster_stays_and_restarts_nothing(seconds: int) -> None:
    chosen = render(workload(), site(settings=rayservices.settings(rayClusterDeletionDelaySeconds=seconds)))
    assert chosen.rayservice["spec"]["rayClusterDeletionDelaySeconds"] == seconds
    assert chosen.revision == render(workload(), site()).revision


@pytest.mark.parametrize("seconds", [-1, 86401, "an hour"])
def test_a_delay_out_of_bounds_is_refused_with_its_name(seconds: Any) -> None:
    with pytest.raises(ValueError, match="rayClusterDeletionDelaySeconds"):
        rayservices.settings(rayClusterDeletionDelaySeconds=seconds)


def test_serve_gets_our_application() -> None:
    document = json.loads(render(workload(), site()).rayservice["spec"]["serveConfigV2"])
    assert document["applications"] == [APPLICATION]


@pytest.mark.parametrize(("replicas", "pods", "kept"), [(1, 1, 0), (2, 1, 1), (3, 2, 2)])
def test_a_disruption_takes_one_replica_at_most(replicas: int, pods: int, kept: int) -> None:
    rendered = render(workload(min_replicas=replicas, max_replicas=replicas, pods_per_replica=pods), site())
    (budget,) = [each for each in rendered.others if each["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["minAvailable"] == kept


def test_network_policies_let_in_by_port_and_never_out_to_metadata() -> None:
    store = site(s3_endpoint="http://minio.storage.svc:9000")
    policies = {
        each["metadata"]["name"]: each["spec"]
        for each in render(workload(), store).others
        if each["kind"] == "NetworkPolicy"
    }
    assert set(policies) == {"assistant-head", "assistant-worker"}
    for spec in policies.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["podSelector"]["matchLabels"]["serving.gptoss.dev/uid"] == rayservices.UID
        for rule in spec["ingress"][1:]:
            assert rule["ports"]
            assert rule["from"]
        for rule in spec["egress"]:
            for peer in rule.get("to", ()):
                if block := peer.get("ipBlock"):
                    everywhere = ip_network(block["cidr"])
                    excepted = {ip_network(each) for each in block["except"]}
                    assert excepted == {each for each in NOWHERE if each.version == everywhere.version}
    assert json.dumps(policies["assistant-worker"]["egress"]).count("9000") == 1
    assert len(policies["assistant-head"]["egress"]) == 2, "the head fetches nothing"
    dashboards = [
        rule
        for rule in policies["assistant-head"]["ingress"]
        if {"protocol": "TCP", "port": 8265} in rule.get("ports", ())
    ]
    assert [peer["namespaceSelector"]["matchLabels"] for peer in dashboards[0]["from"]] == [
        {"kubernetes.io/metadata.name": "kuberay-system"}
    ]


def test_an_administrator_says_which_pods_may_reach_replicas_and_at_which_ports() -> None:
    peers = {
        name: {"namespace": f"of-{name}", "podLabels": {"app": name}}
        for name in ("gateway", "operator", "kuberay", "prometheus")
    }

    def admitted(network: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
        there = site(settings=rayservices.settings(network=network))
        found: dict[str, dict[str, list[int]]] = {}
        for policy in (each for each in render(workload(), there).others if each["kind"] == "NetworkPolicy"):
            ports = found.setdefault(policy["metadata"]["name"], {})
            for rule in policy["spec"]["ingress"][1:]:
                for peer in rule["from"]:
                    space = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
                    app = "".join(peer["podSelector"]["matchLabels"].values())
                    ports.setdefault(f"{space}/{app}", []).extend(each["port"] for each in rule["ports"])
        return found

    asks = {"of-gateway/gateway": [8000], "of-operator/operator": [8000]}
    scrapes = {"of-prometheus/prometheus": [8080, 9101]}
    assert admitted(peers) == {
        "assistant-head": {**asks, **scrapes, "of-kuberay/kuberay": [8000, 8265]},
        "assistant-worker": {**asks, **scrapes, "of-operator/operator": [8000, 8020]},
    }
    usual = {"gptoss-system/gateway": [8000], "gptoss-system/operator": [8000, 8020]}
    assert admitted({})["assistant-worker"] == usual, "nobody else, and no Prometheus unless it is named"


def test_workers_reach_every_host_that_weights_may_come_from() -> None:
    hub = site(hf_endpoint="http://hub.internal:8080", hf_download_hosts=("*.hf.co", "cdn.internal:8443"))
    (worker,) = [each for each in render(workload(), hub).others if each["metadata"]["name"] == "assistant-worker"]
    assert [port["port"] for port in worker["spec"]["egress"][-1]["ports"]] == [443, 8080, 8443]


@pytest.mark.parametrize(
    ("most", "network", "ports"),
    [(1, {}, []), (3, {}, [443, 6443]), (3, {"apiServerPorts": [443, 16443]}, [443, 16443])],
    ids=["no autoscaler", "an autoscaler", "an API server elsewhere"],
)
def test_a_head_reaches_the_api_server_where_its_autoscaler_runs(
    most: int, network: dict[str, Any], ports: list[int]
) -> None:
    there = site(settings=rayservices.settings(network=network))
    others = render(workload(max_replicas=most), there).others
    (head,) = [each for each in others if each["metadata"]["name"] == "assistant-head"]
    out = [rule for rule in head["spec"]["egress"] if "ipBlock" in json.dumps(rule)]
    assert [port["port"] for rule in out for port in rule["ports"]] == ports


def test_the_service_leads_to_one_cluster_or_nowhere() -> None:
    selector = leading_to(render(workload(), site()).service, "assistant-x7k2p")["spec"]["selector"]
    assert selector["ray.io/cluster"] == "assistant-x7k2p"
    assert selector["ray.io/serve"] == "true"
    assert render(workload(), site()).service["spec"]["selector"]["ray.io/cluster"] == "none"
    assert render(workload(), site()).service["metadata"]["name"] == "assistant-gptoss"


@pytest.mark.parametrize(
    ("pod", "accelerators", "said"),
    [
        ({"priorityClassName": "high"}, 1, "spec.pod.priorityClassName high is not allowed .*use one of low"),
        ({"runtimeClassName": "kata"}, 1, "spec.pod.runtimeClassName kata .*remove it"),
        ({"tolerations": [{"key": "node-role/control-plane"}]}, 1, "tolerations"),
        ({}, 9, "asks for 9 accelerators and this namespace may have 8"),
        ({"priorityClassName": "low", "tolerations": [{"key": "nvidia.com/gpu"}]}, 8, None),
    ],
)
def test_limits_name_the_field_the_value_and_the_way_out(
    pod: dict[str, Any], accelerators: int, said: str | None
) -> None:
    limits = NamespaceLimits(priority_class_names=("low",), max_accelerators=8)
    refusal = limits.refusal(Pod.model_validate(pod), accelerators)
    if said is None:
        assert refusal is None
    else:
        assert refusal is not None
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(refusal)


@pytest.mark.parametrize(
    ("spec", "at", "said"),
    [
        ({"parallelism": {"pipeline": 2}, "accelerator": {"vendor": "cpu"}}, {}, "spec.parallelism.pipeline is 2 with"),
        ({"parallelism": {"tensor": 2}, "accelerator": {"vendor": "cpu"}}, {}, "spec.parallelism.tensor is 2 with"),
        (
            {"parallelism": {"tensor": 2, "pipeline": 3}, "scaling": {"maxReplicas": 2}},
            {"limits": [{"maxAccelerators": 11}]},
            "asks for 12 accelerators and this namespace may have 11",
        ),
        ({"parallelism": {"tensor": 2, "pipeline": 3}}, {"limits": [{"maxAccelerators": 6}]}, None),
    ],
)
def test_a_pipeline_is_checked_and_counted(spec: dict[str, Any], at: dict[str, Any], said: str | None) -> None:
    asked = deployment(**spec)
    where = site(settings=rayservices.settings(**at))
    if said is not None:
        with pytest.raises(ValueError, match=said):
            check_kuberay(asked, where)
        return
    check_kuberay(asked, where)
    group = workers(workload_of(asked, APPLICATION, DIGEST))
    assert (group["replicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) == (
        3,
        "2",
    )


def test_the_first_fitting_entry_limits_a_namespace() -> None:
    found = rayservices.settings(
        limits=[{"namespaces": ["ml"], "maxAccelerators": 2}, {"namespaces": ["research"], "maxAccelerators": 4}]
    )
    assert found.limits_of("research") == NamespaceLimits(namespaces=("research",), max_accelerators=4)
    assert found.limits_of("else") is None


@pytest.mark.parametrize("version", ["2.59.1", "2.6.0", "nightly"])
def test_an_old_ray_is_refused_in_the_settings(version: str) -> None:
    with pytest.raises(ValueError, match="rayVersion"):
        rayservices.settings(rayVersion=version)


def test_settings_are_read_as_administrators_write_them() -> None:
    found = KubeRaySettings.model_validate(
        {
            "gatewayTokenFile": "/t",
            "image": "i",
            "memoryGiBPerAccelerator": 64,
            "serviceURL": "http://{service}.{namespace}:1",
        }
    )
    assert found.memory_gib_per_accelerator == 64
    assert found.engine_url("ml", "assistant") == "http://assistant-gptoss.ml:1/gptoss/ml/assistant"


def test_replicas_take_each_of_the_gateways_tokens_and_start_anew_for_none() -> None:
    def config(made: Rendered) -> dict[str, Any]:
        return next(each for each in made.others if each["kind"] == "ConfigMap")

    one, other = "ab" * 32, "01" * 32
    before = render(workload(), site(gateway_token_hashes=(one,)))
    both = render(workload(), site(gateway_token_hashes=(other, one)))
    assert config(before)["data"] == {"gateway-tokens": f"sha256:{one}\n"}
    assert config(both)["data"] == {"gateway-tokens": f"sha256:{other}\nsha256:{one}\n"}
    assert (both.revision, both.rayservice) == (before.revision, before.rayservice)
