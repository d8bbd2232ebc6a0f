"""The routes: chat completions, models, health and metrics. Nothing else is answered."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from .chat import ChatRoute
from .errors import ApiError
from .gateway import Gateway
from .metrics import CONTENT_TYPE

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def make_app(gateway: Gateway) -> FastAPI:
    """All routes but /health ask for the key, where there is one."""
    app = FastAPI(title="autogaze-mllm", docs_url=None, redoc_url=None, openapi_url=None)
    allowed = _door(gateway)
    began = int(time.time())
    app.router.routes.append(Route("/v1/chat/completions", ChatRoute(gateway, allowed), methods=["POST"]))
    card = {"id": gateway.name, "object": "model", "created": began, "owned_by": "autogaze-mllm"}

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        allowed(request)
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Any:
        allowed(request)
        if name != gateway.name:
            raise ApiError(404, "there is no such model here", param="model", code="model_not_found")
        return card

    @app.get("/health")
    async def health() -> Response:
        """For whoever watches: 200 while requests are taken."""
        return JSONResponse({"status": "closing" if gateway.draining else "ok"}, 503 if gateway.draining else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        allowed(request)
        return Response(gateway.metrics.page(), media_type=CONTENT_TYPE)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        failure = ApiError(
            error.status_code, "there is nothing here" if error.status_code == 404 else str(error.detail)
        )
        return JSONResponse(failure.body(), failure.status, headers=error.headers)

    return app


def _door(gateway: Gateway) -> Callable[[Request], None]:
    """What raises ApiError for requests that may not come in."""
    config = gateway.config
    wanted = None if config.api_key is None else f"Bearer {config.api_key}".encode()

    def check(request: Request) -> None:
        if wanted is not None:
            given = request.headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, wanted):
                raise ApiError(401, "the key is missing or wrong", code="invalid_api_key")
        elif config.host in LOOPBACK and _named(request) not in LOOPBACK:
            # A page in a browser may have had its own name resolved to this machine.
            raise ApiError(403, "this server answers to localhost alone; give it a key to call it otherwise")

    return check


def _named(request: Request) -> str:
    """The host that a request asks for, without its port."""
    host = request.headers.get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()
