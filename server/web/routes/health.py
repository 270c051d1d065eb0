"""GET /health, /ready and /metrics: liveness, readiness and Prometheus metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from server.engine.registry import Engines
from server.errors import Unavailable
from server.settings import VERSION
from server.web.answers import error_body
from server.web.metrics import CONTENT_TYPE, Metrics
from server.web.requests import EnginesDep
from server.web.schemas import Health, NotReady, Ready

router = APIRouter(tags=["operations"])


@router.get("/health", response_model=Health)
async def health(engines: EnginesDep) -> dict[str, Any]:
    """Whether the process is alive, and which model it serves. `/ready` tells whether it can take requests."""
    engine, info = engines.default.engine, engines.default.engine.info
    return {
        "status": "ok",
        "version": VERSION,
        "model": engines.default.id,
        "dtype": info and info.dtype,
        "device": info and info.device,
        "languages": info and list(info.config.languages),
        "running": engine.running,
        "waiting": engine.waiting,
    }


@router.get(
    "/ready", response_model=Ready, responses={503: {"model": NotReady, "description": "The model is not loaded."}}
)
async def ready(engines: EnginesDep) -> Any:
    """Whether the default model is loaded, or was unloaded only because it was idle.

    If not, the progress of loading it and, after a failure, the reason.
    """
    engines.retry()
    model = engines.default
    if model.state == "ready" or (model.state == "idle" and model.was_ready):
        return {"status": "ready", "models": _states(engines)}
    progress = model.progress
    reason = model.last_failure.message if model.last_failure else None
    because = f", because {reason}" if reason else ""
    body = {
        "status": model.state,
        "stage": progress.stage,
        "progress": round(progress.done / progress.total, 4) if progress.total else None,
        "reason": reason,
        "models": _states(engines),
        **error_body(503, f"{model.id} is not loaded: {model.state}{because}.", f"model_{model.state}"),
    }
    return JSONResponse(body, 503, Unavailable.headers)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics: requests, queue, batch, audio seconds, real-time factor, time per stage."""
    recorded: Metrics = request.app.state.metrics
    return Response(recorded.text(), media_type=CONTENT_TYPE)


def _states(engines: Engines) -> list[dict[str, str]]:
    return [{"id": model.id, "state": model.state} for model in engines.models]
