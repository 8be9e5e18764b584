"""One request from the door to its end: route, key, body, model, admission, attempts, account.

Everything a gateway process holds is put together here (``Gateway``), so two of them can live in one
test. Files, signals and the Kubernetes client are ``server``'s affair.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from aiohttp import web

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_api.report import DeploymentDemand
from gptoss_gateway import prober
from gptoss_gateway.admission import Admission, Visit
from gptoss_gateway.audit import AuditLog
from gptoss_gateway.body import parse_body
from gptoss_gateway.catalogue import Catalogue, ServedModel
from gptoss_gateway.demand import Ledger
from gptoss_gateway.errors import (
    ClientLeftError,
    Dialect,
    LimitedError,
    ModelRefusedError,
    NotFoundError,
    NotReadyError,
    RequestError,
    ShuttingDownError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gptoss_gateway.exchange import Exchange
from gptoss_gateway.hold import WaitingRoom
from gptoss_gateway.intake import Intake, Parcel
from gptoss_gateway.keys import Authenticator, Caller
from gptoss_gateway.limits import Limiter
from gptoss_gateway.lines import Lines
from gptoss_gateway.metering import Metering
from gptoss_gateway.patience import patience
from gptoss_gateway.proxy import Outcome, relay
from gptoss_gateway.report import Reporter, ReportStore
from gptoss_gateway.settings import GatewaySettings
from gptoss_gateway.stateless import require_stateless
from gptoss_gateway.upstream import Upstream, Upstreams
from gptoss_gateway.usage import asking_for_usage
from gptoss_gateway.vigil import ASK_EVERY_SECONDS, Attempt, Vigil

_log = logging.getLogger(__name__)

MAX_ATTEMPTS_REACHING_ENGINE = 5
"""Attempts that may have cost an engine work, per request: one that kills engines must not kill many."""
_BACKOFF_SECONDS = (0.0, 0.25, 0.5, 1.0, 2.0)
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
_MODELS = "/v1/models"


@dataclass(frozen=True, kw_only=True)
class Route:
    """A path that engines are asked at."""

    path: str
    dialect: Dialect


ROUTES = {
    route.path: route
    for route in (
        Route(path="/v1/chat/completions", dialect=Dialect.OPENAI),
        Route(path="/v1/completions", dialect=Dialect.OPENAI),
        Route(path="/v1/responses", dialect=Dialect.RESPONSES),
        Route(path="/v1/messages", dialect=Dialect.ANTHROPIC),
    )
}


class Gateway:
    """A gateway process' parts, from keys to report. Feed ``catalogue`` with GptOssDeployments."""

    def __init__(self, settings: GatewaySettings, *, identity: str, keys: Authenticator, store: ReportStore) -> None:
        self.settings = settings
        self.catalogue = Catalogue()
        self.metering = Metering()
        self.closing = False
        self.upstreams = Upstreams(
            settings.ray_clusters, default=settings.default_ray_cluster, kube_ray=settings.kube_ray
        )
        self.reporter = Reporter(identity=identity, store=store, demands=self._demands, timestamp=_timestamp)
        self.ledger = Ledger(
            monotonic=lambda: asyncio.get_running_loop().time(),
            timestamp=_timestamp,
            changed=self.reporter.notify,
        )
        self.max_request_seconds: float = MAX_REQUEST_SECONDS
        self._keys = keys
        self._limiter = Limiter(time.monotonic)
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
        self._vigil = Vigil(
            ask=self._ask_engine,
            idle_seconds=settings.limits.idle_seconds,
            stall_seconds=settings.limits.stall_seconds,
        )
        self.metering.watch_places(self._places)
        self.metering.watch_tenants(self.ledger.tenants)
        self.metering.watch_tasks(lambda: len(asyncio.all_tasks()))

    @property
    def is_ready(self) -> bool:
        """Whether clients should be sent here."""
        return self.catalogue.synced and not self.closing

    async def start(self) -> None:
        """Open the way to the engines and begin to report."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
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
        )
        self._vigil.start()
        self.reporter.start()

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

    def refresh(self) -> None:
        """Take over changed keys and tokens; called once a second."""
        self._keys.refresh()
        self._limiter.sweep()
        self.upstreams.refresh()
        self._lines.sweep()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; the handler of the listener for clients."""
        route = ROUTES.get(request.rel_url.raw_path) if request.method == "POST" else None
        exchange = Exchange(
            request,
            request_id=uuid.uuid4().hex,
            dialect=route.dialect if route else Dialect.OPENAI,
            closing=lambda: self.closing,
        )
        with self._counted(exchange):
            try:
                self._require_catalogue()
                if route is not None:
                    caller = self._keys.authenticate(request.headers)
                    with self._limiter.admitted(caller) as standing:
                        exchange.tell(standing)
                        await self._infer(request, route, exchange, caller)
                else:
                    await self._read_catalogue(request, exchange)
            except ClientLeftError:
                pass
            except RequestError as error:
                self.metering.request_refused(error.status)
                self._note_limit(error)
                await _fail(exchange, error)
            except Exception:  # noqa: BLE001 - a client is answered whatever broke
                _log.exception("request failed inside the gateway")
                self.metering.request_refused(500)
                await _fail(exchange, RequestError("The gateway failed on this request; its log says why."))
        return exchange.response or web.Response(status=499)

    def _require_catalogue(self) -> None:
        if not self.catalogue.synced:
            raise NotReadyError("This gateway does not know the models yet: try again.", retry_after=1)

    async def _read_catalogue(self, request: web.BaseRequest, exchange: Exchange) -> None:
        path = request.rel_url.path
        if request.method == "GET" and path == _MODELS:
            caller = self._keys.authenticate(request.headers)
            entries = [_entry(name, model) for name, model in self.catalogue.visible(caller)]
            await exchange.answer(200, json.dumps({"object": "list", "data": entries}).encode())
        elif request.method == "GET" and path.startswith(_MODELS + "/"):
            caller = self._keys.authenticate(request.headers)
            name = path.removeprefix(_MODELS + "/")
            model = self.catalogue.resolve(caller, name)
            await exchange.answer(200, json.dumps(_entry(name, model)).encode())
        elif path.startswith("/v1/responses/"):
            raise NotFoundError("Responses are not stored here: send the conversation with each request.")
        else:
            raise NotFoundError(
                f"There is no {request.method} {path[:200]}: this gateway answers GET {_MODELS} and POST "
                f"{', '.join(ROUTES)}."
            )

    async def _infer(self, request: web.BaseRequest, route: Route, exchange: Exchange, caller: Caller) -> None:
        arrived = asyncio.get_running_loop().time()
        with Parcel(self.intake, caller.tenant) as parcel:
            await self.intake.read(request, parcel)
            body = parse_body(parcel.body)
            if route.dialect is Dialect.RESPONSES:
                require_stateless(body)
            exchange.stream = body.stream
            model = self.catalogue.resolve(caller, body.model)
            asking = asking_for_usage(body, route.path)
            exchange.tally.hidden = bool(asking)
            parcel.body = body.addressed_to(model.engine_id, asking)
            del body  # what is held for long is held once
            await self._visit(route, model, caller, parcel, exchange, _engine_headers(request, exchange), arrived)

    async def _visit(
        self,
        route: Route,
        model: ServedModel,
        caller: Caller,
        parcel: Parcel,
        exchange: Exchange,
        headers: dict[str, str],
        arrived: float,
    ) -> None:
        claim = self.ledger.open(model, caller.tenant)
        visit = Visit(
            uid=model.uid,
            claim=claim,
            size=len(parcel.body),
            arrived=arrived,
            heartbeat=exchange.heartbeat,
            tenant=caller.tenant,
            priority=caller.priority,
            patience=patience(exchange.preferences),
        )
        keep = True
        status: int | None = None
        try:
            outcome = await self._serve(route, visit, model, parcel, exchange, headers)
            status = exchange.status
            if outcome.broken:
                self.metering.broke(model)
                _log.warning("the engine's answer was cut short", extra={"deployment": model.qualified_name})
        except RequestError as error:
            keep = not isinstance(error, ModelRefusedError | NotFoundError)
            self._note_limit(error)
            status = error.status
            await _fail(exchange, error)
        except asyncio.CancelledError:
            if self.closing:
                stopping = ShuttingDownError("This gateway is stopping: send the request again.", retry_after=1)
                status = stopping.status
                await _fail(exchange, stopping)
            raise
        finally:
            claim.close(keep=keep)
            self.metering.request_ended(model, route=route.path, status=status)
            self._account(model, caller, route, exchange, status=status, seconds=_loop_time() - arrived)

    async def _serve(
        self,
        route: Route,
        visit: Visit,
        model: ServedModel,
        parcel: Parcel,
        exchange: Exchange,
        headers: dict[str, str],
    ) -> Outcome:
        assert self._admission is not None  # noqa: S101 - started
        loop = asyncio.get_running_loop()
        failures = 0
        costly = 0
        while True:
            upstream = await self._admission.admit(visit, returning=failures > 0)
            exchange.tally.begin(visit.size)
            attempt = Attempt(
                uid=model.uid,
                engine_id=model.engine_id,
                upstream=upstream,
                exchange=exchange,
                full=model.ramp,
                heard=loop.time(),
            )
            try:
                return await relay(
                    self._lines,
                    attempt,
                    route.path,
                    parcel=parcel,
                    headers=headers,
                    vigil=self._vigil,
                    max_seconds=self.max_request_seconds,
                )
            except UpstreamUnavailableError as error:
                self._admission.doubt(visit.uid)
                visit.claim.wait()
                costly += error.reached_engine
                if costly >= MAX_ATTEMPTS_REACHING_ENGINE:
                    if error.answer is not None:
                        await exchange.answer(error.answer.status, error.answer.body)
                        return Outcome()
                    raise UpstreamFailedError(
                        f"The engine failed on this request {costly} times. Ask again later."
                    ) from error
                self.metering.retried(model)
                _log.info(
                    "attempt failed, the request waits for the engine",
                    extra={"deployment": model.qualified_name, "error": str(error)},
                )
                await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                failures += 1

    def _note_limit(self, error: RequestError) -> None:
        if isinstance(error, LimitedError):
            self.metering.request_limited(error)

    def _account(
        self,
        model: ServedModel,
        caller: Caller,
        route: Route,
        exchange: Exchange,
        *,
        status: int | None,
        seconds: float,
    ) -> None:
        usage = exchange.tally.usage(status=status)
        if usage is not None:
            self.metering.tokens(model, caller.tenant, usage)
            self._limiter.charge(caller.tenant, usage.input + usage.output)
        if self._audit is not None:
            self._audit.record(
                model,
                tenant=caller.tenant,
                request_id=exchange.request_id,
                route=route.path,
                status=status,
                usage=usage,
                seconds=seconds,
            )

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

    def _demands(self) -> tuple[DeploymentDemand, ...]:
        return self.ledger.demands()

    def _places(self) -> list[tuple[ServedModel, int, int]]:
        return [(model, *self.ledger.counts(model.uid)) for model in self.catalogue.all()]


async def _fail(exchange: Exchange, error: RequestError) -> None:
    with contextlib.suppress(ClientLeftError):
        await exchange.fail(error)


def _engine_headers(request: web.BaseRequest, exchange: Exchange) -> dict[str, str]:
    """Return what an engine is told of a request's headers; Ray Serve obeys too many others."""
    headers = {"Content-Type": "application/json", "x-request-id": exchange.request_id}
    accept = request.headers.get("Accept", "")
    headers["Accept"] = accept if len(accept) <= 256 and accept.isascii() and accept else "*/*"
    if _TRACEPARENT.match(trace := request.headers.get("traceparent", "")):
        headers["traceparent"] = trace
    return headers


def _entry(name: str, model: ServedModel) -> dict[str, object]:
    return {"id": name, "object": "model", "created": model.created, "owned_by": model.namespace}


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
