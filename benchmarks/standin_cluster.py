"""A stand-in for a Ray cluster whose engines start after a fixed delay. Named as such: no Ray, no engine.

It speaks the two interfaces that operator and gateway use: the dashboard's declarative REST and the
Serve proxy's routes. It notes when each application was asked for, when it would first have
answered, and when its first request arrived, so that what lies between is ours alone.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Application = dict[str, Any]


@dataclass
class Times:
    """When things happened to one application, in seconds on the monotonic clock."""

    put: float
    answers: float
    requested: asyncio.Future[float] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class StandinCluster:
    """One process, two listeners: ``dashboard_url`` and ``serve_url``."""

    def __init__(self, *, start_seconds: float) -> None:
        self.times: dict[str, Times] = {}
        self._start_seconds = start_seconds
        self._configs: dict[str, Application] = {}
        self._runners: list[web.AppRunner] = []
        self.dashboard_url = ""
        self.serve_url = ""

    async def start(self) -> None:
        """Listen on two free ports of the loopback interface."""
        dashboard = web.Application()
        dashboard.add_routes(
            [web.get("/api/serve/applications/", self._get), web.put("/api/serve/applications/", self._put)]
        )
        serve = web.Application()
        serve.router.add_route("*", "/{prefix:gptoss/[^/]+/[^/]+}/{rest:.*}", self._serve)
        self.dashboard_url = await self._listen(dashboard)
        self.serve_url = await self._listen(serve)

    async def stop(self) -> None:
        """Close both listeners."""
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, application: web.Application) -> str:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _get(self, _: web.Request) -> web.Response:
        return web.json_response({"applications": {name: self._details(name) for name in self._configs}})

    async def _put(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        wanted = {config["name"]: config for config in (await request.json())["applications"]}
        for name in self._configs.keys() - wanted.keys():
            del self.times[name]
        for name in wanted.keys() - self._configs.keys():
            self.times[name] = Times(put=now, answers=now + self._start_seconds)
        self._configs = wanted
        return web.Response()

    def _details(self, name: str) -> Application:
        config = self._configs[name]
        status = "RUNNING" if self._answers(name) else "DEPLOYING"
        deployments = {
            each["name"]: {
                "name": each["name"],
                "status": "HEALTHY" if status == "RUNNING" else "UPDATING",
                "message": "",
                "target_num_replicas": 1,
                "replicas": [{"replica_id": "r1", "state": "RUNNING" if status == "RUNNING" else "STARTING"}],
            }
            for each in config["deployments"]
        }
        return {
            "name": name,
            "status": status,
            "message": "",
            "source": "declarative",
            "route_prefix": config["route_prefix"],
            "deployed_app_config": config,
            "deployments": deployments,
        }

    def _answers(self, name: str) -> bool:
        return time.monotonic() >= self.times[name].answers

    async def _serve(self, request: web.Request) -> web.Response:
        prefix = "/" + request.match_info["prefix"]
        name = next((n for n, config in self._configs.items() if config["route_prefix"] == prefix), None)
        if name is None:
            return web.Response(status=404, text=f"Path '{request.path}' not found. Ping /-/routes")
        if not self._answers(name):
            # At once, so that a release waits for the gateway's next probe: a proxy that holds the probe instead,
            # as Ray's does, would let it off cheaper.
            return web.Response(status=503, text="no replica yet")
        model = self._configs[name]["args"]["modelId"]
        if request.match_info["rest"] == "v1/models":
            return web.json_response({"object": "list", "data": [{"id": model, "object": "model"}]})
        if not self.times[name].requested.done():
            self.times[name].requested.set_result(time.monotonic())
        message = {"role": "assistant", "content": "awake"}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 0,
                "model": model,
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )
