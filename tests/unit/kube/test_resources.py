"""Paths of resources."""

import pytest

from gptoss_kube.resources import GPT_OSS_DEPLOYMENTS, NAMESPACES, RESOURCES, SECRETS, resource_of


def test_paths():
    ours = "/apis/serving.gptoss.dev/v1alpha1"
    assert GPT_OSS_DEPLOYMENTS.path() == f"{ours}/gptossdeployments"
    assert GPT_OSS_DEPLOYMENTS.path(namespace="ml") == f"{ours}/namespaces/ml/gptossdeployments"
    path = GPT_OSS_DEPLOYMENTS.path(namespace="ml", name="a", subresource="status")
    assert path == f"{ours}/namespaces/ml/gptossdeployments/a/status"
    assert NAMESPACES.path(name="ml") == "/api/v1/namespaces/ml"


def test_a_name_cannot_leave_its_path():
    assert SECRETS.path(namespace="ml", name="../../x?y") == "/api/v1/namespaces/ml/secrets/..%2F..%2Fx%3Fy"


def test_scopes_are_minded():
    with pytest.raises(ValueError, match="cluster-scoped"):
        NAMESPACES.path(namespace="ml")
    with pytest.raises(ValueError, match="a namespace is needed"):
        SECRETS.path(name="a")


def test_kinds_are_found_by_what_objects_say():
    assert resource_of({"apiVersion": "serving.gptoss.dev/v1alpha1", "kind": "GptOssDeployment"}) is GPT_OSS_DEPLOYMENTS
    assert all(key == (resource.api_version, resource.kind) for key, resource in RESOURCES.items())
