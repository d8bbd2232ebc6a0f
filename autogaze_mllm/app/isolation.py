"""The page asks no other machine: neither its server nor a browser that shows it.

Gradio would fetch an address that stands in place of a file, and some of its buttons load programs from elsewhere (that
which cuts videos, say). Addresses are refused here, and a policy in every answer keeps browsers from the rest.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADDRESS = re.compile(r"\s*https?:", re.IGNORECASE)
LARGEST = 1 << 20  # bytes of a request that is no upload
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)  # Gradio makes functions of text
REFUSAL = "the page takes files, not addresses: download the video first"


class Isolation:
    """Middleware that refuses requests which name an address where a file belongs, and sends the policy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        send = _with_policy(send)
        _, named, source = scope["path"].partition("/file=")
        if named and ADDRESS.match(source):
            return await JSONResponse({"detail": REFUSAL}, 403)(scope, receive, send)
        if scope["method"] != "POST" or scope["path"].endswith("/upload"):
            return await self.app(scope, receive, send)
        body = await _body(receive)
        if body is None:
            return await JSONResponse({"detail": "the request is too large"}, 413)(scope, receive, send)
        if _names_address(body):
            return await JSONResponse({"detail": REFUSAL}, 403)(scope, receive, send)
        return await self.app(scope, _again(body, receive), send)


def _with_policy(send: Send) -> Send:
    async def to_browser(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
        await send(message)

    return to_browser


async def _body(receive: Receive) -> bytes | None:
    """All of it; None where it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what else comes."""
    refused = False

    async def give() -> Message:
        nonlocal refused
        if refused:
            return await receive()
        refused = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


def _names_address(body: bytes) -> bool:
    try:
        return _in(json.loads(body or b"null"))
    except (ValueError, RecursionError):  # Gradio refuses it, too
        return False


def _in(value: Any) -> bool:
    """Whether a file is given by its address somewhere in there. Text may hold addresses."""
    if isinstance(value, dict):
        named = value.get("path")
        return (isinstance(named, str) and bool(ADDRESS.match(named))) or any(map(_in, value.values()))
    return isinstance(value, list) and any(map(_in, value))
