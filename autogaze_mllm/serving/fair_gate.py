"""Who comes next: requests wait in front of a stage, and clients take turns."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairGate:
    """Lets `slots` in at once. Of those who wait, every client in turn gets one in, each in the order of its own: one
    that sends a hundred requests delays the others by one of them, not by all.

    Belongs to one event loop.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return sum(len(line) for line in self._waiting.values())

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Inside, the caller has a slot. Whoever is cancelled while it waits loses its place and takes nobody's."""
        await self._enter(client)
        try:
            yield
        finally:
            self._leave()

    def refuse(self, error: BaseException) -> None:
        """Raises `error` in all who wait."""
        for line in self._waiting.values():
            for future in line:
                if not future.done():
                    future.set_exception(error)
        self._waiting.clear()

    async def _enter(self, client: str) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._leave()  # it was let in at the same moment
            else:
                self._forget(client, future)
            raise

    def _forget(self, client: str, future: asyncio.Future[None]) -> None:
        line = self._waiting.get(client)
        if line is not None and future in line:
            line.remove(future)
            if not line:
                del self._waiting[client]

    def _leave(self) -> None:
        """Hands the slot to the next one."""
        while self._waiting:
            client, line = self._waiting.popitem(last=False)
            future = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            if not future.done():
                future.set_result(None)
                return
        self._free += 1
