"""What a request goes through: it is let in, its media are fetched, its videos are gazed and encoded, its answer is
written.

Notable design decisions:
- one video is gazed at a time and, in this process, one answer is written at a time, but gazing for one request runs
  beside the LLM of another;
- a question whose videos were all seen before does not wait for those that are being gazed;
- whatever runs in a thread is waited for, also when nobody wants it any more: a slot is free only when its work ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from ..common.compute.cancelling import Cancellation
from ..mllm.model import GazedModel
from .config import ServeConfig
from .engines.base import Engine, Finish
from .errors import ApiError
from .fair_gate import FairGate
from .intake.request import ChatRequest, read_request
from .metrics import Metrics
from .text import TextWriter
from .vision import Prompt, Vision

T = TypeVar("T")
FETCHES = 8  # downloads, and requests that are read, at a time
LONGEST_RETRY = 60  # seconds


@dataclass(frozen=True)
class Piece:
    """Of the answer with this number. finish: in its last piece, why it ended; tokens: then, all that were written."""

    choice: int
    text: str
    finish: Finish | None = None
    tokens: int = 0


class Gateway:
    """Belongs to one event loop. name: the model's, as clients call it."""

    def __init__(self, model: GazedModel, engine: Engine, config: ServeConfig, name: str) -> None:
        self.config, self.name, self.engine = config, name, engine
        self.tokenizer = model.tokenizer
        self.vision = Vision(model, engine, config)
        self.gates = {"vision": FairGate(1), "llm": FairGate(engine.parallel)}
        self.metrics = Metrics(lambda: self.in_work, lambda stage: len(self.gates[stage]))
        self.in_work = 0
        self.draining = False
        self.uploads: set[asyncio.Timeout] = set()
        self._mean_seconds = 1.0
        self._fetching = ThreadPoolExecutor(FETCHES, "fetch")
        self._seeing = ThreadPoolExecutor(2, "vision")  # one that gazes, one for what was seen before
        self._writing = ThreadPoolExecutor(engine.parallel, "llm")

    # -- who is let in -------------------------------------------------------------------------------------------

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Raises ApiError where there is no room."""
        self.check_open()
        if self.in_work >= self.config.max_queue:
            wait = min(math.ceil(self._mean_seconds * self.in_work / self.engine.parallel), LONGEST_RETRY)
            raise ApiError(
                429, "too many requests are waiting; come back later", headers={"Retry-After": str(max(wait, 1))}
            )
        self.in_work += 1
        begin = time.monotonic()
        try:
            yield
            self._mean_seconds += (time.monotonic() - begin - self._mean_seconds) / 8
        finally:
            self.in_work -= 1

    def drain(self) -> None:
        """From now on nothing new is begun; what has been looked at already is answered."""
        self.draining = True
        self.gates["vision"].refuse(_closing())
        for upload in self.uploads:
            if not upload.expired():
                upload.reschedule(0)

    def close(self) -> None:
        for pool in (self._fetching, self._seeing, self._writing):
            pool.shutdown(wait=False, cancel_futures=True)

    def check_open(self) -> None:
        """Raises ApiError once nothing new is begun."""
        if self.draining:
            raise _closing()

    # -- the stages ----------------------------------------------------------------------------------------------

    async def read(self, body: bytes) -> ChatRequest:
        return await _in_thread(self._fetching, lambda: read_request(body, self.config, self.name), Cancellation())

    async def prompt(self, request: ChatRequest, client: str, call: Cancellation) -> Prompt:
        """Media fetched, videos gazed and encoded. Raises ApiError."""
        with self._timed("fetch"):
            sighting = await _in_thread(self._fetching, lambda: self.vision.fetch(request, call), call)
        if self.vision.knows(sighting):
            prompt = await _in_thread(self._seeing, lambda: self.vision.prepare(sighting, call), call)
        else:
            self.check_open()
            begin = time.monotonic()
            async with self.gates["vision"].turn(client):
                self.metrics.seconds.labels("wait_vision").observe(time.monotonic() - begin)
                with self._timed("vision"):
                    prompt = await _in_thread(self._seeing, lambda: self.vision.prepare(sighting, call), call)
        videos = sum(asked.kind == "video" for asked in request.media)
        self.metrics.videos.labels("before" if prompt.gaze_facts["seen_before"] else "now").inc(videos)
        self.metrics.tokens.labels("prompt").inc(prompt.tokens)
        self.metrics.tokens.labels("visual").inc(prompt.gaze_facts["visual_tokens"])
        self.metrics.dense_tokens.inc(prompt.gaze_facts["dense_tokens"])
        return prompt

    async def pieces(
        self, request: ChatRequest, prompt: Prompt, client: str, call: Cancellation
    ) -> AsyncGenerator[Piece, None]:
        """The answers, as they are written. How fast they are read delays nobody else. Raises EngineError."""
        loop = asyncio.get_running_loop()
        written: asyncio.Queue[Piece | None] = asyncio.Queue()
        begin = time.monotonic()

        def say(piece: Piece) -> None:
            loop.call_soon_threadsafe(written.put_nowait, piece)

        async def run() -> None:
            async with self.gates["llm"].turn(client):
                self.metrics.seconds.labels("wait_llm").observe(time.monotonic() - begin)
                with self._timed("llm"):
                    await _in_thread(self._writing, lambda: self._write(request, prompt, say, call), call)

        task = asyncio.create_task(run())
        task.add_done_callback(lambda _: written.put_nowait(None))
        try:
            first = True
            while (piece := await written.get()) is not None:
                if first:
                    self.metrics.seconds.labels("first_token").observe(time.monotonic() - begin)
                    first = False
                yield piece
            await task
        finally:
            task.cancel()
            await _ended(task)
            del task

    def _write(self, request: ChatRequest, prompt: Prompt, say: Callable[[Piece], None], call: Cancellation) -> None:
        """Runs in a thread."""
        for choice in range(request.sampling.n):
            writer = TextWriter(self.tokenizer, request.sampling.stop)

            def emit(token: int, writer: TextWriter = writer, choice: int = choice) -> bool:
                text = writer.add(token)
                if text:
                    say(Piece(choice, text))
                return not writer.stopped

            finish = self.engine.generate(prompt.ready, request.sampling, choice, emit, call)
            rest = writer.close()
            self.metrics.tokens.labels("written").inc(writer.tokens)
            say(Piece(choice, rest, "stop" if writer.stopped else finish, writer.tokens))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.metrics.seconds.labels(stage).observe(time.monotonic() - begin)


def _closing() -> ApiError:
    return ApiError(503, "the server is closing", headers={"Retry-After": "10"})


async def _in_thread(pool: Executor, work: Callable[[], T], call: Cancellation) -> T:
    """What work gives. Cancelled, it tells the call so and waits until the thread has ended."""
    future = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        call.cancel()
        await _ended(future)
        raise
    finally:
        del future  # it holds an error, whose traceback would hold it in turn, and all that was worked on


async def _ended(future: asyncio.Future[T]) -> None:
    """Waits for it, come what may; what it raised has been told or is of no interest any more."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if not future.cancelled():
        future.exception()
    if cancelled:
        raise asyncio.CancelledError
