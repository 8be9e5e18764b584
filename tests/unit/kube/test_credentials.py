"""What a kubeconfig's plugin gave goes on to be used while the plugin fails."""

import json
import logging
from pathlib import Path

import pytest

from gptoss_kube.credentials import Credentials
from gptoss_kube.errors import CredentialsError

API = "client.authentication.k8s.io/v1"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "login"


@pytest.fixture
def kubeconfig(tmp_path: Path, program: Path) -> Path:
    path = tmp_path / "config"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": {"apiVersion": API, "command": str(program)}}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    path.write_text(json.dumps(document))
    return path


async def test_a_plugin_that_fails_later_leaves_its_token(
    kubeconfig: Path, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = json.dumps({"apiVersion": API, "kind": "ExecCredential", "status": {"token": "first"}})
    write(program, f"echo '{answer}'")
    credentials = await Credentials.load(kubeconfig)
    assert (await credentials.connection()).token == "first"

    write(program, "echo 'the session has expired' >&2; exit 1")
    with caplog.at_level(logging.WARNING):
        assert (await credentials.connection()).token == "first"
    (told,) = caplog.messages
    assert "the session has expired" in told
    assert "what it gave before is used" in told

    with pytest.raises(CredentialsError, match="the session has expired"):
        await Credentials.load(kubeconfig)
