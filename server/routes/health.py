"""GET /health: is it up, and what is running."""

from typing import Any

from fastapi import APIRouter, Response

from ..dependencies import EngineDep
from ..settings import VERSION

router = APIRouter()


@router.get("/health")
async def health(engine: EngineDep, response: Response) -> dict[str, Any]:
    """`status` is ok (200), or loading, stopping or failed (503)."""
    ready = engine.status == "ready"
    response.status_code = 200 if ready else 503
    info = engine.info
    return {
        "status": "ok" if ready else engine.status,
        "version": VERSION,
        "model": info and info.name,
        "dtype": info and info.dtype,
        "device": info and info.device,
        "languages": info and list(info.config.languages),
        "running": engine.running,
        "waiting": engine.waiting,
    }
