"""Folders of ``file://`` that are claims: one container of one pod has them, and a folder elsewhere is refused."""

import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.plan.rayservice.resolve import check_kuberay, workload_of
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from gptoss_operator.settings import Settings
from gptoss_operator.substrates.kuberay.follow import lean_pod
from gptoss_operator.substrates.kuberay.pods import trouble_of
from tests.builders import DIGEST, deployment
from tests.unit.operator import rayservices
from tests.unit.operator.rayservices import APPLICATION, site, workload

MODELS = {"path": "/models", "claimName": "models"}
ARCHIVE = {"path": "/mnt/archive", "claimName": "archive"}
URI = "file:///models/gpt-oss-120b"


def at(*roots: dict[str, str], **more: Any) -> KubeRaySite:
    return site(settings=rayservices.settings(fileRoots=list(roots), **more))


def worker(at: KubeRaySite, **changes: Any) -> dict[str, Any]:
    of = workload(**{"weights_uri": URI, **changes})
    return render(of, at).rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]


def test_a_claim_is_mounted_read_only_where_weights_are_fetched_and_nowhere_else() -> None:
    there = at(ARCHIVE, MODELS)
    pod = worker(there)["spec"]
    (engine,), (fetch,) = pod["containers"], pod["initContainers"]
    claims = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert claims == [{"name": "source", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}}]
    assert {"name": "source", "mountPath": "/models", "readOnly": True} in fetch["volumeMounts"]
    assert "source" not in {each["name"] for each in engine["volumeMounts"]}
    head = render(workload(weights_uri=URI), there).rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert '"source"' not in json.dumps([engine, head])
    assert "/models" not in json.dumps([engine["volumeMounts"], engine["env"], head["template"]["spec"]])
    assert fetch["command"][:4] == ["gptoss", "weights", "pull", URI]
    assert {"name": "GPTOSS_WEIGHTS_FILE_ROOTS", "value": "/models"} in fetch["env"]
    # Nobody's group gets what is there.
    assert "fsGroup" not in pod["securityContext"]


def test_a_folder_needs_neither_credentials_nor_an_identity_nor_a_way_to_a_store() -> None:
    identity = {
        "namespaces": ["*"],
        "serviceAccountName": "gptoss-weights",
        "aws": {"roleARN": "arn:aws:iam::123456789012:role/gptoss-weights"},
        "azure": {"clientID": "1", "tenantID": "2"},
    }
    there = at(MODELS, workloadIdentities=[identity])
    pod = worker(there)["spec"]
    (fetch,) = pod["initContainers"]
    assert "serviceAccountName" not in pod
    assert {each["name"] for each in fetch["env"]} == {
        "AWS_EC2_METADATA_DISABLED",
        "GPTOSS_WEIGHTS_FILE_ROOTS",
        "HOME",
        "PYTHONDONTWRITEBYTECODE",
    }
    assert all("value" in each for each in fetch["env"])
    (policy,) = (
        each
        for each in render(workload(weights_uri=URI), there).others
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"].endswith("worker")
    )
    inside, dns = policy["spec"]["egress"]
    assert [list(peer) for peer in inside["to"]] == [["podSelector"]]
    assert [port["port"] for port in dns["ports"]] == [53, 53]


def test_a_cache_may_be_another_claim() -> None:
    pod = worker(at(MODELS), cache_claim="gptoss-weights-cache")["spec"]
    claims = {each["name"]: each.get("persistentVolumeClaim") for each in pod["volumes"]}
    assert (claims["claim"], claims["source"]) == (
        {"claimName": "gptoss-weights-cache"},
        # Without this the cache's fsGroup would be given the source's files too.
        {"claimName": "models", "readOnly": True},
    )


def test_roots_that_a_deployment_does_not_use_change_nothing_of_it() -> None:
    store = workload()
    assert render(store, site()) == render(store, at(MODELS, ARCHIVE))
    one, two = (render(workload(weights_uri=URI), each) for each in (at(MODELS), at(ARCHIVE, MODELS)))
    assert one == two
    assert json.dumps(one.rayservice) == json.dumps(two.rayservice)
    moved = at({**MODELS, "claimName": "models-v2"})
    assert render(workload(weights_uri=URI), moved).revision != one.revision


SEGMENTS = st.sampled_from(["models", "models-2", "mnt", "archive", "gpt-oss-120b", "..", ".", "", "x"])


@given(st.lists(SEGMENTS, min_size=1, max_size=4))
@hypothesis_settings(deadline=None, max_examples=300)
def test_a_folder_is_accepted_if_and_only_if_it_lies_on_a_claim(segments: list[str]) -> None:
    uri = "file:///" + "/".join(segments)
    asked = deployment(model={"name": "gpt-oss-20b", "uri": uri})
    plain = not {"", ".", ".."} & set(segments[:-1]) and segments[-1] not in {".", ".."}
    named = [each for each in segments if each]
    root = next((each for each in (MODELS, ARCHIVE) if tuple(named[: each["path"].count("/")]) == _parts(each)), None)
    there = at(MODELS, ARCHIVE)
    if not plain or not named or root is None:
        with pytest.raises(ValueError, match=r"spec\.model\.uri"):
            check_kuberay(asked, there)
        return
    check_kuberay(asked, there)
    made = workload_of(asked, APPLICATION, DIGEST)
    pod = render(made, there).rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    (claim,) = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert claim["claimName"] == root["claimName"]


def _parts(root: dict[str, str]) -> tuple[str, ...]:
    return PurePosixPath(root["path"]).parts[1:]


@pytest.mark.parametrize(
    ("roots", "spec", "said"),
    [
        ((), {}, r"spec.model.uri file:///models/gpt-oss-120b names a folder .*are claims \(none\)"),
        ((), {}, "put the weights into an object store .* kubeRay.fileRoots"),
        ((ARCHIVE,), {}, r"are claims \(/mnt/archive\)"),
        ((MODELS,), {"model": {"name": "gpt-oss-120b", "uri": "file:///models-2/x"}}, "file:///models-2/x names"),
        ((MODELS,), {"model": {"name": "gpt-oss-120b", "uri": "file:///models/../etc"}}, r"no empty, \. or \.\."),
        (
            (MODELS,),
            {"cache": {"type": "PersistentVolumeClaim", "claimName": "models"}},
            "spec.cache uses claim models, on which spec.model.uri file:///models/gpt-oss-120b lies already: set",
        ),
        ((MODELS,), {}, None),
        ((MODELS,), {"model": {"name": "gpt-oss-120b", "uri": "file:///models/gpt-oss-120b/"}}, None),
        ((MODELS,), {"model": {"name": "gpt-oss-120b", "uri": "file:///models"}}, None),
        ((MODELS,), {"cache": {"type": "PersistentVolumeClaim", "claimName": "other"}}, None),
    ],
)
def test_what_is_on_no_claim_is_refused_with_the_way_out(
    roots: tuple[dict[str, str], ...], spec: dict[str, Any], said: str | None
) -> None:
    asked = deployment(**{"model": {"name": "gpt-oss-120b", "uri": URI}, **spec})
    there = at(*roots, limits=[{"cacheClaims": ["models", "other"]}])
    if said is None:
        check_kuberay(asked, there)
        return
    with pytest.raises(ValueError, match=said):
        check_kuberay(asked, there)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "is no folder to mount"),
        ("", "is no folder to mount"),
        ("models", "write an absolute one such as /models"),
        ("/models/", "without a slash at the end"),
        ("//models", "is no folder to mount"),
        ("/models//a", "is no folder to mount"),
        ("/models/../etc", "is no folder to mount"),
        ("/./models", "is no folder to mount"),
        ("/models:/etc", "of letters, digits, dots"),
        ("/models\n", "is no folder to mount"),
        ("/$(HOME)", "is no folder to mount"),
        ("/mödels", "is no folder to mount"),
        ("/etc", "lies in /etc, which belongs to the system"),
        *((path, "use a folder of its own, such as /models") for path in ("/usr/local/models", "/opt/gptoss", "/opt")),
        *(
            (path, "or one below /mnt or /srv")
            for path in ("/gptoss/weights", "/gptoss", "/tmp/x", "/dev/shm", "/proc")
        ),
        *((path, "belongs to the system") for path in ("/var/run/secrets/x", "/var/lib/models", "/run", "/home/ray")),
        *((path, "belongs to the system") for path in ("/app", "/bin", "/lib64", "/root", "/sys", "/nonexistent/x")),
    ],
)
def test_a_root_is_a_folder_of_its_own(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        at({"path": path, "claimName": "models"})
    assert "fileRoots.0.path" in str(refused.value)


PATHS = st.from_regex(r"(/(models|mnt|srv|etc|opt|gptoss|tmp|dev|var|a|[a-z]{1,3})){1,3}", fullmatch=True)


@given(PATHS)
@hypothesis_settings(deadline=None, max_examples=300)
def test_no_root_that_is_accepted_hides_anything_of_a_pod(path: str) -> None:
    try:
        there = at({"path": path, "claimName": "models"})
    except ValueError:
        return
    everything = render(workload(weights_uri=f"file://{path}", cache_claim="c", max_replicas=3), there)
    cluster = everything.rayservice["spec"]["rayClusterConfig"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    mounts = [
        mount
        for pod in pods
        for container in (*pod["containers"], *pod.get("initContainers", ()))
        for mount in container["volumeMounts"]
    ] + cluster["autoscalerOptions"]["volumeMounts"]
    others = {PurePosixPath(mount["mountPath"]) for mount in mounts if mount["name"] != "source"}
    root = PurePosixPath(path)
    assert len(others) > 6
    assert not any(each.is_relative_to(root) or root.is_relative_to(each) for each in others)
    assert not any(root.is_relative_to(each) for each in ("/etc", "/usr", "/opt", "/home", "/var", "/dev", "/proc"))


@pytest.mark.parametrize(
    ("paths", "claims", "said"),
    [
        (("/models", "/models/team-a"), ("a", "b"), "/models and /models/team-a are not beside each other"),
        (("/mnt/a/b", "/mnt/a"), ("a", "b"), "leave one of them out"),
        (("/models", "/models"), ("a", "b"), "are not beside each other"),
        (("/models", "/data"), ("a", "a"), "/models and /data are both claim a: leave one of them out"),
        (("/models", "/models-2", "/mnt/models"), ("a", "b", "c"), None),
    ],
)
def test_roots_lie_beside_each_other_and_are_a_claim_each(
    paths: tuple[str, ...], claims: tuple[str, ...], said: str | None
) -> None:
    roots = [{"path": path, "claimName": claim} for path, claim in zip(paths, claims, strict=True)]
    if said is None:
        assert len(at(*roots).settings.file_roots) == len(roots)
        return
    with pytest.raises(ValueError, match=said):
        at(*roots)


@pytest.mark.parametrize("claim", ["", "Models", "a_b", "other/models", "models."])
def test_a_claim_has_a_name_that_kubernetes_takes(claim: str) -> None:
    with pytest.raises(ValueError, match="claimName"):
        at({"path": "/models", "claimName": claim})


def test_the_operator_reads_signatures_below_the_same_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    kube_ray = {"image": "i", "gatewayTokenFile": "/t", "fileRoots": [MODELS]}
    given: dict[str, Any] = {"installation": "a", "systemNamespace": "b", "kubeRay": kube_ray}
    monkeypatch.delenv("GPTOSS_WEIGHTS_FILE_ROOTS", raising=False)
    assert [str(each) for each in Settings.model_validate(given).sources().file_roots] == ["/models"]
    given["weightSources"] = {"fileRoots": ["/srv/weights"]}
    found = Settings.model_validate(given).sources().file_roots
    assert [str(each) for each in found] == ["/srv/weights", "/models"]
    given |= {"weightSources": {}, "kubeRay": {**kube_ray, "fileRoots": []}}
    assert Settings.model_validate(given).sources().file_roots == ()


@pytest.mark.parametrize(
    ("claim", "advice"),
    [
        (
            "models",
            "with the folder that spec.model.uri names (it is this claim by an administrator's kubeRay.fileRoots)",
        ),
        ("gptoss-weights-cache", "make the claim that spec.cache names, in the deployment's namespace"),
    ],
)
def test_a_claim_that_is_not_there_is_told_by_what_it_is_for(claim: str, advice: str) -> None:
    template = worker(at(MODELS), cache_claim="gptoss-weights-cache")
    message = f'0/2 nodes are available: persistentvolumeclaim "{claim}" not found. preemption: 0/2 nodes'
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    metadata = {"name": "assistant-worker-0", "labels": template["metadata"]["labels"]}
    pod = lean_pod({"metadata": metadata, "spec": template["spec"], "status": {"conditions": [condition]}})
    assert "containers" not in pod["spec"]
    found = trouble_of([pod])
    assert found is not None
    assert (found.failure.reason, found.final) == ("Unschedulable", False)
    assert f'"{claim}" not found' in found.failure.message
    assert advice in found.failure.message
