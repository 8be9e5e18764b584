"""A real Kubernetes control plane on loopback: etcd, the API server and, for garbage collection, controllers.

The local stack and the tests use the same one. There is no node: nothing schedules pods. Everybody who
may talk to the API server has a static token and a kubeconfig of their own, and RBAC decides what the
token may do, as in a real cluster. Only `admin` is in system:masters.
"""

import json
import secrets
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gptoss_cli.local.assets import ControlPlanePrograms
from gptoss_cli.local.errors import ProgramError, StepError
from gptoss_cli.local.folders import private_folder, write_private
from gptoss_cli.local.health import is_well
from gptoss_cli.local.ports import LOOPBACK, free_ports
from gptoss_cli.local.programs import Program, Programs

ADMIN = "admin"
START_SECONDS = 240.0
KUBECTL_SECONDS = 180.0
# What makes ownership and namespaces work; nothing here needs pods.
CONTROLLERS = "garbage-collector-controller,namespace-controller,serviceaccount-controller"


class ControlPlane:
    """One control plane whose data lives in `folder`.

    `identities` maps user names to groups; each gets a token and `<folder>/<user>.kubeconfig` (0600).
    """

    def __init__(
        self,
        folder: Path,
        *,
        binaries: ControlPlanePrograms,
        programs: Programs,
        identities: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.folder = folder
        self.programs = programs
        self._binaries = binaries
        self._identities = {ADMIN: ("system:masters",), **(identities or {})}
        self._ports_file = folder / "ports.json"

    @property
    def url(self) -> str:
        """The API server's address, `https://127.0.0.1:port`."""
        return f"https://{LOOPBACK}:{self._ports()['apiserver']}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.kubeconfig_for(ADMIN)

    def kubeconfig_for(self, user: str) -> Path:
        """Return the kubeconfig of one of the identities."""
        return self.folder / f"{user}.kubeconfig"

    def start(self) -> None:
        """Start everything and return when the API server answers; raises ProgramError."""
        private_folder(self.folder)
        for attempt in (1, 2, 3):
            try:
                self._start_servers()
                break
            except ProgramError as failed:
                self.stop()
                # Somebody took a port between our asking for it and the program's binding it.
                if attempt == 3 or "address already in use" not in str(failed):
                    raise
        if self._binaries.controller_manager:
            self._start_controllers(self._binaries.controller_manager)

    def stop(self) -> None:
        """End everything, the API server before etcd."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
            self.programs.stop(name)

    def kill_apiserver(self) -> None:
        """SIGKILL the API server and leave it down."""
        self.programs.kill("kube-apiserver")
        self.programs.stop("kube-apiserver")

    def start_apiserver(self) -> None:
        """Start the API server at its address, over what data there is; raises ProgramError.

        It ends itself where its store is too slow for one of its hooks. In a cluster somebody starts it again then;
        here we do, once.
        """
        try:
            self._start_apiserver()
        except ProgramError:
            record = self.programs.record("kube-apiserver")
            if record is not None and record.alive():
                raise
            self._start_apiserver()

    def restart_apiserver(self) -> None:
        """SIGKILL the API server and start it again at the same address, over the same data."""
        self.kill_apiserver()
        self.start_apiserver()

    def kubectl(self, *arguments: str, stdin: str | None = None, user: str = ADMIN) -> str:
        """Run kubectl and return its standard output. Raises StepError with what it said."""
        command = [str(self._binaries.kubectl), "--kubeconfig", str(self.kubeconfig_for(user)), *arguments]
        done = subprocess.run(  # noqa: S603  our own arguments
            command,
            input=stdin or "",
            env={"HOME": str(self.folder), "KUBECACHEDIR": str(self.folder / "kubectl-cache"), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=KUBECTL_SECONDS,
            check=False,
        )
        if done.returncode:
            raise StepError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _start_servers(self) -> None:
        etcd, peer, apiserver = free_ports(3)
        self._ports_file.write_text(json.dumps({"etcd": etcd, "peer": peer, "apiserver": apiserver}))
        self._write_credentials()
        self._write_kubeconfigs()
        self.programs.start(self._etcd())
        self.start_apiserver()

    def _start_apiserver(self) -> None:
        self.programs.start(self._apiserver())
        self.programs.wait("kube-apiserver", self._ready, seconds=START_SECONDS)

    def _start_controllers(self, binary: Path) -> None:
        self.programs.start(
            Program(
                name="kube-controller-manager",
                command=(
                    str(binary),
                    f"--kubeconfig={self.kubeconfig}",
                    f"--controllers={CONTROLLERS}",
                    "--secure-port=0",
                    "--leader-elect=false",
                    f"--service-account-private-key-file={self.folder / 'service-accounts.key'}",
                    "--kube-api-qps=100",
                    "--kube-api-burst=200",
                ),
                environment={},
                restart=True,
                grace_seconds=5.0,
            )
        )

    def _etcd(self) -> Program:
        ports = self._ports()
        client, peer = (f"http://{LOOPBACK}:{ports[name]}" for name in ("etcd", "peer"))
        return Program(
            name="etcd",
            command=(
                str(self._binaries.etcd),
                "--name=local",
                f"--data-dir={private_folder(self.folder / 'etcd')}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=local={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
            environment={},
            grace_seconds=5.0,
        )

    def _apiserver(self) -> Program:
        ports = self._ports()
        return Program(
            name="kube-apiserver",
            command=(
                str(self._binaries.apiserver),
                f"--bind-address={LOOPBACK}",
                f"--advertise-address={LOOPBACK}",
                "--endpoint-reconciler-type=none",
                f"--secure-port={ports['apiserver']}",
                f"--cert-dir={self.folder / 'certificates'}",
                f"--etcd-servers=http://{LOOPBACK}:{ports['etcd']}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--anonymous-auth=false",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-account-key-file={self.folder / 'service-accounts.key'}",
                f"--service-account-signing-key-file={self.folder / 'service-accounts.key'}",
                "--disable-admission-plugins=ServiceAccount",
                "--shutdown-watch-termination-grace-period=0s",
                "--v=0",
            ),
            environment={},
            grace_seconds=5.0,
        )

    def _ports(self) -> dict[str, int]:
        ports: dict[str, int] = json.loads(self._ports_file.read_text())
        return ports

    def _write_credentials(self) -> None:
        lines = []
        for number, (user, groups) in enumerate(self._identities.items()):
            token = write_private(self.folder / f"{user}.token", secrets.token_urlsafe(32)).read_text()
            lines.append(f'{token},{user},{number},"{",".join(groups)}"\n')
        write_private(self.folder / "tokens.csv", "".join(lines))
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private(self.folder / "service-accounts.key", key.decode())

    def _write_kubeconfigs(self) -> None:
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certificates" / "apiserver.crt")}
        for user in self._identities:
            content: dict[str, Any] = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "local",
                "clusters": [{"name": "local", "cluster": cluster}],
                "users": [{"name": user, "user": {"token": (self.folder / f"{user}.token").read_text()}}],
                "contexts": [{"name": "local", "context": {"cluster": "local", "user": user, "namespace": "default"}}],
            }
            write_private(self.kubeconfig_for(user), json.dumps(content, indent=1))

    def _ready(self) -> bool:
        certificate = self.folder / "certificates" / "apiserver.crt"
        if not certificate.exists():
            return False
        token = (self.folder / "admin.token").read_text()
        return is_well(
            f"{self.url}/readyz",
            headers={"Authorization": f"Bearer {token}"},
            trusted=ssl.create_default_context(cafile=str(certificate)),
        )
