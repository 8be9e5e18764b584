"""The control plane that all other tests of this tier stand on."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_cli.local.object_store import S3Access
from gptoss_cli.local.programs import Programs
from tests.controlplane import OPERATOR_USER


def test_answers_as_the_pinned_version(control_plane: ControlPlane):
    assert "Server Version: v1.36" in control_plane.kubectl("version")


def test_an_identity_without_a_role_may_do_nothing(control_plane: ControlPlane):
    with pytest.raises(StepError, match="forbidden"):
        control_plane.kubectl("get", "secrets", "--all-namespaces", user=OPERATOR_USER)


def test_kubeconfigs_and_tokens_are_private(control_plane: ControlPlane):
    secret = [*control_plane.folder.glob("*.kubeconfig"), *control_plane.folder.glob("*.token")]
    secret += [control_plane.folder / "tokens.csv", control_plane.folder / "service-accounts.key"]
    assert len(secret) == 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_objects_outlive_the_api_server(control_plane: ControlPlane, namespace: str):
    control_plane.kubectl("create", "configmap", "kept", "--namespace", namespace)
    address = control_plane.url
    control_plane.restart_apiserver()
    assert control_plane.url == address
    assert "kept" in control_plane.kubectl("get", "configmaps", "--namespace", namespace)


def test_an_api_server_that_ends_while_it_starts_is_started_once_more(control_plane: ControlPlane):
    def die() -> None:
        while not ((record := control_plane.programs.record("kube-apiserver")) and record.program):
            time.sleep(0.01)
        dead.append(record.program)
        control_plane.programs.kill("kube-apiserver")

    dead: list[object] = []
    control_plane.kill_apiserver()
    killer = threading.Thread(target=die)
    killer.start()
    control_plane.start_apiserver()
    killer.join()
    record = control_plane.programs.record("kube-apiserver")
    assert record is not None
    assert [record.program] != dead
    assert "Server Version" in control_plane.kubectl("version")


def test_crds_are_served(control_plane: ControlPlane, crds: list[str], namespace: str):
    assert "gptossdeployments.serving.gptoss.dev" in crds
    assert control_plane.kubectl("get", "gptoss", "-n", namespace) == ""


def test_children_of_a_deleted_owner_are_collected(control_plane: ControlPlane, namespace: str):
    control_plane.kubectl("create", "configmap", "owner", "-n", namespace)
    uid = control_plane.kubectl("get", "configmap", "owner", "-n", namespace, "-o", "jsonpath={.metadata.uid}")
    control_plane.kubectl(
        "apply",
        "-f",
        "-",
        stdin=f"""
apiVersion: v1
kind: ConfigMap
metadata:
  name: child
  namespace: {namespace}
  ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: owner, uid: {uid}}}]
""",
    )
    control_plane.kubectl("delete", "configmap", "owner", "-n", namespace)
    control_plane.kubectl("wait", "--for=delete", "configmap/child", "-n", namespace, "--timeout=150s")


def test_the_object_store_takes_and_gives_back(object_store: S3Access):
    client = object_store.client()
    client.put_object(Bucket=object_store.bucket, Key="a/b", Body=b"bytes")
    assert client.get_object(Bucket=object_store.bucket, Key="a/b")["Body"].read() == b"bytes"


def test_attached_programs_end_when_their_starter_is_killed(tmp_path: Path):
    script = f"""
import sys, time
from pathlib import Path
from gptoss_cli.local.programs import Program, Programs
programs = Programs(Path({str(tmp_path)!r}), attached=True)
programs.start(Program(name="sleeper", command=("sleep", "600"), environment={{}}))
print("started", flush=True)
time.sleep(600)
"""
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    assert starter.stdout.readline() == "started\n"
    programs = Programs(tmp_path, attached=True)
    record = programs.record("sleeper")
    assert record is not None
    assert record.program is not None
    assert record.program.alive()
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    program = record.program
    _until(lambda: not program.alive() and not record.supervisor.alive())


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)
