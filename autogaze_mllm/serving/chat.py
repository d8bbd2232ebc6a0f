"""The route of chat completions: from the first byte of a request to the last of its answer.

Everything happens in one coroutine, so that whatever ends it (the client leaves, the time is over, the server closes)
ends the work behind it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..common.compute.cancelling import Cancellation, CancelledCall
from .engines.base import EngineError
from .errors import ApiError
from .gateway import Gateway
from .intake.request import ChatRequest
from .replies import Reply, event

logger = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """Nobody is there to be answered."""


class ChatRoute:
    """An ASGI application. allowed: raises ApiError for a request without the key."""

    def __init__(self, gateway: Gateway, allowed: Callable[[Request], None]) -> None:
        self._gateway, self._allowed = gateway, allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(self._gateway, Request(scope, receive), send)
        begin, status = time.monotonic(), 200
        try:
            self._allowed(exchange.request)
            _check_type(exchange.request)
            with self._gateway.admitted():
                await exchange.run()
        except ClientGoneError:
            status = 499  # as web servers note it
        except Exception as error:
            # Without its traceback, which would hold this frame, and with it the body, until Python looks for circles.
            refusal = as_api_error(error).with_traceback(None)
            status = refusal.status
            await exchange.fail(refusal)
        self._gateway.metrics.requests.labels(str(status)).inc()
        self._gateway.metrics.seconds.labels("whole").observe(time.monotonic() - begin)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told. What is no fault of its own stands in the log alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TimeoutError):
        return ApiError(504, "this took longer than a request may take here")
    if isinstance(error, EngineError):
        logger.error("engine: %s", error)
        return ApiError(502, "the engine that runs the LLM does not answer")
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        logger.error("too little memory for a request")
        return ApiError(503, "too little memory for this request: ask for fewer frames or tiles")
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "this request failed; the server's log says why")


def _check_type(request: Request) -> None:
    """A page of another origin can make a browser send a form or plain text, but no json."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the request must be of type application/json")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"a request may have {most} MiB here")


class _Exchange:
    """One request and its answer. started: something was sent already."""

    def __init__(self, gateway: Gateway, request: Request, send: Send) -> None:
        self._gateway, self.request, self._send = gateway, request, send
        self._started = False
        self._call = Cancellation()

    async def run(self) -> None:
        begin = time.monotonic()
        body = await self._body()
        self._gateway.metrics.seconds.labels("upload").observe(time.monotonic() - begin)
        await self._while_there(self._answer(body))

    async def fail(self, error: ApiError) -> None:
        if self._started:  # the status is out: what is left is an event that says so
            await self._write(event(error.body()), last=True)
            return
        # What is left of the body is not read.
        headers = {**error.headers, "Connection": "close"}
        response = JSONResponse(error.body(), status_code=error.status, headers=headers)
        await response(self.request.scope, self.request.receive, self._send)

    # -- the request ---------------------------------------------------------------------------------------------

    async def _body(self) -> bytes:
        config = self._gateway.config
        most, found = config.max_body << 20, bytearray()
        length = self.request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > most:
            raise _too_large(config.max_body)
        upload = asyncio.timeout(config.max_upload_seconds)
        try:
            async with upload:
                self._gateway.uploads.add(upload)
                while True:
                    message = await self.request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    found += message.get("body", b"")
                    if len(found) > most:
                        raise _too_large(config.max_body)
                    if not message.get("more_body"):
                        return bytes(found)
        except TimeoutError as error:
            self._gateway.check_open()
            raise ApiError(408, f"a request must come within {config.max_upload_seconds:g} seconds") from error
        finally:
            self._gateway.uploads.discard(upload)

    async def _while_there(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work until the client leaves. Raises ClientGoneError."""
        task, gone = asyncio.create_task(work), asyncio.create_task(self._gone())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
            task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.wait({task, gone})
            if not task.cancelled():
                task.exception()
            del task  # it holds an error, whose traceback would hold it in turn, and with it the request's body

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            continue

    # -- the answer ----------------------------------------------------------------------------------------------

    async def _answer(self, body: bytes) -> None:
        gateway = self._gateway
        try:
            async with asyncio.timeout(gateway.config.max_seconds):
                request = await gateway.read(body)
                del body
                client = self._client(request)
                prompt = await gateway.prompt(request, client, self._call)
                reply = Reply(gateway.name, prompt, request.sampling.n, request.usage)
                async with aclosing(gateway.pieces(request, prompt, client, self._call)) as pieces:
                    if request.stream:
                        async for piece in pieces:
                            begin = [] if self._started else reply.first()
                            await self._write(b"".join([*begin, *reply.piece(piece)]))
                    else:
                        whole = reply.whole([piece async for piece in pieces])
                if request.stream:
                    await self._write(b"".join(reply.last()), last=True)
                    return
                self._started = True
                await JSONResponse(whole)(self.request.scope, self.request.receive, self._send)
        except CancelledCall as error:  # a thread was told so before this coroutine was
            raise ClientGoneError from error

    def _client(self, request: ChatRequest) -> str:
        """Who takes turns with others."""
        client = self.request.client
        return request.user or (client.host if client else "")

    async def _write(self, data: bytes, last: bool = False) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
