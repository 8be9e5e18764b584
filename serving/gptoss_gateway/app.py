"""A gateway process' parts, put together, and the door: who asks, and for what.

Everything a process holds is in ``Gateway``, so two of them can live in one test. Files, signals and the
Kubernetes client are ``process``' affair; what becomes of a request past the door is ``inference``'s.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from gptoss_api.report import DeploymentDemand
from gptoss_gateway import prober
from gptoss_gateway.admission import Admission
from gptoss_gateway.audit import AuditLog, Entry
from gptoss_gateway.catalogue import Catalogue, ServedModel
from gptoss_gateway.census import Census
from gptoss_gateway.demand import Ledger
from gptoss_gateway.errors import (
    ClientLeftError,
    Dialect,
    ForbiddenError,
    NotFoundError,
    NotReadyError,
    RequestError,
)
from gptoss_gateway.exchange import Exchange
from gptoss_gateway.hold import WaitingRoom
from gptoss_gateway.inference import ROUTES, Inference
from gptoss_gateway.intake import Intake
from gptoss_gateway.keys import Authenticator, Caller
from gptoss_gateway.limits import Limiter
from gptoss_gateway.lines import Lines
from gptoss_gateway.metering import Metering
from gptoss_gateway.report import Reporter, ReportStore
from gptoss_gateway.settings import GatewaySettings
from gptoss_gateway.upstream import Upstream, Upstreams
from gptoss_gateway.vigil import ASK_EVERY_SECONDS, Vigil

_log = logging.getLogger(__name__)

_MODELS = "/v1/models"


class Gateway:
    """A gateway process' parts, from keys to report. Feed ``catalogue`` with GptOssDeployments.

    Feed ``census`` with GatewayReports, all gateways' and its own.
    """

    def __init__(self, settings: GatewaySettings, *, identity: str, keys: Authenticator, store: ReportStore) -> None:
        self.settings = settings
        self.catalogue = Catalogue()
        self.metering = Metering()
        self.closing = False
        self.upstreams = Upstreams(
            settings.ray_clusters, default=settings.default_ray_cluster, kube_ray=settings.kube_ray
        )
        self.reporter = Reporter(
            identity=identity,
            store=store,
            demands=self._demands,
            timestamp=_timestamp,
            closing=lambda: self.closing,
        )
        self.census = Census(identity=identity, clock=time.monotonic)
        self.ledger = Ledger(
            monotonic=lambda: asyncio.get_running_loop().time(),
            timestamp=_timestamp,
            changed=self.reporter.notify,
        )
        self._keys = keys
        self._limiter = Limiter(time.monotonic, processes=lambda: self.census.processes)
        self._audit = (
            AuditLog(settings.audit_file, timestamp=_timestamp, on_loss=self.metering.audit_lost)
            if settings.audit_file
            else None
        )
        self._room = WaitingRoom(max_requests=settings.limits.max_held_total, max_bytes=settings.limits.max_held_bytes)
        self.intake = Intake(settings.limits)
        self._lines = Lines()
        self._open: set[asyncio.Task[object]] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._session: aiohttp.ClientSession | None = None
        self._admission: Admission | None = None
        self._inference: Inference | None = None
        self._vigil = Vigil(
            ask=self._ask_engine,
            idle_seconds=settings.limits.idle_seconds,
            stall_seconds=settings.limits.stall_seconds,
        )
        self.metering.watch_places(self._places)
        self.metering.watch_tenants(self.ledger.tenants)
        self.metering.watch_processes(lambda: self.census.processes)
        self.metering.watch_tasks(lambda: len(asyncio.all_tasks()))

    @property
    def is_ready(self) -> bool:
        """Whether clients should be sent here."""
        return self.catalogue.synced and not self.closing

    async def start(self) -> None:
        """Open the way to the engines and begin to report."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),  # a probe is for the pods of now
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
            trust_env=False,
        )
        self._admission = Admission(
            catalogue=self.catalogue,
            ledger=self.ledger,
            room=self._room,
            upstreams=self.upstreams,
            session=self._session,
            metering=self.metering,
            may_report=lambda: self.reporter.may_report,
            senders=lambda: self.census.senders,
        )
        self._inference = Inference(
            catalogue=self.catalogue,
            ledger=self.ledger,
            intake=self.intake,
            admission=self._admission,
            lines=self._lines,
            vigil=self._vigil,
            limiter=self._limiter,
            metering=self.metering,
            closing=lambda: self.closing,
        )
        self._vigil.start()
        self.reporter.start()

    def close_door(self) -> None:
        """Take part no more in what gateways share: the report says so, and readiness goes off."""
        self.closing = True
        self.reporter.notify()

    async def finish_open_requests(self, grace_seconds: float, hurry: asyncio.Event) -> None:
        """Let open requests end; those that do not within the grace, or until ``hurry``, get an error."""
        ends = {asyncio.create_task(self._none_open.wait()), asyncio.create_task(hurry.wait())}
        await asyncio.wait(ends, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        for task in tuple(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=5.0)

    async def stop(self) -> None:
        """End everything; the report is deleted last."""
        await self._vigil.stop()
        if self._admission is not None:
            await self._admission.close()
        if self._session is not None:
            await self._session.close()
        self._lines.close()
        await self.reporter.stop()
        if self._audit is not None:
            await asyncio.to_thread(self._audit.close)

    async def refresh(self) -> None:
        """Take over changed keys and tokens, read beside the event loop; called once a second."""
        self._limiter.sweep()
        self._lines.sweep()
        await asyncio.to_thread(self._keys.refresh)
        await asyncio.to_thread(self.upstreams.refresh)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; the handler of the listener for clients."""
        assert self._inference is not None  # noqa: S101 - started
        route = ROUTES.get(request.rel_url.raw_path) if request.method == "POST" else None
        exchange = Exchange(
            request,
            request_id=uuid.uuid4().hex,
            dialect=route.dialect if route else Dialect.OPENAI,
            closing=lambda: self.closing,
        )
        entry = Entry(request_id=exchange.request_id, route=route.path if route else None)
        with self._counted(exchange), self._audited(entry):
            try:
                self._require_catalogue()
                if route is not None:
                    caller = self._known(request, entry)
                    with self._limiter.admitted(caller) as standing:
                        exchange.tell(standing)
                        await self._inference.answer(request, route, exchange, caller, entry)
                else:
                    await self._read_catalogue(request, exchange, entry)
            except ClientLeftError:
                pass
            except RequestError as error:
                await self._refuse(error, exchange, entry)
            except Exception:  # noqa: BLE001 - a client is answered whatever broke
                _log.exception("request failed inside the gateway")
                failure = RequestError("The gateway failed on this request; its log says why.")
                await self._refuse(failure, exchange, entry)
        return exchange.response or web.Response(status=499)

    def _known(self, request: web.BaseRequest, entry: Entry) -> Caller:
        caller = self._keys.authenticate(request.headers)
        entry.tenant = caller.tenant
        return caller

    async def _refuse(self, error: RequestError, exchange: Exchange, entry: Entry) -> None:
        if isinstance(error, ForbiddenError):
            entry.model = self.catalogue.get(error.uid)
        entry.failed(error)
        self.metering.request_refused(error.status)
        self.metering.note_limit(error)
        await exchange.give_up(error)

    def _require_catalogue(self) -> None:
        if not self.catalogue.synced:
            raise NotReadyError("This gateway does not know the models yet: try again.", retry_after=1)

    async def _read_catalogue(self, request: web.BaseRequest, exchange: Exchange, entry: Entry) -> None:
        path = request.rel_url.path
        if request.method == "GET" and path == _MODELS:
            entry.route = _MODELS
            caller = self._known(request, entry)
            listed = [_listed(name, model) for name, model in self.catalogue.visible(caller)]
            await exchange.answer(200, json.dumps({"object": "list", "data": listed}).encode())
        elif request.method == "GET" and path.startswith(_MODELS + "/"):
            entry.route = _MODELS + "/{id}"
            caller = self._known(request, entry)
            name = path.removeprefix(_MODELS + "/")
            entry.model = self.catalogue.resolve(caller, name)
            await exchange.answer(200, json.dumps(_listed(name, entry.model)).encode())
        elif path.startswith("/v1/responses/"):
            raise NotFoundError("Responses are not stored here: send the conversation with each request.")
        else:
            raise NotFoundError(
                f"There is no {request.method} {path[:200]}: this gateway answers GET {_MODELS} and POST "
                f"{', '.join(ROUTES)}."
            )
        entry.status = exchange.status

    async def _ask_engine(self, upstream: Upstream, model_id: str) -> bool:
        assert self._session is not None  # noqa: S101 - started
        return await prober.answers(self._session, upstream, model_id, within=ASK_EVERY_SECONDS)

    @contextlib.contextmanager
    def _counted(self, exchange: Exchange) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in a task
        self._open.add(task)
        self._none_open.clear()
        self._vigil.follow(exchange)
        try:
            yield
        finally:
            self._vigil.leave(exchange)
            self._open.discard(task)
            if not self._open:
                self._none_open.set()

    @contextlib.contextmanager
    def _audited(self, entry: Entry) -> Iterator[None]:
        """Write one line for a request, whatever becomes of it."""
        now = asyncio.get_running_loop().time
        began = now()
        try:
            yield
        finally:
            if self._audit is not None:
                self._audit.record(entry, seconds=now() - began)

    def _demands(self) -> tuple[DeploymentDemand, ...]:
        return self.ledger.demands()

    def _places(self) -> list[tuple[ServedModel, int, int]]:
        return [(model, *self.ledger.counts(model.uid)) for model in self.catalogue.all()]


def _listed(name: str, model: ServedModel) -> dict[str, object]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": model.namespace}


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
