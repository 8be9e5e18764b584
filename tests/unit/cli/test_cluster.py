"""No cluster, or none that can be asked: one sentence that says what to look at, and exit code 1."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import certifi
import click
import pytest
from click.testing import CliRunner
from kubernetes.aio.config import incluster_config

from gptoss_cli.cluster import cluster_options, with_kube
from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.main import main
from gptoss_kube.client import Kube


def sentence(*arguments: str, env: Mapping[str, str | None] | None = None) -> str:
    """Run a command that must fail, and return the one line it says."""
    result = CliRunner().invoke(main, list(arguments), env={"KUBECONFIG": None, **(env or {})})
    assert result.exit_code == ExitCode.FAILED, result.output
    (line,) = result.output.splitlines()
    return line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


def test_no_kubeconfig_outside_a_pod_names_the_ways_to_give_one(home: Path) -> None:
    said = sentence("status")
    for text in ("there is no kubeconfig", "--kubeconfig", "KUBECONFIG", f"{home}/.kube/config"):
        assert text in said


@pytest.mark.parametrize(
    "content",
    [b"", b"a word", b"[1, 2]", b"a: [\n", b"\xff\xfe\x00", b"clusters: [1]\ncontexts: [2]\ncurrent-context: x"],
)
def test_a_file_that_is_no_kubeconfig_is_named(home: Path, content: bytes) -> None:
    path = home / "odd"
    path.write_bytes(content)
    said = sentence("status", "--kubeconfig", str(path))
    assert f"kubeconfig {path} is not" in said


def test_a_context_that_is_not_there_is_named(kubeconfig: Path) -> None:
    assert "nope" in sentence("status", "--kubeconfig", str(kubeconfig), "--context", "nope")


@pytest.mark.parametrize("command", [("status",), ("wake", "assistant"), ("suspend", "assistant")])
def test_an_unreachable_cluster_is_named_with_what_to_look_at(kubeconfig: Path, command: tuple[str, ...]) -> None:
    server = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    said = sentence(*command, env={"KUBECONFIG": str(kubeconfig)})
    assert f"{server} can't be reached" in said
    assert "--context" in said


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (None, "which is not there or can't be run: install it"),
        ("echo expired >&2; exit 3", "which gave no credentials (exec: process returned 3. b'expired'): run it"),
        ("echo no json", "which gave no credentials (exec: failed to decode process output"),
        ('echo \'{"kind": "ExecCredential", "apiVersion": "x/v1", "status": {}}\'', "does not match"),
    ],
)
def test_a_plugin_that_does_not_log_in_is_named(home: Path, kubeconfig: Path, program: str | None, why: str) -> None:
    plugin = home / "our-cloud-login"
    if program is not None:
        plugin.write_text(f"#!/bin/sh\n{program}\n")
        plugin.chmod(0o700)
    document = json.loads(kubeconfig.read_text())
    command = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "args": ["token"]}
    document["users"][0]["user"] = {"exec": command}
    kubeconfig.write_text(json.dumps(document))
    said = sentence("status", "--kubeconfig", str(kubeconfig))
    assert f"kubeconfig {kubeconfig} logs in with the program '{plugin}', which" in said
    assert why in said
    assert said.endswith("or choose another context")


@pytest.mark.parametrize(("named", "expected"), [((), "their-own"), (("-n", "another"), "another")])
def test_a_pod_asks_for_its_own_namespace(
    home: Path, monkeypatch: pytest.MonkeyPatch, named: tuple[str, ...], expected: str
) -> None:
    account = home / "serviceaccount"
    account.mkdir()
    (account / "namespace").write_text("their-own")
    (account / "token").write_text("t")
    (account / "ca.crt").write_text(certifi.contents())
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(account / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")

    async def asked(_: Kube, namespace: str) -> str:
        return namespace

    @click.command()
    @cluster_options
    def command(**options: Any) -> None:
        click.echo(with_kube(asked, **options))

    result = CliRunner().invoke(command, list(named), env={"KUBECONFIG": None})
    assert result.output == f"{expected}\n"


@pytest.fixture
def kubeconfig(tmp_path: Path):
    """A kubeconfig of a server that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: refused
        path = tmp_path / "config"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{held.getsockname()[1]}"}}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "c",
                }
            )
        )
        yield path
