"""The kubelets of nodes without machines: kwok, with stages of our own.

A stage of kwok's says what a kubelet writes next of a pod or node in a certain state. Ours follow what a real one
writes, with two liberties: what takes it seconds (pulling, backing off) takes none, and what befalls a pod is told by
an annotation of it. Which pods run where, which nodes are lost and what that makes of pods is decided by Kubernetes'
own scheduler and controllers.

A node belongs to a kubelet as long as it has the label `MANAGED`: without it nobody renews its lease any more.
"""

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from gptoss_cli.local.assets import kwok_program
from gptoss_cli.local.programs import Program

Raw = dict[str, Any]
MANAGED = {"kubelet": "kwok"}
LEASE_SECONDS = 4
"""kwok renews a lease four times as often."""
PRESSURE_LABEL = "kubelet/disk-pressure"
FATE = "kubelet/fate"
SAYS = "kubelet/says"
"""What a container that fails leaves as its termination message."""


class Fate(StrEnum):
    """What befalls a pod, as its annotation `FATE` tells."""

    IMAGE_MISSING = "image-missing"
    INIT_FAILS = "init-fails"
    OUT_OF_MEMORY = "out-of-memory"


def kubelet(kubeconfig: Path, folder: Path) -> Program:
    """Return kwok for all nodes that are `MANAGED`; its stages are written into a folder."""
    stages = folder / "stages.yaml"
    stages.write_text("\n---\n".join(json.dumps(each, indent=1) for each in STAGES))
    selector = ",".join(f"{name}={value}" for name, value in MANAGED.items())
    command = (
        str(kwok_program()),
        f"--kubeconfig={kubeconfig}",
        f"--config={stages}",
        f"--manage-nodes-with-label-selector={selector}",
        f"--node-lease-duration-seconds={LEASE_SECONDS}",
        "--node-ip=10.0.1.1",
        "--cidr=10.0.2.0/24",
    )
    return Program(name="kwok", command=command, environment={}, grace_seconds=5.0)


def _stage(kind: str, name: str, state: str, given: str, *, fate: Fate | None = None, after: float = 0.0) -> Raw:
    """Return a stage that writes a status, by a template, once something is in a state, `after` seconds on.

    Where several stages fit, those with a fate outweigh all others.
    """
    selector: Raw = {"matchExpressions": [{"key": state, "operator": "In", "values": ["true"]}]}
    if fate is not None:
        selector["matchAnnotations"] = {FATE: fate.value}
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": selector,
            "weight": 1 if fate is not None else 0,
            "delay": {"durationMilliseconds": int(after * 1000)},
            "next": {"delete": True} if given == _DELETE else {"statusTemplate": given},
        },
    }


def _pod(name: str, state: str, given: str, *, fate: Fate | None = None, after: float = 0.0) -> Raw:
    return _stage("Pod", name, f"({_POD_STATE}) == {json.dumps(state)} | tostring", given, fate=fate, after=after)


def _conditions(**statuses: bool) -> str:
    lines = [
        f'- {{type: {name}, status: "{status}", reason: "", message: "", lastTransitionTime: {{{{ Now | Quote }}}}}}'
        for name, status in statuses.items()
    ]
    return "\n".join(["conditions:", *lines, ""])


def _containers(which: str, state: str, *, ready: bool = False, last: str = "kept", restarts: str = "kept") -> str:
    """Return the statuses of a pod's containers (or initContainers), all in one state."""
    statuses = {"containers": "containerStatuses", "initContainers": "initContainerStatuses"}[which]
    kept = {
        "kept": "{{ with $was.lastState }}{{ toJson . }}{{ else }}{}{{ end }}",
        "none": "{}",
    }
    counts = {"kept": "{{ or $was.restartCount 0 }}", "more": "{{ add1 (or $was.restartCount 0) }}"}
    return f"""
{{{{ if .spec.{which} }}}}
{statuses}:
{{{{ $statuses := .status.{statuses} }}}}
{{{{ range $index, $item := .spec.{which} }}}}
{{{{ $was := dict }}}}{{{{ if $statuses }}}}{{{{ $was = index $statuses $index }}}}{{{{ end }}}}
- name: {{{{ $item.name | Quote }}}}
  image: {{{{ $item.image | Quote }}}}
  imageID: ""
  ready: {str(ready).lower()}
  started: {str(ready).lower()}
  restartCount: {counts[restarts]}
  lastState: {kept.get(last, last)}
  state: {state}
{{{{ end }}}}
{{{{ end }}}}
"""


_DELETE = "delete"
_RUNNING = "{running: {startedAt: {{ Now | Quote }}}}"
_DONE = "{terminated: {exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}}}"
_BACK_OFF = (
    "{waiting: {reason: CrashLoopBackOff, message: "
    '{{ printf "back-off 10s restarting failed container=%s pod=%s" $item.name $.metadata.name | Quote }}}}'
)
_TIMES = "startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}"
_FAILED = (
    f'{{terminated: {{exitCode: 3, reason: Error, message: {{{{ index $.metadata.annotations "{SAYS}" | Quote }}}}, '
    f"{_TIMES}}}}}"
)
_KILLED = f"{{terminated: {{exitCode: 137, reason: OOMKilled, {_TIMES}}}}}"
_NOT_FOUND = "failed to pull and unpack image: failed to resolve reference: not found"


def _waiting(reason: str, message: str = "") -> str:
    told = f", message: {{{{ printf {json.dumps(message)} $item.image | Quote }}}}" if message else ""
    return f"{{waiting: {{reason: {reason}{told}}}}}"


def _first(state: str) -> str:
    """Return the statuses of a pod whose first container is in a state, and nothing has begun."""
    init = _containers("initContainers", state)
    return f"{init}\n{{{{ if not .spec.initContainers }}}}{_containers('containers', state)}{{{{ end }}}}\n"


_POD_STATE = """
if .metadata.deletionTimestamp then "told to go"
elif .status.podIP == null then "new"
else
  ((.status.initContainerStatuses // []) + (.status.containerStatuses // [])
    | map(select(.state.terminated == null)) | .[0].state.waiting.reason) as $reason
  | ((.status.conditions // []) | map({(.type): .status}) | add) as $now
  | if $reason == "CrashLoopBackOff" and $now.Initialized != "True" then "init backs off"
    elif $reason then $reason
    elif $now.Initialized != "True" then "initialising"
    elif $now.ContainersReady == "True" and $now.Ready != "True" then "given up"
    else "ready" end
end
""".strip()

_NODE_CONDITIONS = f"""
{{{{ $sick := index .metadata.labels "{PRESSURE_LABEL}" }}}}
conditions:
{{{{ range NodeConditions }}}}
- type: {{{{ .type | Quote }}}}
  status: {{{{ if and $sick (eq .type "DiskPressure") }}}}"True"{{{{ else }}}}{{{{ .status | Quote }}}}{{{{ end }}}}
  reason: {{{{ .reason | Quote }}}}
  message: {{{{ .message | Quote }}}}
  lastHeartbeatTime: {{{{ Now | Quote }}}}
  lastTransitionTime: {{{{ Now | Quote }}}}
{{{{ end }}}}
addresses:
- {{type: InternalIP, address: {{{{ NodeIP | Quote }}}}}}
- {{type: Hostname, address: {{{{ .metadata.name | Quote }}}}}}
"""

STAGES: list[Mapping[str, Any]] = [
    _stage(
        "Node",
        "node-is-well",
        '(.status.conditions // []) | all(.type != "Ready" or .status != "True") | tostring',
        _NODE_CONDITIONS,
    ),
    _pod(
        "pod-is-taken",
        "new",
        "hostIP: {{ NodeIPWith .spec.nodeName | Quote }}\n"
        "podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}\n"
        "startTime: {{ Now | Quote }}\nphase: Pending\n"
        + _conditions(PodReadyToStartContainers=True, Initialized=False, ContainersReady=False, Ready=False)
        + _containers("initContainers", _waiting("PodInitializing"))
        + _containers("containers", _waiting("PodInitializing")),
    ),
    *(
        _pod(f"image-is-missing-{state.lower()}", state, _first(_waiting(to, message)), fate=Fate.IMAGE_MISSING)
        for state, to, message in (
            ("PodInitializing", "ErrImagePull", f"{_NOT_FOUND}: %s"),
            ("ErrImagePull", "ImagePullBackOff", f'Back-off pulling image "%s": ErrImagePull: {_NOT_FOUND}'),
        )
    ),
    *(
        _pod(f"image-comes-{state.lower()}", state, _first(_waiting("PodInitializing")))
        for state in ("ErrImagePull", "ImagePullBackOff")
    ),
    _pod(
        "init-begins",
        "PodInitializing",
        "{{ if .spec.initContainers }}"
        + _containers("initContainers", _RUNNING)
        + "{{ else }}"
        + _conditions(Initialized=True)
        + _containers("containers", _waiting("ContainerCreating"))
        + "{{ end }}",
    ),
    _pod(
        "init-ends",
        "initialising",
        _conditions(Initialized=True)
        + _containers("initContainers", _DONE, ready=True)
        + _containers("containers", _waiting("ContainerCreating")),
    ),
    _pod(
        "init-fails",
        "initialising",
        _containers("initContainers", _BACK_OFF, last=_FAILED, restarts="more"),
        fate=Fate.INIT_FAILS,
    ),
    _pod("init-begins-again", "init backs off", _containers("initContainers", _RUNNING), after=0.5),
    _pod(
        "containers-are-ready",
        "ContainerCreating",
        "phase: Running\n"
        + _conditions(ContainersReady=True, Ready=True)
        + _containers("containers", _RUNNING, ready=True),
    ),
    *(
        _pod(
            f"container-is-killed-{state.lower()}",
            state,
            "phase: Running\n"
            + _conditions(ContainersReady=False, Ready=False)
            + _containers("containers", _BACK_OFF, last=_KILLED, restarts="more"),
            fate=Fate.OUT_OF_MEMORY,
            after=after,
        )
        for state, after in (("ContainerCreating", 0.0), ("ready", 0.0), ("CrashLoopBackOff", 0.5))
    ),
    _pod(
        "container-begins-again",
        "CrashLoopBackOff",
        _conditions(ContainersReady=True, Ready=True) + _containers("containers", _RUNNING, ready=True),
    ),
    _pod("pod-is-looked-after-again", "given up", _conditions(Ready=True)),
    _pod("pod-goes", "told to go", _DELETE),
]
