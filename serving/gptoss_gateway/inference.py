"""One inference request whose caller is known: body, model, admission, attempts, account."""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_gateway.admission import Admission, Visit
from gptoss_gateway.audit import Entry
from gptoss_gateway.body import parse_body
from gptoss_gateway.catalogue import Catalogue, ServedModel
from gptoss_gateway.demand import Ledger
from gptoss_gateway.errors import (
    Dialect,
    ModelRefusedError,
    NotFoundError,
    RequestError,
    ShuttingDownError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gptoss_gateway.exchange import Exchange
from gptoss_gateway.intake import Intake, Parcel
from gptoss_gateway.keys import Caller
from gptoss_gateway.limits import Limiter
from gptoss_gateway.lines import Lines
from gptoss_gateway.metering import Metering
from gptoss_gateway.patience import patience
from gptoss_gateway.proxy import Outcome, relay
from gptoss_gateway.stateless import require_stateless
from gptoss_gateway.usage import asking_for_usage
from gptoss_gateway.vigil import Attempt, Vigil

_log = logging.getLogger(__name__)

MAX_ATTEMPTS_REACHING_ENGINE = 5
"""Attempts that may have cost an engine work, per request: one that kills engines must not kill many."""
_BACKOFF_SECONDS = (0.0, 0.25, 0.5, 1.0, 2.0)
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


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


@dataclass(frozen=True, kw_only=True)
class _Errand:
    """What one request is about, once its body was read; ``arrived`` in loop time."""

    route: Route
    model: ServedModel
    caller: Caller
    parcel: Parcel
    exchange: Exchange
    entry: Entry
    headers: dict[str, str]
    arrived: float


class Inference:
    """Takes requests to engines, through the parts that all requests of a process share.

    ``closing`` tells whether the process is ending: a request that is cancelled then is told so.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        ledger: Ledger,
        intake: Intake,
        admission: Admission,
        lines: Lines,
        vigil: Vigil,
        limiter: Limiter,
        metering: Metering,
        closing: Callable[[], bool],
    ) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._intake = intake
        self._admission = admission
        self._lines = lines
        self._vigil = vigil
        self._limiter = limiter
        self._metering = metering
        self._closing = closing

    async def answer(
        self, request: web.BaseRequest, route: Route, exchange: Exchange, caller: Caller, entry: Entry
    ) -> None:
        """Answer one request, and enter what came of it.

        Raises:
            RequestError: it never came as far as a model; nothing was answered yet.
        """
        arrived = _now()
        with Parcel(self._intake, caller.tenant) as parcel:
            await self._intake.read(request, parcel)
            body = parse_body(parcel.body)
            if route.dialect is Dialect.RESPONSES:
                require_stateless(body)
            exchange.stream = body.stream
            entry.model = model = self._catalogue.resolve(caller, body.model)
            asking = asking_for_usage(body, route.path)
            exchange.tally.hidden = bool(asking)
            parcel.body = body.addressed_to(model.engine_id, asking)
            del body  # what is held for long is held once
            headers = _engine_headers(request, exchange)
            await self._visit(
                _Errand(
                    route=route,
                    model=model,
                    caller=caller,
                    parcel=parcel,
                    exchange=exchange,
                    entry=entry,
                    headers=headers,
                    arrived=arrived,
                )
            )

    async def _visit(self, errand: _Errand) -> None:
        model, exchange, caller, entry = errand.model, errand.exchange, errand.caller, errand.entry
        claim = self._ledger.open(model, caller.tenant)
        visit = Visit(
            uid=model.uid,
            claim=claim,
            size=len(errand.parcel.body),
            arrived=errand.arrived,
            heartbeat=exchange.heartbeat,
            tenant=caller.tenant,
            priority=caller.priority,
            patience=patience(exchange.preferences),
        )
        keep = True
        try:
            outcome = await self._serve(errand, visit)
            entry.status = exchange.status
            if outcome.broken:
                self._metering.broke(model)
                _log.warning("the engine's answer was cut short", extra={"deployment": model.qualified_name})
        except RequestError as error:
            keep = not isinstance(error, ModelRefusedError | NotFoundError)
            self._metering.note_limit(error)
            entry.failed(error)
            await exchange.give_up(error)
        except asyncio.CancelledError:
            if self._closing():
                stopping = ShuttingDownError("This gateway is stopping: send the request again.", retry_after=1)
                entry.failed(stopping)
                await exchange.give_up(stopping)
            raise
        finally:
            claim.close(keep=keep)
            self._metering.request_ended(model, route=errand.route.path, status=entry.status)
            self._account(errand)

    async def _serve(self, errand: _Errand, visit: Visit) -> Outcome:
        model, exchange = errand.model, errand.exchange
        failures = 0
        costly = 0
        while True:
            upstream = await self._admission.admit(visit, returning=failures > 0)
            exchange.tally.begin(visit.size)
            began = _now()
            attempt = Attempt(
                uid=model.uid,
                engine_id=model.engine_id,
                upstream=upstream,
                exchange=exchange,
                heard=began,
            )
            try:
                return await relay(
                    self._lines,
                    attempt,
                    errand.route.path,
                    parcel=errand.parcel,
                    headers=errand.headers,
                    vigil=self._vigil,
                    within=MAX_REQUEST_SECONDS - visit.answering,
                )
            except UpstreamUnavailableError as error:
                visit.answering += _now() - began
                exchange.tally.forget()
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
                self._metering.retried(model)
                _log.info(
                    "attempt failed, the request waits for the engine",
                    extra={"deployment": model.qualified_name, "error": str(error)},
                )
                await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                failures += 1

    def _account(self, errand: _Errand) -> None:
        entry, tenant = errand.entry, errand.caller.tenant
        entry.usage = usage = errand.exchange.tally.usage(status=entry.status)
        if usage is not None:
            self._metering.tokens(errand.model, tenant, usage)
            self._limiter.charge(tenant, usage.input + usage.output)


def _engine_headers(request: web.BaseRequest, exchange: Exchange) -> dict[str, str]:
    """Return what an engine is told of a request's headers; Ray Serve obeys too many others."""
    headers = {"Content-Type": "application/json", "x-request-id": exchange.request_id}
    accept = request.headers.get("Accept", "")
    headers["Accept"] = accept if len(accept) <= 256 and accept.isascii() and accept else "*/*"
    if _TRACEPARENT.match(trace := request.headers.get("traceparent", "")):
        headers["traceparent"] = trace
    return headers


def _now() -> float:
    return asyncio.get_running_loop().time()
