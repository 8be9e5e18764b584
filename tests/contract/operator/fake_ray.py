"""A stand-in for Ray's dashboard and Serve's proxy, with the habits that were measured of Ray 2.60, and faults.

PUT replaces the whole configuration; a failed application stays failed when the same comes again; a
restart loses everything; GET hides values from browsers.
"""

import asyncio
import copy
import hashlib
from typing import Any

from aiohttp import web

from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_cli.local.ports import free_ports

TOKEN = "dashboard-token"
GATEWAY_TOKEN = "gateway-token"


class FakeRay:
    """One fake cluster. Times are in seconds of the real loop and small."""

    def __init__(self, *, deploy_seconds: float = 0.05, answer_seconds: float = 0.05) -> None:
        self.deploy_seconds = deploy_seconds
        self.answer_seconds = answer_seconds
        self.applications: dict[str, dict[str, Any]] = {}
        self.target_capacity: float | None = None
        self.puts: list[dict[str, Any]] = []
        self.gets = 0
        self.bad_headers: list[str] = []
        self.nodes: list[dict[str, Any]] | None = None
        """Rows of Ray's list of nodes; None answers 404."""
        self.nodes_hang = asyncio.Event()
        self.nodes_hang.set()
        self.logs: dict[tuple[str, str], str] = {}
        """Texts by node and name of the file."""
        self.missed_logs = 0
        """How often a file was asked for that is not there: the real Ray writes a traceback into its log each time."""
        self.fail_with: dict[str, str] = {}
        """Application name → message of its failed deployment."""
        self.status_for_get: int | None = None
        self.status_for_put: int | None = None
        self.hang = asyncio.Event()
        self.hang.set()
        self.put_answers = asyncio.Event()
        """Cleared, a PUT is done and its answer is late."""
        self.put_answers.set()
        self.mute: set[str] = set()
        self.starts: dict[str, int] = {}
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        # One that nobody else is given while it is closed, for tests that open it again.
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/serve/applications/", self._get)
        app.router.add_put("/api/serve/applications/", self._put)
        app.router.add_get("/api/v0/nodes", self._nodes)
        app.router.add_get("/api/v0/logs", self._list_logs)
        app.router.add_get("/api/v0/logs/file", self._log)
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def lose_everything(self) -> None:
        """As a restarted head without fault tolerance."""
        self.applications.clear()

    def add_foreign(self, name: str, route: str, *, source: str = "declarative", **config: Any) -> None:
        self.applications[name] = {
            "name": name,
            "status": "RUNNING",
            "message": "",
            "source": source,
            "route_prefix": route,
            "deployments": {},
            "deployed_app_config": {"name": name, "route_prefix": route, "import_path": "theirs:app", **config},
        }

    def running(self, name: str) -> bool:
        return self.applications.get(name, {}).get("status") == "RUNNING"

    async def until(self, what: Any, seconds: float = 60.0) -> None:
        """Wait until a predicate over this cluster holds."""

        async def wait() -> None:
            async with self.changed:
                while not what():
                    try:
                        await asyncio.wait_for(self.changed.wait(), 0.05)
                    except TimeoutError:
                        continue

        await asyncio.wait_for(wait(), seconds)

    async def _get(self, request: web.Request) -> web.Response:
        self.gets += 1
        await self.hang.wait()
        if self._denied(request):
            return web.Response(status=401)
        if self.status_for_get is not None:
            return web.Response(status=self.status_for_get, text="fault")
        return web.json_response({"applications": self.applications, "target_capacity": self.target_capacity})

    async def _nodes(self, request: web.Request) -> web.Response:
        await self.nodes_hang.wait()
        if self._denied(request):
            return web.Response(status=401)
        if self.nodes is None:
            return web.Response(status=404)
        result = {"total": len(self.nodes), "num_after_truncation": len(self.nodes), "result": self.nodes}
        return web.json_response({"result": True, "msg": "", "data": {"result": result}})

    async def _list_logs(self, request: web.Request) -> web.Response:
        if self._denied(request):
            return web.Response(status=401)
        found = [name for node, name in self.logs if (node, name) == (request.query["node_id"], request.query["glob"])]
        return web.json_response({"result": True, "msg": "", "data": {"result": {"internal": found} if found else {}}})

    async def _log(self, request: web.Request) -> web.Response:
        if self._denied(request):
            return web.Response(status=401)
        text = self.logs.get((request.query["node_id"], request.query["filename"]))
        self.missed_logs += text is None
        return web.Response(status=500) if text is None else web.Response(text=text)

    def replicas_start(self, name: str, *nodes: str) -> None:
        """Show replicas of an application that have a place and no engine yet."""
        starting = [{"state": "STARTING", "node_id": node} for node in nodes]
        self.applications[name]["deployments"] = {"GptOssServer": {"target_num_replicas": 1, "replicas": starting}}

    async def _put(self, request: web.Request) -> web.Response:
        await self.hang.wait()
        if self._denied(request):
            return web.Response(status=401)
        if self.status_for_put is not None:
            return web.Response(status=self.status_for_put, text="fault")
        document = await request.json()
        self.puts.append(copy.deepcopy(document))
        wanted = {config["name"]: config for config in document["applications"]}
        self.target_capacity = document.get("target_capacity")
        for name in list(self.applications):
            if name not in wanted and self.applications[name]["source"] == "declarative":
                del self.applications[name]
        for name, config in wanted.items():
            known = self.applications.get(name)
            if known is not None and _version(known["deployed_app_config"]) == _version(config):
                # Ray keeps a failed application failed when nothing has changed.
                known["deployed_app_config"] = config
                continue
            self.applications[name] = {
                "name": name,
                "status": "DEPLOYING",
                "message": "",
                "source": "declarative",
                "route_prefix": config["route_prefix"],
                "deployments": {},
                "deployed_app_config": config,
                "_answers": (known or {}).get("_answers", False),
            }
            self.starts[name] = self.starts.get(name, 0) + 1
            task = asyncio.get_running_loop().create_task(self._deploy(name, self.applications[name]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        async with self.changed:
            self.changed.notify_all()
        await self.put_answers.wait()
        return web.Response()

    async def _deploy(self, name: str, application: dict[str, Any]) -> None:
        await asyncio.sleep(self.deploy_seconds)
        if name in self.fail_with:
            application["status"] = "DEPLOY_FAILED"
            application["message"] = "Failed to update the deployments ['GptOssServer']."
            application["deployments"] = {"GptOssServer": {"message": self.fail_with[name], "replicas": []}}
        else:
            application["status"] = "RUNNING"
            application["deployments"] = {
                "GptOssServer": {"message": "", "target_num_replicas": 1, "replicas": [{"state": "RUNNING"}]}
            }
            await asyncio.sleep(self.answer_seconds)
            application["_answers"] = True
        async with self.changed:
            self.changed.notify_all()

    async def _serve(self, request: web.Request) -> web.Response:
        for application in list(self.applications.values()):
            prefix = application["route_prefix"]
            if request.path == f"{prefix}/v1/models" and application["name"] not in self.mute:
                if request.headers.get(GATEWAY_TOKEN_HEADER) != GATEWAY_TOKEN:
                    return web.Response(status=401)
                if application.get("_answers"):
                    return web.json_response({"object": "list", "data": []})
        return web.Response(status=404, text="no such app")

    def _denied(self, request: web.Request) -> bool:
        for header in ("Origin", "Referer", "Sec-Fetch-Mode"):
            if header in request.headers:
                self.bad_headers.append(header)
        if request.headers.get("User-Agent", "").startswith("Mozilla"):
            self.bad_headers.append("User-Agent")
        return request.headers.get("Authorization") != f"Bearer {TOKEN}"


def gpu_node(accelerator_type: str, count: int = 1, *, state: str = "ALIVE") -> dict[str, Any]:
    """A row of Ray's list of nodes."""
    resources = {"CPU": 8.0, "memory": "64.000 GiB", "GPU": float(count), f"accelerator_type:{accelerator_type}": 1.0}
    return {"node_id": "ab", "state": state, "resources_total": resources, "labels": {}}


def _version(config: dict[str, Any]) -> str:
    """As Ray: bounds under ``deployments`` change in place, arguments and code don't."""
    return hashlib.sha256(repr((config.get("import_path"), config.get("args"))).encode()).hexdigest()
