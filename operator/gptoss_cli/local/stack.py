"""Bring the whole product up on this machine in the order its parts need each other, and take it down.

Assets and the tiny model are made side by side; then the object store with signed weights, the control
plane, Ray, operator and gateway; then a manifest is applied and the model asked. What runs is known from
`programs.py`'s records alone, so `down` works after any crash. A failure on the way up takes down
everything that this call started.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from gptoss_cli.local.assets import control_plane_programs, object_store_program
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.errors import StepError
from gptoss_cli.local.folders import cache_folder, private_folder, stack_folder, write_private
from gptoss_cli.local.health import is_well
from gptoss_cli.local.identity import Addresses, Identity
from gptoss_cli.local.object_store import ObjectStore
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.prerequisites import check_prerequisites
from gptoss_cli.local.programs import Program, Programs, Record
from gptoss_cli.local.ray_head import RayHead, clean
from gptoss_cli.local.signed_weights import sign_and_upload
from gptoss_cli.local.steps import Report, Steps

MODEL = "gpt-oss-tiny"
RAY, OPERATOR, GATEWAY = "ray", "gptoss-operator", "gptoss-gateway"
REPOSITORY = Path(__file__).resolve().parents[3]
MAKING_SECONDS = 3600.0
RAY_SECONDS = 180.0
READY_SECONDS = 1800.0
PROGRAM_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A stack that is up: what a person needs to talk to it."""

    kubeconfig: str
    kubectl: str
    base_url: str
    api_key_file: str
    ready_url: str
    metrics_url: str
    dashboard_url: str

    @property
    def api_key(self) -> str:
        """The demo tenant's key."""
        return Path(self.api_key_file).read_text()


class Stack:
    """The one stack of this user's cache folder."""

    def __init__(self) -> None:
        self.folder = stack_folder()
        self.programs = Programs(self.folder / "run", attached=False)
        self._running_file = self.folder / "running.json"

    def running(self) -> Running | None:
        """Return how to reach the stack if all of it is up, else None."""
        try:
            running = Running(**json.loads(self._running_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        records = {record.name: record for record in self.programs.records()}
        if not all(name in records and records[name].alive() for name in (RAY, OPERATOR, GATEWAY, "kube-apiserver")):
            return None
        return running if is_well(running.ready_url) else None

    def up(self, steps: Steps) -> Running:
        """Bring everything up, or find it up. Raises LocalStackError and leaves nothing behind then."""
        with self._alone():
            if running := self.running():
                return running
            self._down()
            try:
                running = self._start(steps)
            except BaseException:  # Ctrl-C too: nothing stays
                self._down(keep_logs=True)
                raise
            write_private(self._running_file, json.dumps(asdict(running)))
            return running

    def down(self) -> list[Record]:
        """End what `up` started and remove its data; return what was ended."""
        with self._alone():
            ended = self.programs.records()
            self._down()
            return ended

    def _down(self, *, keep_logs: bool = False) -> None:
        self._running_file.unlink(missing_ok=True)
        self.programs.stop_all()
        clean(RayHead(base=Identity(self.folder / "identity").ray_folder, ports={}))  # a killed Ray's orphans
        for path in self.folder.glob("*"):
            if path.is_dir() and not (keep_logs and path == self.programs.folder):
                shutil.rmtree(path, onerror=_make_writable)
        private_folder(self.programs.folder)

    def _start(self, steps: Steps) -> Running:
        if not (REPOSITORY / "crds").is_dir():
            raise StepError("gptoss local needs a checkout of the repository: its CRDs and examples are applied")
        with steps.step("prerequisites"):
            check_prerequisites()
        model = self._make_assets(steps)
        store = ObjectStore(self.folder / "object-store", binary=object_store_program(), programs=self.programs)
        with steps.step("object store, signed weights") as report:
            store.start()
            public_key = sign_and_upload(model, MODEL, store, self.folder / "signing", report)
        gateway, admin, metrics = free_ports(3)
        addresses = Addresses(gateway=gateway, gateway_admin=admin, operator_metrics=metrics)
        identity = Identity(private_folder(self.folder / "identity"))
        head = identity.create(addresses, store.access)
        plane = ControlPlane(
            self.folder / "control-plane",
            binaries=control_plane_programs(),
            programs=self.programs,
            identities={OPERATOR: (), GATEWAY: ()},
        )
        self.programs.start(Program(name=RAY, command=head.command(), environment={}, restart=True))
        with steps.step("Kubernetes control plane, CRDs, trust policy"):
            plane.start()
            self._install(plane, public_key)
        with steps.step("Ray, with token authentication"):
            self.programs.wait(RAY, head.ready, seconds=RAY_SECONDS)
        with steps.step("operator and gateway"):
            self._start_services(plane, addresses, identity, store.access.environment())
        running = Running(
            kubeconfig=str(plane.kubeconfig),
            kubectl=str(control_plane_programs().kubectl),
            base_url=addresses.gateway_url,
            api_key_file=str(identity.api_key),
            ready_url=addresses.gateway_ready_url,
            metrics_url=addresses.gateway_ready_url.replace("/readyz", "/metrics"),
            dashboard_url=head.dashboard_url,
        )
        with steps.step(f"kubectl apply -f examples/local/{MODEL}.yaml, wait for Ready") as report:
            plane.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / f"{MODEL}.yaml"))
            self._until_ready(plane, report)
        return running

    def _make_assets(self, steps: Steps) -> Path:
        """Build what is built from Go and train the tiny model, side by side; return the model's folder."""
        model = cache_folder() / "tiny-gpt-oss"

        def programs() -> None:
            with steps.step("control plane and object store, from Go modules") as report:
                steps.run((sys.executable, "-m", "gptoss_cli.local.assets"), report, seconds=MAKING_SECONDS)

        def tiny() -> None:
            with steps.step("tiny gpt-oss, trained on this CPU") as report:
                command = (sys.executable, "-m", "gptoss_cli.local.tiny_model", "--out", str(model))
                steps.run(command, report, seconds=MAKING_SECONDS)

        with ThreadPoolExecutor(2) as pool:
            work = [pool.submit(programs), pool.submit(tiny)]
            try:
                for each in work:
                    each.result()
            except BaseException:
                steps.interrupt()
                raise
        return model

    def _install(self, plane: ControlPlane, public_key: str) -> None:
        plane.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
        plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        plane.kubectl("apply", "-f", str(REPOSITORY / "examples" / "local" / "rbac.yaml"))
        policy: dict[str, Any] = {
            "apiVersion": "serving.gptoss.dev/v1alpha1",
            "kind": "WeightTrustPolicy",
            "metadata": {"name": "local"},
            "spec": {
                "default": True,
                "sources": [{"prefix": "s3://models"}],
                "authorities": [{"name": "demo", "models": ["gpt-oss-*"], "key": {"publicKeyPEM": public_key}}],
            },
        }
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(policy))

    def _start_services(
        self, plane: ControlPlane, addresses: Addresses, identity: Identity, s3: Mapping[str, str]
    ) -> None:
        for name, module, settings, environment in (
            (OPERATOR, "gptoss_operator", identity.operator_settings, s3),
            (GATEWAY, "gptoss_gateway", identity.gateway_settings, {}),
        ):
            self.programs.start(
                Program(
                    name=name,
                    command=(
                        *(sys.executable, "-P", "-m", module, "--settings", str(settings)),
                        *("--kubeconfig", str(plane.kubeconfig_for(name))),
                    ),
                    environment=environment,
                    restart=True,
                )
            )
        self.programs.wait(OPERATOR, lambda: is_well(addresses.operator_health_url), seconds=PROGRAM_SECONDS)
        self.programs.wait(GATEWAY, lambda: is_well(addresses.gateway_ready_url), seconds=PROGRAM_SECONDS)

    def _until_ready(self, plane: ControlPlane, report: Report) -> None:
        deadline = time.monotonic() + READY_SECONDS
        said = ""
        while time.monotonic() < deadline:
            found = json.loads(plane.kubectl("get", "gptoss", MODEL, "--namespace", "default", "-o", "json"))
            conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", [])}
            ready = conditions.get("Ready", {})
            if ready.get("status") == "True":
                return
            now = f"{ready.get('reason', 'the operator has not seen it yet')}: {ready.get('message', '')}"
            if conditions.get("Stalled", {}).get("status") == "True":
                raise StepError(f"{MODEL} can't start: {now}\n{self.programs.last_lines(OPERATOR)}")
            if now != said:
                report(said := now)
            time.sleep(1.0)
        raise StepError(f"{MODEL} was not Ready within {READY_SECONDS:.0f} s: {said}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        private_folder(self.folder)
        with (self.folder / ".lock").open("w") as held:
            try:
                flock(held, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                raise StepError("another gptoss local up or down is at work: wait for it, or end it") from None
            yield


def _make_writable(function: Any, path: str, _error: Any) -> None:
    """Verified weights are read-only: permit their removal."""
    Path(path).parent.chmod(0o700)
    Path(path).chmod(0o700)
    function(path)
