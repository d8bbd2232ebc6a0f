"""Who waits, who is turned away, and what happens when a client or the server leaves in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

import autogaze_mllm as am
from autogaze_mllm.common.compute.cancelling import Cancellation
from autogaze_mllm.serving.engines.base import Emit, Finish
from autogaze_mllm.serving.engines.local import LocalEngine
from autogaze_mllm.serving.intake.sampling import Sampling

from ..helpers.serving.servers import PATIENCE, Served, asked, body_of, data_url, served, talkative

TEXT = [{"role": "user", "content": "Hello"}]


class Held(am.PixelDiffSelector):
    """Selects when it may. begun: how often it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.begun = threading.Semaphore(0), 0

    def select(self, *given: Any, **named: Any) -> am.GazingInfo:
        self.begun += 1
        assert self.may.acquire(timeout=PATIENCE)
        return super().select(*given, **named)


class HeldEngine(LocalEngine):
    """Writes each id when it may. begun, ended: answers; ids: written in all; call: the latest."""

    call = Cancellation()

    def __init__(self, model: am.GazedModel) -> None:
        super().__init__(model)
        self.may = threading.Semaphore(0)
        self.begun = self.ended = self.ids = 0

    def generate(self, ready: Any, sampling: Sampling, choice: int, emit: Emit, call: Cancellation) -> Finish:
        def held(token: int) -> bool:
            assert self.may.acquire(timeout=PATIENCE)
            self.ids += 1
            return emit(token)

        self.call = call
        self.begun += 1
        try:
            return super().generate(ready, sampling, choice, held, call)
        finally:
            self.ended += 1


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return talkative()


def engine_of(server: Served) -> HeldEngine:
    assert isinstance(server.gateway.engine, HeldEngine)
    return server.gateway.engine


def sent(server: Served, messages: Any, **fields: Any) -> Any:
    """A connection on which a request was sent, and nothing read."""
    connection = server.connection()
    body = json.dumps(body_of(messages, **fields))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def test_a_full_queue_says_when_to_come_back(model):
    with served(model, HeldEngine, max_queue=2) as server, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(server.post, body_of(TEXT)) for _ in range(2)]
        until(lambda: server.gateway.in_work == 2)
        status, found, headers = server.post(body_of(TEXT))
        assert status == 429 and int(headers["retry-after"]) >= 1 and found["error"]["type"] == "rate_limit_error"
        assert server.get("/health")[0] == 200 and b"autogaze_mllm_in_work 2.0" in server.get("/metrics")[1]
        engine_of(server).may.release(100)
        assert [one.result()[0] for one in waiting] == [200, 200]
        assert server.post(body_of(TEXT))[0] == 200


def test_clients_take_turns(model):
    """`user` tells those apart who come from one address."""
    ended = []

    def ask(server: Served, user: str, name: str) -> None:
        assert server.post(body_of(TEXT, user=user))[0] == 200
        ended.append(name)

    with served(model, HeldEngine) as server, ThreadPoolExecutor() as pool:
        gate, jobs = server.gateway.gates["llm"], []
        for number, (user, name) in enumerate((("a", "a0"), ("a", "a1"), ("a", "a2"), ("b", "b0"))):
            jobs.append(pool.submit(ask, server, user, name))
            until(lambda number=number: engine_of(server).begun + len(gate) == number + 1)
        for number in range(4):
            engine_of(server).may.release(8)
            until(lambda number=number: len(ended) == number + 1)
        for job in jobs:
            job.result()
    assert ended == ["a0", "a1", "b0", "a2"]


def test_gazing_runs_beside_the_llm_of_another(model, clip):
    """And a question on a video that was seen passes those that are being gazed."""
    gaze = Held()
    watched = talkative(gaze)
    with served(watched, HeldEngine, allow_folder=[str(clip.parent)]) as server, ThreadPoolExecutor() as pool:
        engine = engine_of(server)
        first = pool.submit(server.post, body_of(asked(data_url(clip))))
        gaze.may.release(1)
        until(lambda: engine.begun == 1)  # its answer is being written
        other = pool.submit(server.post, body_of(asked(data_url(clip), start=0.5)))
        until(lambda: gaze.begun == 2)  # and the other video is being gazed
        engine.may.release(100)
        assert first.result()[0] == 200 and not other.done()
        assert server.post(body_of(asked(data_url(clip), "Why?")))[1]["gaze"]["seen_before"]
        gaze.may.release(1)
        assert other.result()[0] == 200


def test_who_leaves_while_it_waits_loses_its_place(model, clip):
    with served(model, HeldEngine) as server, ThreadPoolExecutor() as pool:
        engine, gate = engine_of(server), server.gateway.gates["llm"]
        first = pool.submit(server.post, body_of(TEXT))
        until(lambda: engine.begun == 1)
        leaving = sent(server, TEXT)
        until(lambda: len(gate) == 1)
        leaving.close()
        until(lambda: len(gate) == 0 and server.gateway.in_work == 1)
        engine.may.release(100)
        assert first.result()[0] == 200 and engine.begun == 1
        assert 'requests_total{status="499"} 1.0' in server.get("/metrics")[1].decode()


def test_who_leaves_while_its_video_is_gazed_stops_that(clip):
    gaze = Held()
    calls: list[Cancellation] = []
    with served(talkative(gaze, chunk_frames=1)) as server:
        prepare = server.gateway.vision.prepare
        server.gateway.vision.prepare = lambda sighting, call: (calls.append(call), prepare(sighting, call))[1]
        leaving = sent(server, asked(data_url(clip)))
        until(lambda: gaze.begun == 1)
        leaving.close()
        until(lambda: calls[0].cancelled)
        gaze.may.release(1)  # what is in hand comes to its end, and no more of the 8 frames is begun
        until(lambda: server.gateway.in_work == 0)
        assert gaze.begun == 1
        gaze.may.release(100)
        assert server.post(body_of(asked(data_url(clip))))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_while_its_answer_is_written_stops_that(model, stream):
    with served(model, HeldEngine) as server:
        engine = engine_of(server)
        leaving = sent(server, TEXT, max_tokens=1000, stream=stream)
        engine.may.release(4)
        until(lambda: engine.ids == 4)
        leaving.close()
        until(lambda: engine.call.cancelled)
        engine.may.release(1)
        until(lambda: engine.ended == 1 and server.gateway.in_work == 0)
        assert engine.ids <= 5
        engine.may.release(100)
        assert server.post(body_of(TEXT))[0] == 200


def test_a_request_that_takes_too_long_is_given_up(model, clip):
    with served(model, HeldEngine, max_seconds=0.5) as server:
        engine = engine_of(server)
        release = threading.Timer(1.5, engine.may.release, [100])
        release.start()
        status, found, _ = server.post(body_of(TEXT))
        assert status == 504 and "longer than a request may take" in found["error"]["message"]
        until(lambda: server.gateway.in_work == 0)
        assert server.post(body_of(TEXT))[0] == 200


def test_an_error_in_the_middle_of_a_stream_is_told_in_it(model):
    class Failing(LocalEngine):
        def generate(self, ready: Any, sampling: Sampling, choice: int, emit: Emit, call: Cancellation) -> Finish:
            super().generate(ready, sampling, choice, emit, call)
            raise RuntimeError("in /secret/place")

    with served(model, Failing) as server:
        connection = sent(server, TEXT, stream=True)
        events = [line for line in connection.getresponse().read().decode().splitlines() if line]
        last = json.loads(events[-1].removeprefix("data: "))
        assert len(events) > 5 and last["error"]["type"] == "server_error"
        assert "secret" not in "".join(events) and "[DONE]" not in "".join(events)
        status, found, _ = server.post(body_of(TEXT))
        assert status == 500 and "secret" not in json.dumps(found)


def test_closing_finishes_what_runs_and_refuses_the_rest(model, clip):
    gaze = Held()
    with served(talkative(gaze), HeldEngine) as server, ThreadPoolExecutor() as pool:
        engine = engine_of(server)
        running = pool.submit(server.post, body_of(TEXT))
        until(lambda: engine.begun == 1)
        seen = pool.submit(server.post, body_of(asked(data_url(clip))))
        until(lambda: gaze.begun == 1)
        queued = pool.submit(server.post, body_of(asked(data_url(clip), fps=2)))
        until(lambda: len(server.gateway.gates["vision"]) == 1)
        uploading = server.connection()
        uploading.putrequest("POST", "/v1/chat/completions")
        uploading.putheader("Content-Type", "application/json")
        uploading.putheader("Content-Length", "100")
        uploading.endheaders(b"{")
        until(lambda: server.gateway.in_work == 4)

        server.gateway.draining = True  # as a signal does
        assert queued.result()[0] == 503 and uploading.getresponse().status == 503
        status, found, headers = server.post(body_of(TEXT))
        assert status == 503 and "closing" in found["error"]["message"] and headers["retry-after"]
        assert server.get("/health")[0] == 503
        gaze.may.release(10)
        engine.may.release(100)
        assert running.result()[0] == seen.result()[0] == 200
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()


@pytest.mark.slow
def test_the_command_ends_by_a_signal(clip):
    """In a process of its own: SIGTERM in the middle of an answer."""
    command = [sys.executable, "-m", "autogaze_mllm", "serve", "--port", "0", "--json", "--no-cache"]
    process = subprocess.Popen([*command, "--frames", "4"], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        client = OpenAI(base_url=told["url"], api_key="none", max_retries=0, timeout=PATIENCE)
        question = "What do the signs say, in order?"
        messages = asked(data_url(clip), question)
        whole = client.chat.completions.create(model=told["model"], messages=messages)
        stream = client.chat.completions.create(model=told["model"], messages=messages, stream=True)
        pieces = [next(iter(stream))]
        process.send_signal(signal.SIGTERM)
        pieces += stream
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        assert text == whole.choices[0].message.content and pieces[-1].choices[0].finish_reason
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
