"""Wake figures: what we add between a request for a sleeping model and its engine, and back.

Real kube-apiserver and etcd, the real operator and gateway in processes of their own; a stand-in for
the Ray cluster whose engines answer a fixed time after they were asked for, so that no engine's start
is in the figures. Each deployment is woken once. Printed side by side with what the API server itself
takes, in the same run, to carry one write to one watcher, since a wake is two such steps.

    python -m benchmarks.wake [--deployments N] [--known N] [--start-seconds S]
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import secrets
import ssl
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.jobs import say
from benchmarks.standin_cluster import StandinCluster
from benchmarks.throughput import quantile
from gptoss_api.crd import crds
from gptoss_api.names import API_VERSION, application_name
from gptoss_cli.local.assets import control_plane_programs
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.health import is_well
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.programs import Program, Programs
from gptoss_weights.sign import generate_key, sign_folder

INSTALLATION = "bench"
NAMESPACE = "bench"
SYSTEM_NAMESPACE = "gptoss-system"
BARS = {"request → wake call": 0.150, "engine answers → request released": 0.300}
"""Bars in seconds, at the 99th percentile."""


async def run(*, deployments: int, known: int, start_seconds: float) -> int:
    """Run the benchmark and print its table; 1 if a bar is missed."""
    with tempfile.TemporaryDirectory(prefix="gptoss-bench-") as folder:
        root = Path(folder)
        programs = Programs(root / "run", attached=True)
        plane = ControlPlane(root / "control-plane", binaries=control_plane_programs(), programs=programs)
        cluster = StandinCluster(start_seconds=start_seconds)
        try:
            say("starting etcd and kube-apiserver")
            plane.start()
            await cluster.start()
            say("installing the CRDs, a policy and signed stand-in weights")
            model, public_key = _signed_folder(root / "models")
            _install(plane, model.parent, public_key)
            key = "gptoss-" + secrets.token_urlsafe(32)
            gateway_url = await asyncio.to_thread(_start_ours, root, plane, programs, cluster, model.parent, key)
            async with _api(plane) as api:
                say(f"creating {known} deployments that start asleep")
                await asyncio.to_thread(_create, plane, _manifests(model, known))
                await _all_idle(api, known)
                say("measuring the API server alone: one write → one watcher")
                carried = await _carry(api, samples=deployments)
                say(f"waking {deployments} of them, one after another")
                wakes, releases = await _wakes(gateway_url, key, cluster, deployments)
        finally:
            await cluster.stop()
            for name in ("gateway", "operator"):
                programs.stop(name)
            plane.stop()
    return _report(carried, wakes, releases, known=known)


async def _wakes(url: str, key: str, cluster: StandinCluster, count: int) -> tuple[list[float], list[float]]:
    wakes, releases = [], []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        for number in range(count):
            body = {"model": _name(number), "messages": [{"role": "user", "content": "Hello"}]}
            began = time.monotonic()
            async with session.post(f"{url}/v1/chat/completions", json=body, timeout=_total(60)) as response:
                text = await response.text()
                if response.status != 200:
                    raise RuntimeError(f"{_name(number)} answered {response.status}: {text}")
            times = cluster.times[application_name(INSTALLATION, NAMESPACE, _name(number))]
            wakes.append(times.put - began)
            releases.append(await times.requested - times.answers)
    return wakes, releases


async def _carry(api: aiohttp.ClientSession, *, samples: int) -> list[float]:
    """Seconds from starting a write to a watcher's having read it, through the API server alone."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
    arrivals: asyncio.Queue[float] = asyncio.Queue()

    async def watch() -> None:
        async with api.get(path, params={"watch": "true"}, timeout=_total(600)) as response:
            async for line in response.content:
                if b'"bench-carry"' in line:
                    arrivals.put_nowait(time.monotonic())

    watcher = asyncio.create_task(watch())
    results = []
    try:
        for number in range(samples + 1):
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "bench-carry"},
                "data": {"n": str(number)},
            }
            began = time.monotonic()
            async with api.patch(
                f"{path}/bench-carry",
                params={"fieldManager": "bench", "force": "true"},
                data=json.dumps(body),
                headers={"Content-Type": "application/apply-patch+yaml"},
                timeout=_total(10),
            ) as response:
                response.raise_for_status()
            async with asyncio.timeout(10):
                results.append(await arrivals.get() - began)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    return results[1:]


async def _all_idle(api: aiohttp.ClientSession, count: int) -> None:
    async with asyncio.timeout(300):
        while True:
            async with api.get(f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/gptossdeployments") as response:
                items = (await response.json())["items"]
            idle = sum(_condition(item, "ScaledToZero") == ("True", "Idle") for item in items)
            if idle == count:
                return
            await asyncio.sleep(0.5)


def _condition(item: dict[str, Any], kind: str) -> tuple[str, str] | None:
    for each in item.get("status", {}).get("conditions", []):
        if each["type"] == kind:
            return each["status"], each["reason"]
    return None


def _start_ours(
    root: Path, plane: ControlPlane, programs: Programs, cluster: StandinCluster, models: Path, key: str
) -> str:
    listen, admin, metrics = free_ports(3)
    url = f"http://127.0.0.1:{listen}"
    (root / "gateway-token").write_text(secrets.token_urlsafe(32))
    ray = {
        "name": "standin",
        "dashboardURL": cluster.dashboard_url,
        "serveURL": cluster.serve_url,
        "gatewayTokenFile": str(root / "gateway-token"),
    }
    common = {"systemNamespace": SYSTEM_NAMESPACE, "rayClusters": [ray], "defaultRayCluster": "standin"}
    operator = common | {
        "installation": INSTALLATION,
        "gatewayURL": f"{url}/v1",
        "weightSources": {"fileRoots": [str(models)]},
        "metrics": {"host": "127.0.0.1", "port": metrics},
    }
    digest = hashlib.sha256(key.encode()).hexdigest()
    keys = {"tenants": [{"name": "bench", "keys": [f"sha256:{digest}"], "namespaces": [NAMESPACE]}]}
    gateway = common | {
        "listen": {"host": "127.0.0.1", "port": listen},
        "admin": {"host": "127.0.0.1", "port": admin},
        "keysFile": str(root / "keys.yaml"),
    }
    for name, document in {"operator": operator, "gateway": gateway, "keys": keys}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
        (root / f"{name}.yaml").chmod(0o600)
    for name in ("operator", "gateway"):
        command = [sys.executable, "-m", f"gptoss_{name}", "--settings", str(root / f"{name}.yaml")]
        command += ["--kubeconfig", str(plane.kubeconfig)]
        programs.start(Program(name=name, command=command, environment={}))
    programs.wait("gateway", lambda: is_well(f"http://127.0.0.1:{admin}/readyz"), seconds=60)
    programs.wait("operator", lambda: is_well(f"http://127.0.0.1:{metrics}/readyz"), seconds=60)
    return url


def _signed_folder(root: Path) -> tuple[Path, str]:
    folder = root / "stand-in"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    pair = generate_key(root.parent / "signing.key")
    sign_folder(folder, model="stand-in", key=pair.private_key)
    return folder, pair.public_key.read_text()


def _install(plane: ControlPlane, models: Path, public_key: str) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(json.dumps(crd) for crd in crds().values()))
    names = [f"crd/{crd['metadata']['name']}" for crd in crds().values()]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    for namespace in (NAMESPACE, SYSTEM_NAMESPACE):
        plane.kubectl("create", "namespace", namespace)
    policy = {
        "apiVersion": API_VERSION,
        "kind": "WeightTrustPolicy",
        "metadata": {"name": "bench"},
        "spec": {
            "default": True,
            "sources": [{"prefix": models.as_uri()}],
            "authorities": [{"name": "bench", "models": ["*"], "key": {"publicKeyPEM": public_key}}],
        },
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(policy))


def _create(plane: ControlPlane, manifests: str) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=manifests)


def _manifests(model: Path, count: int) -> str:
    spec = {
        "model": {"name": "custom", "uri": model.as_uri()},
        "verification": {"subject": "stand-in"},
        "scaling": {"initial": "Idle", "idleSeconds": 86400},
    }
    items = [
        {
            "apiVersion": API_VERSION,
            "kind": "GptOssDeployment",
            "metadata": {"name": _name(number), "namespace": NAMESPACE},
            "spec": spec,
        }
        for number in range(count)
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


@contextlib.asynccontextmanager
async def _api(plane: ControlPlane) -> AsyncIterator[aiohttp.ClientSession]:
    config = yaml.safe_load(plane.kubeconfig.read_text())
    context = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
    headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(base_url=plane.url, headers=headers, connector=connector) as session:
        yield session


def _report(carried: list[float], wakes: list[float], releases: list[float], *, known: int) -> int:
    rows = {"API server alone: write → watcher": carried, "request → wake call": wakes}
    rows["engine answers → request released"] = releases
    baseline = statistics.median(carried)
    print(f"\n{len(wakes)} wakes, {known} deployments known; milliseconds")
    print(f"{'':36}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}{'bar p99':>9}{'p50 / API server':>18}")
    missed = 0
    for name, values in rows.items():
        bar = BARS.get(name)
        p99 = quantile(values, 0.99)
        cells = [quantile(values, 0.5), quantile(values, 0.9), p99, max(values)]
        shown = "".join(f"{cell * 1000:8.1f}" for cell in cells)
        verdict = "" if bar is None else f"{bar * 1000:9.0f}"
        print(f"{name:36}{shown}{verdict:>9}{statistics.median(values) / baseline:17.1f}x")
        missed += bar is not None and p99 > bar
    print("within the bars" if not missed else "MISSED")
    return 1 if missed else 0


def _name(number: int) -> str:
    return f"model-{number:04d}"


def _total(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wake", description=__doc__.partition("\n")[0])
    parser.add_argument("--deployments", type=int, default=100, help="deployments to wake (default 100)")
    parser.add_argument("--known", type=int, default=500, help="deployments that exist (default 500)")
    parser.add_argument("--start-seconds", type=float, default=0.5, help="from being asked for to answering (0.5)")
    options = parser.parse_args()
    return asyncio.run(
        run(
            deployments=min(options.deployments, options.known),
            known=options.known,
            start_seconds=options.start_seconds,
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
