"""The generated CRDs on a real API server: every rule accepts and rejects, in our words."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from gptoss_api.deployment import GptOssDeployment
from gptoss_api.model import ApiModel
from gptoss_api.names import MAX_NAME_LENGTH
from gptoss_api.policy import WeightTrustPolicySpec
from gptoss_api.report import GatewayReportSpec
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import Invalid
from gptoss_kube.resources import (
    CUSTOM_RESOURCE_DEFINITIONS,
    GATEWAY_REPORTS,
    GPT_OSS_DEPLOYMENTS,
    WEIGHT_TRUST_POLICIES,
    Resource,
)
from tests.controlplane import empty_namespace

pytestmark = pytest.mark.usefixtures("crds")

MODEL = {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}
KEY = "-----BEGIN PUBLIC KEY-----\n" + "A" * 64 + "\n-----END PUBLIC KEY-----\n"
ROOTS = KEY.replace("PUBLIC KEY", "CERTIFICATE")
DIGEST = "sha256:" + "0" * 64
POLICY: dict[str, Any] = {
    "sources": [{"prefix": "s3://models"}],
    "authorities": [{"name": "security", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": KEY}}],
}
REPORT: dict[str, Any] = {"gateway": "gateway-1", "heartbeat": 1, "renewedAt": "2026-11-21T00:00:00.000000Z"}


@pytest.fixture(scope="module")
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """One namespace for all: these tests only create, under names of their own."""
    name = f"crds-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    empty_namespace(control_plane, name)
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[Kube]:
    async with Kube(kubeconfig=control_plane.kubeconfig) as client:
        yield client


def deployment(namespace: str, spec: dict[str, Any], name: str | None = None) -> Object:
    metadata = {"name": name or f"assistant-{uuid.uuid4().hex[:8]}", "namespace": namespace}
    return {"metadata": metadata, "spec": {"model": MODEL, **spec}}


def policy(spec: dict[str, Any]) -> Object:
    return {"metadata": {"name": f"policy-{uuid.uuid4().hex[:8]}"}, "spec": {**POLICY, **spec}}


async def store(kube: Kube, obj: Object, resource: Resource = GPT_OSS_DEPLOYMENTS) -> Object:
    typed = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
    return await kube.create(typed, resource=resource, field_manager="test")


HOURS: dict[str, Any] = {
    "name": "office",
    "timeZone": "Europe/Berlin",
    "days": ["Mon", "Tue", "Wed", "Thu", "Fri"],
    "start": "09:00",
    "end": "17:00",
}


def scheduled(**more: Any) -> dict[str, Any]:
    return {"scaling": {"schedules": [HOURS | more]}}


ZONE_MESSAGE = "spec.scaling.schedules[].timeZone must be a name of the IANA time zone database"
ACCEPTED: dict[str, dict[str, Any]] = {
    "the least": {},
    "the demo's uri": {"model": {**MODEL, "uri": "file:///srv/weights/tiny"}},
    "a trailing slash": {"model": {**MODEL, "uri": "s3://models/gpt-oss-20b/"}},
    "a commit of a hub": {"model": {**MODEL, "uri": "hf://acme/GPT_oss-20b.v1", "revision": "0123456789" * 4}},
    "a folder of a container": {"model": {**MODEL, "uri": "az://gpt-oss-models/20b/2026-11.v1/"}},
    "a whole container": {"model": {**MODEL, "uri": "az://models"}},
    "a whole bucket": {"model": {**MODEL, "uri": "s3://models"}},
    "a served name": {"model": {**MODEL, "servedName": "GPT-oss.20b_fast"}},
    "custom with a subject": {"model": {**MODEL, "name": "custom"}, "verification": {"subject": "acme/finetune"}},
    "a pinned manifest": {
        "verification": {"manifestDigest": DIGEST, "policyRef": {"name": "team"}, "authority": "security"}
    },
    "tensor 1": {"parallelism": {"tensor": 1}},
    "tensor 2": {"parallelism": {"tensor": 2}},
    "tensor 4": {"parallelism": {"tensor": 4}},
    "tensor 8": {"parallelism": {"tensor": 8}},
    "whole experts": {"parallelism": {"tensor": 2, "expert": True}},
    "a pipeline": {"parallelism": {"pipeline": 8}, "substrate": {"kubeRay": {}}},
    "one stage on a Ray cluster": {"parallelism": {"pipeline": 1}, "substrate": {"rayServe": {"clusterName": "x"}}},
    "equal bounds": {"scaling": {"minReplicas": 3, "maxReplicas": 3}},
    "part of scaling": {"scaling": {"maxReplicas": 4}},
    "no delay": {"scaling": {"scaleUpDelaySeconds": 0, "scaleDownDelaySeconds": 0}},
    "long delays": {"scaling": {"scaleUpDelaySeconds": 3600, "scaleDownDelaySeconds": 86400}},
    "office hours": {"scaling": {"maxReplicas": 2, "schedules": [HOURS | {"minReplicas": 2}]}},
    "a night over midnight": {"scaling": {"schedules": [HOURS | {"start": "22:00", "end": "06:00", "days": ["Sun"]}]}},
    "whole days": {"scaling": {"schedules": [HOURS | {"start": "00:00", "end": "24:00", "timeZone": "UTC"}]}},
    "zones of every shape": {
        "scaling": {
            "schedules": [
                HOURS | {"name": f"zone-{number}", "timeZone": zone}
                for number, zone in enumerate(("Etc/GMT+5", "America/Argentina/Buenos_Aires", "EST5EDT"))
            ]
        }
    },
    "engine arguments": {
        "engine": {"maxModelLen": 8192, "extraArgs": {"block-size": 16, "enable-prefix-caching": "true"}}
    },
    "memory settings": {"engine": {"gpuMemoryUtilization": 0.9, "kvCacheDtype": "fp8"}},
    "a ray cluster": {"substrate": {"rayServe": {"clusterName": "local"}}},
    "on KubeRay": {"substrate": {"kubeRay": {}}},
    "on KubeRay, shaped": {
        "substrate": {"kubeRay": {}},
        "accelerator": {"vendor": "amd", "product": "MI300X", "resourceName": "amd.com/gpu"},
        "pod": {
            "resources": {"cpu": "16", "memory": "128Gi"},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "amd.com/gpu", "operator": "Equal", "value": "x", "effect": "NoSchedule"}],
            "priorityClassName": "serving",
            "runtimeClassName": "gpu",
        },
    },
    "no cache": {"cache": {"type": "None"}},
    "a cache": {"cache": {"type": "PersistentVolumeClaim", "maxBytes": "200Gi"}, "substrate": {"kubeRay": {}}},
    "a cache by name": {
        "cache": {"type": "PersistentVolumeClaim", "claimName": "models.team-a", "maxBytes": "214748364800"}
    },
    "recreate and suspended": {"rolloutStrategy": {"type": "Recreate"}, "suspend": True},
}


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_accepts(kube: Kube, namespace: str, spec: dict[str, Any]):
    stored = await store(kube, deployment(namespace, spec))
    read = GptOssDeployment.parse(stored)
    assert pruned(read.spec.model_dump(by_alias=True, exclude_none=True, mode="json")) == pruned(stored["spec"])


URI_MESSAGE = "spec.model.uri must be s3://bucket/prefix, az://container/prefix, hf://owner/name or file:///folder"
HUB = {"name": "gpt-oss-20b", "uri": "hf://acme/gpt-oss-20b"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMIT_MESSAGE = "spec.model.revision must be a full commit id, 40 hexadecimal digits"
RAY_SERVE = {"rayServe": {"clusterName": "a"}}
REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "two substrates": ({"substrate": {**RAY_SERVE, "kubeRay": {}}}, "spec.substrate is kubeRay or rayServe"),
    "pods of a Ray cluster": ({"substrate": RAY_SERVE, "pod": {}}, "spec.pod shapes pods that KubeRay makes"),
    "accelerators of a Ray cluster": (
        {"substrate": RAY_SERVE, "accelerator": {}},
        "spec.accelerator shapes pods that KubeRay makes",
    ),
    "a cache of a Ray cluster": (
        {"substrate": RAY_SERVE, "cache": {"type": "PersistentVolumeClaim"}},
        "spec.cache shapes pods that KubeRay makes",
    ),
    "a claim for no cache": ({"cache": {"claimName": "models"}}, "set spec.cache.type to PersistentVolumeClaim"),
    "a bound for no cache": (
        {"cache": {"type": "None", "maxBytes": "1Gi"}},
        "spec.cache.claimName and spec.cache.maxBytes are of a claim",
    ),
    "a cache of another kind": ({"cache": {"type": "HostPath"}}, "spec.cache.type"),
    "a claim elsewhere": (
        {"cache": {"type": "PersistentVolumeClaim", "claimName": "other/models"}},
        "spec.cache.claimName",
    ),
    "a cache of nothing": ({"cache": {"type": "PersistentVolumeClaim", "maxBytes": "0Gi"}}, "spec.cache.maxBytes"),
    "a cache in decimal": ({"cache": {"type": "PersistentVolumeClaim", "maxBytes": "1.5G"}}, "spec.cache.maxBytes"),
    "a toleration without key": ({"pod": {"tolerations": [{"operator": "Exists"}]}}, "key"),
    "tensor 3": ({"parallelism": {"tensor": 3}}, "spec.parallelism.tensor must be 1, 2, 4 or 8"),
    "expert alone": ({"parallelism": {"expert": True}}, "set spec.parallelism.tensor to 2 or more"),
    "pipeline 0": ({"parallelism": {"pipeline": 0}}, "spec.parallelism.pipeline"),
    "pipeline 9": ({"parallelism": {"pipeline": 9}}, "spec.parallelism.pipeline"),
    "a pipeline on a Ray cluster": (
        {"parallelism": {"pipeline": 2}, "substrate": {"rayServe": {"clusterName": "x"}}},
        "spec.parallelism.pipeline spans pods that KubeRay makes",
    ),
    "tensor 16": ({"parallelism": {"tensor": 16}}, "spec.parallelism.tensor"),
    "min above max": (
        {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas",
    ),
    "min above the default max": (
        {"scaling": {"minReplicas": 2}},
        "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas",
    ),
    "a schedule above max": (
        scheduled(minReplicas=2),
        "spec.scaling.schedules[].minReplicas must not exceed spec.scaling.maxReplicas",
    ),
    "a schedule of nothing": (scheduled(minReplicas=0), "spec.scaling.schedules[0].minReplicas"),
    "a window without length": (scheduled(end="09:00"), "spec.scaling.schedules[].end must differ from start"),
    "a zone that is none": (scheduled(timeZone="Mars/Base"), ZONE_MESSAGE),
    "the server's own zone": (scheduled(timeZone="Local"), ZONE_MESSAGE),
    "an offset for a zone": (scheduled(timeZone="+02:00"), "spec.scaling.schedules[0].timeZone"),
    "a path for a zone": (scheduled(timeZone="../etc/passwd"), "spec.scaling.schedules[0].timeZone"),
    "an hour too many": (scheduled(end="25:00"), "spec.scaling.schedules[0].end"),
    "a start at the day's end": (scheduled(start="24:00"), "spec.scaling.schedules[0].start"),
    "no day": (scheduled(days=[]), "spec.scaling.schedules[0].days"),
    "a day twice": (scheduled(days=["Mon", "Mon"]), "spec.scaling.schedules[0].days[1]: Duplicate value"),
    "a day in full": (scheduled(days=["Monday"]), "spec.scaling.schedules[0].days[0]"),
    "a name twice": ({"scaling": {"schedules": [HOURS, HOURS]}}, "spec.scaling.schedules[1]: Duplicate value"),
    "http": ({"model": {**MODEL, "uri": "http://models/gpt-oss"}}, URI_MESSAGE),
    "no bucket": ({"model": {**MODEL, "uri": "s3:///gpt-oss-20b"}}, URI_MESSAGE),
    "a file on another host": ({"model": {**MODEL, "uri": "file://host/weights"}}, URI_MESSAGE),
    "a relative file": ({"model": {**MODEL, "uri": "file://"}}, URI_MESSAGE),
    "a query": ({"model": {**MODEL, "uri": "s3://models/a?versionId=1"}}, URI_MESSAGE),
    "credentials": ({"model": {**MODEL, "uri": "s3://key:secret@models/a"}}, URI_MESSAGE),
    "an empty segment": ({"model": {**MODEL, "uri": "s3://models//a"}}, URI_MESSAGE),
    "a revision with s3": ({"model": {**MODEL, "revision": COMMIT}}, "spec.model.revision pins a commit of an hf://"),
    "a revision with a folder": (
        {"model": {**MODEL, "uri": "file:///weights", "revision": COMMIT}},
        "remove it for s3://, az:// and file://",
    ),
    "a hub without a commit": ({"model": HUB}, "spec.model.revision is required with hf://"),
    "a branch": ({"model": {**HUB, "revision": "main"}}, COMMIT_MESSAGE),
    "a short commit": ({"model": {**HUB, "revision": COMMIT[:12]}}, COMMIT_MESSAGE),
    "a commit in capitals": ({"model": {**HUB, "revision": COMMIT.upper()}}, COMMIT_MESSAGE),
    "a hub's folder": ({"model": {**HUB, "uri": "hf://acme/gpt-oss-20b/folder", "revision": COMMIT}}, URI_MESSAGE),
    "a hub's owner": ({"model": {**HUB, "uri": "hf://acme", "revision": COMMIT}}, URI_MESSAGE),
    "a commit in the uri": ({"model": {**HUB, "uri": f"hf://acme/gpt-oss-20b@{COMMIT}"}}, URI_MESSAGE),
    "a container in capitals": ({"model": {**MODEL, "uri": "az://Models/20b"}}, URI_MESSAGE),
    "a container with an account": (
        {"model": {**MODEL, "uri": "az://models@acme.blob.core.windows.net/a"}},
        URI_MESSAGE,
    ),
    "an account's host": ({"model": {**MODEL, "uri": "az://acme.blob.core.windows.net/models/a"}}, URI_MESSAGE),
    "a signature": ({"model": {**MODEL, "uri": "az://models/20b?sv=1&sig=a"}}, URI_MESSAGE),
    "a dot at a folder's end": ({"model": {**MODEL, "uri": "az://models/20b."}}, URI_MESSAGE),
    "a revision with a container": (
        {"model": {**MODEL, "uri": "az://models/20b", "revision": COMMIT}},
        "spec.model.revision pins a commit of an hf://",
    ),
    "an unknown model": ({"model": {**MODEL, "name": "gpt-5"}}, "spec.model.name"),
    "custom without a subject": (
        {"model": {**MODEL, "name": "custom"}},
        "spec.verification.subject is required with spec.model.name custom",
    ),
    "a bad served name": ({"model": {**MODEL, "servedName": "-x"}}, "spec.model.servedName"),
    "a served name with a slash": ({"model": {**MODEL, "servedName": "a/b"}}, "spec.model.servedName"),
    "a long served name": ({"model": {**MODEL, "servedName": "a" * 64}}, "spec.model.servedName"),
    "a forbidden argument": ({"engine": {"extraArgs": {"tokenizer": "x"}}}, "spec.engine.extraArgs may only hold"),
    "a quoted number": ({"engine": {"extraArgs": {"seed": "1"}}}, "take whole numbers, without quotes"),
    "a word for a boolean": ({"engine": {"extraArgs": {"enforce-eager": "yes"}}}, 'take "true" or "false"'),
    "all of the memory": ({"engine": {"gpuMemoryUtilization": 1.0}}, "spec.engine.gpuMemoryUtilization"),
    "an unknown type of KV cache": ({"engine": {"kvCacheDtype": "int4"}}, "spec.engine.kvCacheDtype"),
    "a short digest": ({"verification": {"manifestDigest": "sha256:12"}}, "spec.verification.manifestDigest"),
    "a signer that is named and waived": (
        {"verification": {"mode": "Audit", "authority": "security"}},
        "mode Audit waives the signer",
    ),
    "an unknown mode": ({"verification": {"mode": "Warn"}}, "spec.verification.mode"),
    "a negative floor": ({"scaling": {"minReplicas": -1}}, "spec.scaling.minReplicas"),
    "no replica at all": ({"scaling": {"maxReplicas": 0}}, "spec.scaling.maxReplicas"),
    "a delay of hours": ({"scaling": {"scaleUpDelaySeconds": 3601}}, "spec.scaling.scaleUpDelaySeconds"),
    "a delay of days": ({"scaling": {"scaleDownDelaySeconds": 86401}}, "spec.scaling.scaleDownDelaySeconds"),
    "a negative delay": ({"scaling": {"scaleDownDelaySeconds": -1}}, "spec.scaling.scaleDownDelaySeconds"),
    "an unknown strategy": ({"rolloutStrategy": {"type": "Canary"}}, "spec.rolloutStrategy.type"),
    "an unknown field": ({"replicas": 3}, 'unknown field "spec.replicas"'),
    "a url for a cluster": (
        {"substrate": {"rayServe": {"clusterName": "a", "url": "http://a"}}},
        'unknown field "spec.substrate.rayServe.url"',
    ),
}


@pytest.mark.parametrize(("spec", "message"), REJECTED.values(), ids=REJECTED.keys())
async def test_rejects(kube: Kube, namespace: str, spec: dict[str, Any], message: str):
    with pytest.raises(Invalid) as caught:
        await store(kube, deployment(namespace, spec))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["a" * (MAX_NAME_LENGTH + 1), "1st", "with.dot"], ids=["48 characters", "digit first", "dot"]
)
async def test_rejects_names_that_children_could_not_carry(kube: Kube, namespace: str, name: str):
    with pytest.raises(Invalid, match=r"metadata\.name must be a DNS-1035 label"):
        await store(kube, deployment(namespace, {}, name))


async def test_accepts_the_longest_name(kube: Kube, namespace: str):
    assert await store(kube, deployment(namespace, {}, "a" * MAX_NAME_LENGTH))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"substrate": {"rayServe": {"clusterName": "a"}}}, {"substrate": {"rayServe": {"clusterName": "b"}}}),
        ({}, {"substrate": {"rayServe": {"clusterName": "a"}}}),
        ({"substrate": {"rayServe": {"clusterName": "a"}}}, {}),
    ],
    ids=["changed", "added", "removed"],
)
async def test_the_substrate_is_immutable(kube: Kube, namespace: str, before: dict[str, Any], after: dict[str, Any]):
    stored = await store(kube, deployment(namespace, before))
    changed = {**stored, "spec": {**stored["spec"], "substrate": None, **after, "suspend": True}}
    with pytest.raises(Invalid, match=r"spec\.substrate is immutable"):
        await kube.replace(changed, resource=GPT_OSS_DEPLOYMENTS, field_manager="test")
    kept = {**stored, "spec": {**stored["spec"], "suspend": True}}
    assert await kube.replace(kept, resource=GPT_OSS_DEPLOYMENTS, field_manager="test")


async def test_defaults_are_stored_in_full(kube: Kube, namespace: str):
    stored = await store(kube, deployment(namespace, {}))
    assert stored["spec"]["scaling"] == {
        "minReplicas": 0,
        "maxReplicas": 1,
        "scaleUpDelaySeconds": 30,
        "scaleDownDelaySeconds": 600,
        "idleSeconds": 900,
        "wakeTimeoutSeconds": 600,
        "startTimeoutSeconds": 3600,
        "maxHeldRequests": 100,
        "initial": "Prove",
    }
    assert stored["spec"]["parallelism"] == {"tensor": 1, "pipeline": 1, "expert": False}
    assert stored["spec"]["rolloutStrategy"] == {"type": "BlueGreen"}
    assert stored["spec"]["suspend"] is False


IDENTITY: dict[str, Any] = {
    "identity": "release@acme.example",
    "issuer": "https://accounts.acme",
    "trustedRoot": {"inline": "{}"},
}


def identities(**changes: Any) -> dict[str, Any]:
    expected = {key: value for key, value in (IDENTITY | changes).items() if value is not None}
    return {"authorities": [{"name": "a", "models": ["*"], "sigstore": expected}]}


POLICIES_REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "http": ({"sources": [{"prefix": "http://models"}]}, "sources[].prefix must start with s3://, az://"),
    "credentials": ({"sources": [{"prefix": "s3://a:b@models"}]}, "hold no credentials"),
    "no source": ({"sources": []}, "spec.sources"),
    "no authority": ({"authorities": []}, "spec.authorities"),
    "a private key": (
        {"authorities": [{"name": "a", "models": ["*"], "key": {"publicKeyPEM": KEY.replace("PUBLIC", "PRIVATE")}}]},
        "publicKeyPEM must be a PEM public key",
    ),
    "an end before the beginning": (
        {
            "authorities": [
                {**POLICY["authorities"][0], "notBefore": "2026-02-01T00:00:00Z", "notAfter": "2026-01-01T00:00:00Z"}
            ]
        },
        "authorities[].notBefore must lie before notAfter",
    ),
    "a time without a zone": (
        {"authorities": [{**POLICY["authorities"][0], "notAfter": "2026-01-01T00:00:00"}]},
        "notAfter",
    ),
    "an authority without a key": (
        {"authorities": [{"name": "a", "models": ["*"]}]},
        "exactly one of key, certificate and sigstore",
    ),
    "an authority with key and roots": (
        {"authorities": [{**POLICY["authorities"][0], "certificate": {"rootsPEM": ROOTS, "subject": "CN=a"}}]},
        "exactly one of key, certificate and sigstore",
    ),
    "roots that vouch for everybody": (
        {"authorities": [{"name": "a", "models": ["*"], "certificate": {"rootsPEM": ROOTS}}]},
        "a root alone would trust all whom it certifies",
    ),
    "roots that are keys": (
        {"authorities": [{"name": "a", "models": ["*"], "certificate": {"rootsPEM": KEY, "subject": "CN=a"}}]},
        "rootsPEM must be PEM certificates",
    ),
    "a name of no kind": (
        {"authorities": [{"name": "a", "models": ["*"], "certificate": {"rootsPEM": ROOTS, "subjectAltName": "acme"}}]},
        "subjectAltName must start with URI:, email: or DNS:",
    ),
    "a certificate that wants a log": (
        {
            "authorities": [
                {
                    "name": "a",
                    "models": ["*"],
                    "certificate": {"rootsPEM": ROOTS, "subject": "CN=a", "requireTransparencyLog": True},
                }
            ]
        },
        "certificate.requireTransparencyLog must not be true",
    ),
    "an identity without a log": (
        identities(requireTransparencyLog=False),
        "sigstore.requireTransparencyLog must be true",
    ),
    "two identities": (identities(identityRegExp=".+@acme"), "exactly one of identity and identityRegExp"),
    "no identity": (identities(identity=None), "exactly one of identity and identityRegExp"),
    "an expression that is none": (identities(identity=None, identityRegExp="(acme"), "regexp"),
    "an issuer that is no url": (identities(issuer="accounts.acme"), "issuer must be a URL"),
    "a trusted root twice": (
        identities(trustedRoot={"inline": "{}", "name": "acme"}),
        "exactly one of inline and name",
    ),
    "no trusted root": (identities(trustedRoot={}), "exactly one of inline and name"),
    "a trusted root that is a file's name": (
        identities(trustedRoot={"inline": "trusted_root.json"}),
        "trustedRoot.inline must be the text of a trusted_root.json",
    ),
    "an identity beside a key": (
        {"authorities": [{**POLICY["authorities"][0], "sigstore": IDENTITY}]},
        "exactly one of key, certificate and sigstore",
    ),
    "releases of nothing": ({"releases": [{"model": "gpt-oss-20b", "manifestDigests": []}]}, "manifestDigests"),
    "one model's releases twice": (
        {"releases": [{"model": "gpt-oss-20b", "manifestDigests": [DIGEST]}] * 2},
        "Duplicate value",
    ),
    "an unknown consequence": ({"onRevoked": "Delete"}, "spec.onRevoked"),
    "a short fingerprint": ({"denied": {"keyFingerprints": ["ab:cd"]}}, "keyFingerprints"),
    "one name twice": ({"authorities": POLICY["authorities"] * 2}, "Duplicate value"),
    "an unknown field": ({"mode": "Audit"}, 'unknown field "spec.mode"'),
}


@pytest.mark.parametrize(("spec", "message"), POLICIES_REJECTED.values(), ids=POLICIES_REJECTED.keys())
async def test_rejects_policies(kube: Kube, spec: dict[str, Any], message: str):
    with pytest.raises(Invalid) as caught:
        await store(kube, policy(spec), WEIGHT_TRUST_POLICIES)
    assert message in str(caught.value)


async def test_a_whole_policy_survives_the_round_trip(kube: Kube):
    whole = {
        "default": True,
        "namespaceSelector": {
            "matchLabels": {"team": "ml"},
            "matchExpressions": [{"key": "env", "operator": "In", "values": ["prod"]}],
        },
        "authorities": [
            {**POLICY["authorities"][0], "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2027-01-01T00:00:00Z"},
            {
                "name": "certified",
                "models": ["gpt-oss-*"],
                "certificate": {"rootsPEM": ROOTS, "subject": "CN=release", "subjectAltName": "URI:spiffe://a/b"},
            },
            {"name": "identity", "models": ["*"], "sigstore": IDENTITY | {"requireTransparencyLog": True}},
            {
                "name": "identities",
                "models": ["*"],
                "sigstore": {
                    "identityRegExp": "https://git\\.example/acme/.+",
                    "issuer": "https://accounts.acme",
                    "trustedRoot": {"name": "acme"},
                    "requireTransparencyLog": True,
                },
            },
        ],
        "releases": [{"model": "gpt-oss-20b", "manifestDigests": [DIGEST]}],
        "onRevoked": "KeepRunning",
        "allowAudit": True,
        "denied": {"manifestDigests": [DIGEST], "keyFingerprints": [DIGEST], "identities": ["release@acme.example"]},
    }
    obj = policy(whole)
    stored = await store(kube, obj, WEIGHT_TRUST_POLICIES)
    assert same(WeightTrustPolicySpec, stored)
    await kube.delete(WEIGHT_TRUST_POLICIES, obj["metadata"]["name"])


async def test_a_whole_report_survives_the_round_trip(kube: Kube, namespace: str):
    demand = {
        "uid": "u",
        "namespace": "ml",
        "name": "assistant",
        "waiting": 1,
        "inFlight": 2,
        "lastRequest": "x",
        "drainEpochSeen": 3,
    }
    obj = {"metadata": {"name": "gateway-1", "namespace": namespace}, "spec": {**REPORT, "deployments": [demand]}}
    stored = await store(kube, obj, GATEWAY_REPORTS)
    assert same(GatewayReportSpec, stored)
    assert stored["spec"]["deployments"] == [demand]


async def test_kubectl_refuses_unknown_fields_too(control_plane: ControlPlane, namespace: str):
    manifest = {
        "apiVersion": GPT_OSS_DEPLOYMENTS.api_version,
        "kind": GPT_OSS_DEPLOYMENTS.kind,
        **deployment(namespace, {"scaling": {"minimum": 1}}),
    }
    with pytest.raises(StepError, match="unknown field"):
        control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


@pytest.mark.parametrize(
    "resource", [GPT_OSS_DEPLOYMENTS, WEIGHT_TRUST_POLICIES, GATEWAY_REPORTS], ids=lambda resource: resource.kind
)
async def test_every_field_is_explained_and_bounded(kube: Kube, resource: Resource):
    name = f"{resource.plural}.{resource.group}"
    crd = await kube.get(CUSTOM_RESOURCE_DEFINITIONS, name)
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    fields = dict(every_field(schema, ""))
    assert fields
    assert [path for path, field in fields.items() if not field.get("description")] == []
    unbounded = [
        path
        for path, field in fields.items()
        if (field["type"] == "array" and "maxItems" not in field)
        or ("additionalProperties" in field and "maxProperties" not in field)
        if "type" in field
    ]
    assert unbounded == []
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


def test_kubectl_explains(control_plane: ControlPlane):
    text = control_plane.kubectl("explain", "gptoss.spec.scaling.idleSeconds")
    assert "Seconds without a request after which the model goes to sleep" in text
    assert "DESCRIPTION" in control_plane.kubectl("explain", "weighttrustpolicies.spec.authorities")


async def test_columns_show_what_people_ask_for(kube: Kube, control_plane: ControlPlane, namespace: str):
    await store(kube, deployment(namespace, {}, "shown"))
    status = {
        "state": "Idle",
        "replicas": {"ready": 0, "desired": 0},
        "pull": {"startedAt": "2026-11-21T00:00:00Z", "progress": "41%"},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Idle",
                "message": "",
                "lastTransitionTime": "2026-11-21T00:00:00Z",
            }
        ],
    }
    await kube.apply_status(
        {"metadata": {"name": "shown", "namespace": namespace}, "status": status},
        resource=GPT_OSS_DEPLOYMENTS,
        field_manager="test",
    )
    header, row = control_plane.kubectl("get", "gptoss", "shown", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "MODEL", "STATE", "READY", "REASON", "REPLICAS", "PULL", "AGE"]
    assert row.split()[:7] == ["shown", "gpt-oss-20b", "Idle", "True", "Idle", "0", "41%"]
    wide = control_plane.kubectl("get", "gptoss", "shown", "-n", namespace, "-o", "wide").splitlines()[0]
    assert "URL" in wide.split()


def same(model: type[ApiModel], stored: Object) -> bool:
    dumped = model.model_validate(stored["spec"]).model_dump(by_alias=True, exclude_none=True, mode="json")
    return bool(pruned(dumped) == pruned(stored["spec"]))


def pruned(value: Any) -> Any:
    """The value without empty objects and lists, which mean the same as absent ones."""
    if isinstance(value, dict):
        kept = {key: pruned(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [])}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def every_field(schema: Object, path: str) -> Iterator[tuple[str, Object]]:
    for name, field in schema.get("properties", {}).items():
        if not path and name in {"apiVersion", "kind", "metadata"}:
            continue
        yield f"{path}.{name}", field
        yield from every_field(field, f"{path}.{name}")
        if isinstance(field.get("items"), dict):
            yield from every_field(field["items"], f"{path}.{name}[]")
