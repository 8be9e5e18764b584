"""status, wake and suspend against a real API server, with a stand-in for the operator's status."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gptoss_cli.exit_codes import ExitCode
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.main import main
from tests.controlplane import TENANT_USER

pytestmark = pytest.mark.usefixtures("crds")

MANIFEST = {
    "apiVersion": "serving.gptoss.dev/v1alpha1",
    "kind": "GptOssDeployment",
    "metadata": {"name": "assistant"},
    "spec": {"model": {"name": "gpt-oss-20b", "uri": "s3://models/gpt-oss-20b"}},
}


class Cluster:
    """One deployment `assistant`, the command line, and the operator's pen."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def gptoss(self, *arguments: str, kubeconfig: Path | None = None) -> Result:
        config = str(kubeconfig or self.plane.kubeconfig)
        return CliRunner().invoke(main, [*arguments, "--kubeconfig", config, "-n", self.namespace])

    def report(self, *, engine: str = "Unknown", stalled: str = "False", ready: str = "True") -> None:
        kinds = {"Ready": (ready, "Idle"), "EngineReady": (engine, "Stopped"), "Stalled": (stalled, "EngineFailed")}
        conditions = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": f"{kind} says so",
                "lastTransitionTime": "2026-11-21T00:00:00Z",
            }
            for kind, (status, reason) in kinds.items()
        ]
        generation = self.read()["metadata"]["generation"]
        wake = {"lastSeconds": 12.34}
        patch = {"status": {"observedGeneration": generation, "conditions": conditions, "wake": wake}}
        self.kubectl("patch", "gptoss", "assistant", "--subresource=status", "--type=merge", "-p", json.dumps(patch))

    def read(self) -> dict:
        return json.loads(self.kubectl("get", "gptoss", "assistant", "-o", "json"))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments, stdin=stdin)


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Iterator[Cluster]:
    cluster = Cluster(control_plane, namespace)
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(MANIFEST))
    return cluster


def test_status_of_a_ready_one_is_zero_and_says_why(cluster: Cluster):
    cluster.report()
    result = cluster.gptoss("status", "assistant")
    assert result.exit_code == ExitCode.OK, result.output
    for text in (f"{cluster.namespace}/assistant", "Ready", "Idle", "12.3 s", "s3://models/gpt-oss-20b"):
        assert text in result.output


def test_status_before_the_operator_looked_is_not_ready(cluster: Cluster):
    result = cluster.gptoss("status", "assistant", "--json")
    assert result.exit_code == ExitCode.NEGATIVE
    seen = json.loads(result.stdout)
    assert (seen["ready"], seen["upToDate"], seen["conditions"]) == ("Unknown", False, [])


def test_status_lists_for_programs(cluster: Cluster):
    cluster.report()
    result = cluster.gptoss("status", "--json")
    assert result.exit_code == ExitCode.OK
    (seen,) = json.loads(result.stdout)
    assert (seen["name"], seen["ready"], seen["reason"]) == ("assistant", "True", "Idle")
    assert seen["wake"] == {"lastSeconds": 12.34}
    assert [entry["type"] for entry in seen["conditions"]] == ["Ready", "Stalled", "EngineReady"]
    assert "assistant" in cluster.gptoss("status").output


def test_an_absent_one_is_a_failure_not_an_answer(cluster: Cluster):
    for command in ("status", "wake", "suspend"):
        result = cluster.gptoss(command, "absent")
        assert result.exit_code == ExitCode.FAILED
        assert "there is no GptOssDeployment 'absent'" in result.output


def test_no_permission_is_a_sentence(cluster: Cluster):
    result = cluster.gptoss("status", kubeconfig=cluster.plane.kubeconfig_for(TENANT_USER))
    assert result.exit_code == ExitCode.FAILED
    assert "forbidden" in result.output


def test_wake_leaves_a_new_token_each_time(cluster: Cluster):
    tokens = set()
    for _ in range(2):
        assert cluster.gptoss("wake", "assistant").exit_code == ExitCode.OK
        tokens.add(cluster.read()["metadata"]["annotations"]["serving.gptoss.dev/wake"])
    assert len(tokens) == 2


def test_wake_waits_until_the_engine_answers(cluster: Cluster):
    cluster.report(engine="False")

    ended = threading.Event()

    def operator() -> None:
        while "serving.gptoss.dev/wake" not in cluster.read()["metadata"].get("annotations", {}):
            if ended.wait(0.05):
                return
        cluster.report(engine="True")

    thread = threading.Thread(target=operator)
    thread.start()
    try:
        result = cluster.gptoss("wake", "assistant", "--wait", "--timeout", "150")
    finally:
        ended.set()
        thread.join()
    assert result.exit_code == ExitCode.OK, result.output
    assert "awake after" in result.output


def test_wake_that_takes_too_long_is_a_no(cluster: Cluster):
    cluster.report(engine="False")
    result = cluster.gptoss("wake", "assistant", "--wait", "--timeout", "0.6")
    assert result.exit_code == ExitCode.NEGATIVE
    assert "is not awake after 0.6 s (Stopped: EngineReady says so)" in result.output


def test_wake_of_a_stalled_one_says_what_to_do(cluster: Cluster):
    cluster.report(engine="False", stalled="True", ready="False")
    result = cluster.gptoss("wake", "assistant", "--wait", "--timeout", "150")
    assert result.exit_code == ExitCode.NEGATIVE
    assert "can't start (EngineFailed): Stalled says so" in result.output
    assert "serving.gptoss.dev/retry" in result.output


def test_suspend_and_resume(cluster: Cluster):
    assert cluster.gptoss("suspend", "assistant").exit_code == ExitCode.OK
    assert cluster.read()["spec"]["suspend"] is True
    refused = cluster.gptoss("wake", "assistant")
    assert refused.exit_code == ExitCode.NEGATIVE
    assert "--resume" in refused.output
    assert cluster.gptoss("suspend", "assistant", "--resume").exit_code == ExitCode.OK
    assert cluster.read()["spec"]["suspend"] is False
