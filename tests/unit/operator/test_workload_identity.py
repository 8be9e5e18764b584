"""An identity of a cloud for fetching weights: one container of one pod has it, and nothing else of the pod changes."""

import json
from typing import Any

import pytest

from gptoss_operator.plan.rayservice.render import render
from gptoss_operator.plan.rayservice.workload import KubeRaySite
from tests.unit.operator import rayservices
from tests.unit.operator.rayservices import site, workload

ROLE = "arn:aws:iam::123456789012:role/gptoss-weights"
AZURE: dict[str, Any] = {
    "namespaces": ["ml"],
    "serviceAccountName": "gptoss-weights",
    "azure": {"clientID": "11111111-2222-3333-4444-555555555555", "tenantID": "acme.onmicrosoft.com"},
}
AWS = {"namespaces": ["ml"], "serviceAccountName": "gptoss-weights", "aws": {"roleARN": ROLE}}


def at(*entries: dict[str, Any], **more: Any) -> KubeRaySite:
    return site(settings=rayservices.settings(workloadIdentities=list(entries), **more))


def worker(at: KubeRaySite, **changes: Any) -> dict[str, Any]:
    return render(workload(**changes), at).rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]


def environment(template: dict[str, Any]) -> dict[str, Any]:
    (fetch,) = template["spec"]["initContainers"]
    return {each["name"]: each.get("value") for each in fetch["env"]}


def ports(at: KubeRaySite, **changes: Any) -> list[int]:
    others = render(workload(**changes), at).others
    (policy,) = (each for each in others if each["metadata"]["name"].endswith("worker"))
    return [port["port"] for port in policy["spec"]["egress"][-1]["ports"]]


def test_only_the_fetching_container_has_the_identity() -> None:
    template = worker(at(AWS))
    pod = template["spec"]
    (fetch,), (engine,) = pod["initContainers"], pod["containers"]
    assert pod["serviceAccountName"] == "gptoss-weights"
    assert pod["automountServiceAccountToken"] is False
    (volume,) = [each for each in pod["volumes"] if "projected" in each]
    assert volume["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "sts.amazonaws.com", "expirationSeconds": 3600, "path": "token"}}
    ]
    (mount,) = [each for each in fetch["volumeMounts"] if each["name"] == volume["name"]]
    assert mount["readOnly"]
    assert environment(template) | {
        "AWS_ROLE_ARN": ROLE,
        "AWS_ROLE_SESSION_NAME": "gptoss.ml.assistant",
        "AWS_WEB_IDENTITY_TOKEN_FILE": f"{mount['mountPath']}/token",
        "AWS_EC2_METADATA_DISABLED": "true",
    } == environment(template)
    assert volume["name"] not in json.dumps([engine["volumeMounts"], engine["env"]])
    assert ROLE not in json.dumps(engine)
    head = render(workload(max_replicas=2), at(AWS)).rayservice["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert "gptoss-weights" not in json.dumps(head)


def test_on_azure_it_is_an_identity_of_entra_id() -> None:
    there = at({**AZURE, "azure": {**AZURE["azure"], "authorityHost": "https://login.example.com:8443/"}})
    template = worker(there, weights_uri="az://models/gpt-oss-120b")
    (fetch,), (engine,) = template["spec"]["initContainers"], template["spec"]["containers"]
    (volume,) = [each for each in template["spec"]["volumes"] if "projected" in each]
    assert volume["projected"]["sources"][0]["serviceAccountToken"]["audience"] == "api://AzureADTokenExchange"
    assert template["spec"]["serviceAccountName"] == "gptoss-weights"
    assert {name: value for name, value in environment(template).items() if name.startswith("AZURE_")} == {
        "AZURE_AUTHORITY_HOST": "https://login.example.com:8443/",
        "AZURE_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
        "AZURE_FEDERATED_TOKEN_FILE": "/gptoss/identity/token",
        "AZURE_TENANT_ID": "acme.onmicrosoft.com",
    }
    assert "identity" in {each["name"] for each in fetch["volumeMounts"]}
    assert "identity" not in json.dumps(engine["volumeMounts"])
    assert 8443 in ports(there, weights_uri="az://models/gpt-oss-120b")


def test_an_identity_takes_the_place_of_keys() -> None:
    assert "gptoss-model-credentials" not in json.dumps(worker(at(AWS)))
    assert "AWS_ACCESS_KEY_ID" not in environment(worker(at(AWS)))


def test_amazons_webhook_gives_no_container_what_it_would_give_all() -> None:
    template = worker(at(AWS))
    skipped = template["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"].split(",")
    named = [each["name"] for each in template["spec"]["containers"] + template["spec"]["initContainers"]]
    assert set(named) | {"wait-gcs-ready"} == set(skipped)


@pytest.mark.parametrize(
    ("entries", "changes"),
    [
        ([{**AWS, "namespaces": ["research"]}], {}),
        ([AWS], {"weights_uri": "hf://acme/gpt-oss-120b"}),
        ([AWS], {"weights_uri": "az://models/gpt-oss-120b"}),
        ([AZURE], {}),
    ],
    ids=["another namespace", "a hub", "another cloud", "yet another"],
)
def test_whoever_has_none_is_rendered_as_before(entries: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    assert json.dumps(worker(at(*entries), **changes)) == json.dumps(worker(site(), **changes))


def test_the_first_entry_that_fits_counts() -> None:
    other = {**AWS, "namespaces": ["*"], "serviceAccountName": "other"}
    assert worker(at(AWS, other))["spec"]["serviceAccountName"] == "gptoss-weights"
    assert worker(at(other, AWS))["spec"]["serviceAccountName"] == "other"


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [(None, 443), ("https://sts.example.com:8443", 8443), ("http://minio.storage.svc", 80)],
)
def test_workers_reach_the_token_service_and_still_no_metadata(endpoint: str | None, port: int) -> None:
    aws = {"roleARN": ROLE, **({"stsEndpoint": endpoint} if endpoint else {})}
    there = at({**AWS, "aws": aws}, network={"egressPorts": [9000]})
    assert ports(there) == sorted({9000, port})
    assert environment(worker(there)).get("AWS_ENDPOINT_URL_STS") == endpoint
    policies = [each["spec"] for each in render(workload(), there).others if each["kind"] == "NetworkPolicy"]
    peers = [peer for spec in policies for rule in spec["egress"] for peer in rule.get("to", ())]
    blocks = [peer["ipBlock"] for peer in peers if "ipBlock" in peer]
    assert blocks
    assert all({"169.254.0.0/16", "fe80::/10"} & set(block["except"]) for block in blocks)


def test_long_names_stay_within_what_aws_takes() -> None:
    found = environment(worker(at({**AWS, "namespaces": ["*"]}), namespace="n" * 63, name="d" * 47))
    assert len(found["AWS_ROLE_SESSION_NAME"]) == 64


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**AWS, "namespaces": []}, "namespaces is empty"),
        ({**AWS, "aws": None}, "names no cloud"),
        ({**AWS, "aws": {"roleARN": "gptoss-weights"}}, "roleARN"),
        ({**AZURE, "azure": {"clientID": "a/b", "tenantID": "c"}}, "clientID"),
        ({**AZURE, "azure": {**AZURE["azure"], "authorityHost": "http://login.example.com"}}, "authorityHost"),
        ({**AWS, "aws": {"roleARN": ROLE, "audience": ""}}, "audience"),
        ({**AWS, "aws": {"roleARN": ROLE, "audience": "https://kubernetes.default.svc"}}, "Kubernetes' own API"),
        ({**AWS, "aws": {"roleARN": ROLE, "stsEndpoint": "sts.example.com"}}, "stsEndpoint"),
        ({**AWS, "serviceAccountName": "Some_Account"}, "serviceAccountName"),
        ({**AWS, "roleARN": ROLE}, "roleARN"),
    ],
)
def test_what_can_not_work_is_refused_in_the_settings(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        at(entry)
