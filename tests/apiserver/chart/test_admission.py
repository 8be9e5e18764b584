"""Who may ask what of trust: the chart's optional admission policies, before a real API server."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from tests.apiserver.chart.helm import NAME, WITHOUT_CRDS, Helm, Raw
from tests.apiserver.chart.release import (
    deployment,
    eventually_allowed,
    eventually_refused,
    found,
    pod_token,
    write_status,
)
from tests.controlplane import TENANT_USER

pytestmark = pytest.mark.usefixtures("crds")
AUDIT = {"mode": "Audit"}
NAMED = {"policyRef": {"name": "experimental"}}
RESEARCH = {"matchLabels": {"weights": "experimental"}, "policies": ["experimental", "next"], "audit": True}
GROUP = "serving.gptoss.dev"


@pytest.fixture
def install(control_plane: ControlPlane, helm: Helm, released: str) -> Callable[..., None]:
    """Install with some admission policies for the namespace, and let the tenant edit deployments there."""
    binding = ("rolebinding", "tenant", "-n", released)

    def with_policies(**admission: object) -> None:
        # No other test is judged, even while the API server has not forgotten yet what is uninstalled.
        helm.install(released, {**WITHOUT_CRDS, "watchNamespaces": [released], "admission": admission})
        control_plane.kubectl("delete", *binding, "--ignore-not-found")
        control_plane.kubectl("create", *binding, "--clusterrole", f"{NAME}-edit", "--user", TENANT_USER)

    return with_policies


@contextmanager
def granted(plane: ControlPlane, namespace: str | None, rule: Raw) -> Iterator[None]:
    """A right for the tenant, in one namespace or everywhere."""
    role = f"extra-{namespace or 'everywhere'}"
    described = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": role}}
    kind, where = ("rolebinding", ("-n", namespace)) if namespace else ("clusterrolebinding", ())
    plane.kubectl("apply", "-f", "-", stdin=json.dumps({**described, "rules": [{"apiGroups": [GROUP], **rule}]}))
    plane.kubectl("create", kind, role, "--clusterrole", role, "--user", TENANT_USER, *where)
    try:
        yield
    finally:
        plane.kubectl("delete", kind, role, *where)
        plane.kubectl("delete", "clusterrole", role)


def ask(plane: ControlPlane, namespace: str, raw: str, *, user: str = TENANT_USER) -> None:
    """Make or change it, but for the last step."""
    plane.kubectl("apply", "--dry-run=server", "-n", namespace, "-f", "-", stdin=raw, user=user)


def test_naming_a_policy_takes_the_verb_use(control_plane: ControlPlane, released: str, install: Callable[..., None]):
    install(policyUse=True)
    named = deployment("named", verification=NAMED)
    told = eventually_refused(lambda: ask(control_plane, released, named), "may not use WeightTrustPolicy experimental")
    assert "spec.verification.policyRef.name: you" in told
    assert "ask an administrator for the verb use on it, or leave policyRef out" in told
    ask(control_plane, released, deployment("plain", verification=AUDIT))
    rule = {"resources": ["weighttrustpolicies"], "resourceNames": ["experimental"], "verbs": ["use"]}
    with granted(control_plane, None, rule):
        eventually_allowed(lambda: ask(control_plane, released, named), "may not use WeightTrustPolicy")
        with pytest.raises(StepError, match="may not use WeightTrustPolicy other"):
            ask(control_plane, released, deployment("named", verification={"policyRef": {"name": "other"}}))


def test_waiving_the_signer_takes_the_verb_audit(
    control_plane: ControlPlane, released: str, install: Callable[..., None]
):
    install(auditUse=True)
    waiving = deployment("waiving", verification=AUDIT)
    told = eventually_refused(lambda: ask(control_plane, released, waiving), "spec.verification.mode: you may not")
    assert f"Audit in namespace {released}; ask an administrator for the verb audit on gptossdeployments" in told
    ask(control_plane, released, deployment("plain", verification=NAMED))
    rule = {"resources": ["gptossdeployments"], "verbs": ["audit"]}
    with granted(control_plane, "default", rule), pytest.raises(StepError, match="may not use Audit"):
        ask(control_plane, released, waiving)
    with granted(control_plane, released, rule):
        eventually_allowed(lambda: ask(control_plane, released, waiving), "may not use Audit")


def test_a_namespaces_labels_say_what_may_be_asked_for_in_it(
    control_plane: ControlPlane, released: str, install: Callable[..., None]
):
    allowed = [RESEARCH, {"matchLabels": {"tier": ""}, "policies": ["*"]}]
    install(namespaces=allowed)
    named, other = (deployment(verification={"policyRef": {"name": name}}) for name in ("experimental", "other"))
    waiving, plain = deployment(verification=AUDIT), deployment()
    admin = "admin"  # the rule is about the place: nobody may, whoever asks

    def refused(raw: str, why: str) -> str:
        return eventually_refused(lambda: ask(control_plane, released, raw, user=admin), why)

    told = refused(named, f"namespace {released} may not name WeightTrustPolicy experimental")
    assert "spec.verification.policyRef.name" in told
    assert "; leave policyRef out, or ask an administrator for it (admission.namespaces of the chart)" in told
    told = refused(waiving, f"spec.verification.mode: namespace {released} may not use Audit; leave mode out")
    ask(control_plane, released, plain)

    def label(*labels: str) -> None:
        control_plane.kubectl("label", "namespace", released, "--overwrite", *labels)

    label("weights=experimental", "tier=")
    eventually_allowed(lambda: ask(control_plane, released, named, user=admin), "may not name")
    ask(control_plane, released, waiving)
    assert "name one of experimental, next, leave policyRef out" in refused(other, "may not name")

    label("weights=usual")  # now the second entry is the first that fits
    eventually_allowed(lambda: ask(control_plane, released, other), "may not name")
    refused(waiving, "may not use Audit")
    ask(control_plane, "default", waiving, user=admin)  # a namespace of another installation


def test_what_lives_already_goes_on_when_policies_come(
    control_plane: ControlPlane, released: str, install: Callable[..., None]
):
    raw = deployment(verification={**AUDIT, **NAMED})
    install()
    control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=raw)
    before = found(control_plane, "gptoss", "assistant", released)
    asked = {**AUDIT, **NAMED}
    other = deployment("other", verification=asked)
    for kind, value, why in (
        ("policyUse", True, "may not use WeightTrustPolicy"),
        ("auditUse", True, "may not use Audit"),
        ("namespaces", [RESEARCH], "may not name"),
    ):
        install(**{kind: value})
        eventually_refused(lambda: ask(control_plane, released, other), why)
        # Whoever does not ask anew is asked nothing.
        control_plane.kubectl("apply", "-n", released, "-f", "-", stdin=raw, user=TENANT_USER)
        assert found(control_plane, "gptoss", "assistant", released)["spec"] == before["spec"]
        ask(control_plane, released, deployment(verification=asked, scaling={"maxReplicas": 3}))
        control_plane.kubectl("annotate", "gptoss", "assistant", "-n", released, f"{kind}=1", user=TENANT_USER)
        # Other weights under the same waiver or policy are another question.
        swapped = {"name": "gpt-oss-20b", "uri": "s3://elsewhere/gpt-oss-20b"}
        with pytest.raises(StepError, match="may not"):
            ask(control_plane, released, deployment(model=swapped, verification=asked))
        # The way back is open, and the operator says what is so.
        ask(control_plane, released, deployment(verification={"mode": "Enforce"}))
        write_status(control_plane, released, pod_token(control_plane, released, f"operator-{kind.lower()}"))
        status = found(control_plane, "gptoss", "assistant", released)["status"]
        assert status == {"observedGeneration": before["metadata"]["generation"]}
    control_plane.kubectl("delete", "gptoss", "assistant", "-n", released, user=TENANT_USER)
