"""Files that administrators write."""

import os
import time
from pathlib import Path

import pytest
import yaml

from gptoss_api.kuberay import EngineAccess
from gptoss_gateway.errors import ModelRefusedError, SettingsError, UnauthorizedError
from gptoss_gateway.keys import KeyFile, KeyRing
from gptoss_gateway.settings import GatewaySettings
from gptoss_gateway.upstream import Upstreams
from tests.contract.gateway.house import hashed
from tests.unit.gateway.models import model


def write(path: Path, document) -> Path:
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def tenant(name="ml", keys=("k",), **more):
    return {"name": name, "keys": [hashed(key) for key in keys], "namespaces": ["ml"], **more}


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer k"}, {"Authorization": "bearer  k "}, {"x-api-key": "k"}],
)
def test_a_key_is_taken_as_openai_and_anthropic_clients_send_it(tmp_path, headers):
    keys = KeyFile(write(tmp_path / "keys.yaml", {"tenants": [tenant()]}))
    assert keys.authenticate(headers).tenant == "ml"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "k"}, {"Authorization": "Basic k"}, {"Authorization": "Bearer"}, {"x-api-key": "K"},
     {"Authorization": "Bearer " + hashed("k")}, {"Authorization": "Bearer \udcff"}],
)  # fmt: skip
def test_anything_else_is_not(tmp_path, headers):
    keys = KeyFile(write(tmp_path / "keys.yaml", {"tenants": [tenant()]}))
    with pytest.raises(UnauthorizedError):
        keys.authenticate(headers)


@pytest.mark.parametrize("key", ["first", "last", "unknown", ""])
def test_every_key_is_compared_whosever_it_is_so_that_the_time_tells_nothing(tmp_path, monkeypatch, key):
    tenants = [tenant(keys=("first", "second")), tenant("other", keys=("last",))]
    ring = KeyRing.read(write(tmp_path / "keys.yaml", {"tenants": tenants}))
    compared: list[bytes] = []

    def noted(stored: bytes, given: bytes) -> bool:
        compared.append(stored)
        return stored == given

    monkeypatch.setattr("gptoss_gateway.keys.hmac.compare_digest", noted)
    caller = ring.find(key)
    assert (caller.tenant if caller else None) == {"first": "ml", "last": "other"}.get(key)
    assert compared == [hashed(each).removeprefix("sha256:").encode() for each in ("first", "second", "last")]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"tenants": [tenant(), tenant("other")]}, "belongs to 'ml' already"),
        ({"tenants": [{"name": "ml", "keys": ["k"], "namespaces": ["ml"]}]}, "tenants.0.keys.0"),
        ({"tenants": [tenant(namespaces=[])]}, "tenants.0.namespaces"),
        ({"tenants": [tenant(limits={"requests": 1})]}, "tenants.0.limits.requests"),
        ({"tenants": [tenant(limits={"requestsPerMinute": 0})]}, "tenants.0.limits.requestsPerMinute"),
        ({"tenants": [tenant(), tenant(keys=("l",))]}, "tenants.1.name: 'ml' is there twice"),
        ("- [", "not YAML"),
        ("", "the file"),
    ],
)
def test_a_wrong_keys_file_is_named_with_its_field(tmp_path, document, says):
    with pytest.raises(SettingsError, match=r"keys\.yaml") as caught:
        KeyRing.read(write(tmp_path / "keys.yaml", document))
    assert says in str(caught.value)


def test_a_missing_keys_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml"):
        KeyFile(tmp_path / "none.yaml")


def settings(**more):
    return {
        "systemNamespace": "gptoss-system",
        "listen": {"port": 8080},
        "admin": {"port": 8081},
        "keysFile": "keys.yaml",
        "rayClusters": [],
        **more,
    }


def test_settings_are_read(tmp_path):
    read = GatewaySettings.load(write(tmp_path / "gateway.yaml", settings(limits={"maxHeldTotal": 3})))
    assert (read.listen.host, read.limits.max_held_total, read.keys_file) == ("127.0.0.1", 3, Path("keys.yaml"))


@pytest.mark.parametrize(
    ("document", "anonymous", "says"),
    [
        (settings(keysFile=None), False, "keysFile is missing"),
        (settings(), True, "exclude each other"),
        (settings(keysFile=None, listen={"host": "0.0.0.0", "port": 1}), True, "listen.host is '0.0.0.0'"),
        (settings(keysFile=None, listen={"host": "example.org", "port": 1}), True, "listen.host"),
        (settings(listen={"port": 70000}), False, "listen.port"),
        (settings(limits={"maxHeld": 1}), False, "limits.maxHeld"),
        (settings(rayClusters=[{"name": "a"}]), False, "rayClusters.0.dashboardURL"),
        (settings(defaultRayCluster="a"), False, "defaultRayCluster is 'a'"),
        ("listen: [", False, "not YAML"),
    ],
)
def test_wrong_settings_name_the_field(tmp_path, document, anonymous, says):
    with pytest.raises(SettingsError) as caught:
        GatewaySettings.load(write(tmp_path / "gateway.yaml", document), allow_anonymous=anonymous)
    assert says in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_anonymous_callers_are_let_in_on_loopback(tmp_path, host):
    document = settings(keysFile=None, listen={"host": host, "port": 1})
    assert GatewaySettings.load(write(tmp_path / "gateway.yaml", document), allow_anonymous=True).keys_file is None


def test_a_model_on_kuberay_is_reached_at_its_own_service(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    access = EngineAccess.model_validate({"gatewayTokenFile": str(tmp_path / "token")})
    upstreams = Upstreams((), default=None, kube_ray=access)
    for on_kuberay in (True, None):  # named, or by default
        found = upstreams.locate(model(on_kuberay=on_kuberay))
        assert found.url == "http://assistant-gptoss.ml.svc:8000/gptoss/ml/assistant"
        assert found.token == "secret"
    with pytest.raises(ModelRefusedError, match="adds kubeRay"):
        Upstreams((), default=None).locate(model(on_kuberay=True))


def test_a_new_token_is_sent_only_once_replicas_had_time_to_learn_it(tmp_path):
    file = tmp_path / "token"

    def write(text, *, age):
        new = tmp_path / "new"
        new.write_text(text)
        os.utime(new, (time.time() - age, time.time() - age))
        new.replace(file)

    def started():
        access = EngineAccess.model_validate({"gatewayTokenFile": str(file)})
        return Upstreams((), default=None, kube_ray=access)

    def sent(upstreams):
        upstreams.refresh()
        return upstreams.locate(model(on_kuberay=True)).token

    write("old\n", age=10**6)
    running = started()
    assert sent(running) == "old"
    write("new\nold\n", age=10)
    assert (sent(running), sent(started())) == ("old", "old")
    write("old\nnew\n", age=10)
    assert sent(running) == "old", "in the wrong order too"
    write("new\nold\n", age=301)
    assert (sent(running), sent(started())) == ("new", "new")
    write("new\n", age=1)
    assert (sent(running), sent(started())) == ("new", "new")
    write("", age=1)
    assert sent(running) == "new"
    write("other\n", age=1)
    assert sent(running) == "new", "the operator lets it count a while longer"
    write("other\n", age=301)
    assert sent(running) == "other"
    write("", age=1)
    with pytest.raises(SettingsError, match="is empty"):
        started()
