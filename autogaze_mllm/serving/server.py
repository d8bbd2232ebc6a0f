"""Runs the endpoint until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..common.errors import InputError
from .config import ServeConfig
from .gateway import Gateway

IDLE_SECONDS = 30  # that a connection may be kept between requests
BACKLOG = 256


class _Server(uvicorn.Server):
    """The first signal lets what runs come to its end, the second does not."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gateway.draining:
            self.force_exit = self.should_exit = True
        self._gateway.draining = True  # the loop sees it in `on_tick`

    async def on_tick(self, counter: int) -> bool:
        if self._gateway.draining:
            self._gateway.drain()
            if not self._gateway.in_work:
                self.should_exit = True
        return await super().on_tick(counter)


def run_server(app: FastAPI, gateway: Gateway, ready: Callable[[str], None] = lambda url: None) -> None:
    """Answers until SIGTERM or SIGINT, then finishes what runs and refuses the rest. ready: called with the URL as soon
    as requests are taken. Raises InputError where nothing can be listened at."""
    config = gateway.config
    listener = _listener(config)
    host, port = config.host, listener.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            h11_max_incomplete_event_size=1 << 16,
            lifespan="off",
            http="h11",
            ws="none",
            loop="asyncio",
        ),
        gateway,
    )

    async def serve() -> None:
        task = asyncio.create_task(server.serve([listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready(url)
        await task

    try:
        asyncio.run(serve())
    finally:
        gateway.close()
        listener.close()


def _listener(config: ServeConfig) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen at {config.host}, port {config.port} ({reason})") from error
    return listener
