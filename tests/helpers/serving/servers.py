"""The endpoint in a thread of the test's own process, and clients of it."""

from __future__ import annotations

import base64
import http.client
import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

import autogaze_mllm as am
from autogaze_mllm.mllm.model import GazedModel
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.serving.app import make_app
from autogaze_mllm.serving.config import ServeConfig
from autogaze_mllm.serving.engines.base import Engine
from autogaze_mllm.serving.engines.local import LocalEngine
from autogaze_mllm.serving.gateway import Gateway
from autogaze_mllm.serving.server import run_server

PATIENCE = 60.0  # seconds: machines may be busy


def talkative(gaze: Any = "pixel-diff", family: str = "llava_onevision", **settings: Any) -> GazedModel:
    """A tiny model with weights that answer at length."""
    base, processor = tiny_model(family, image_size=64, seed=1)
    return am.wrap(base, gaze, processor=processor, **{"frames": 8, "cache": False, **settings})


@dataclass
class Served:
    """url: without /v1."""

    gateway: Gateway
    url: str
    thread: threading.Thread

    @property
    def client(self) -> OpenAI:
        key = self.gateway.config.api_key or "none"
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=PATIENCE)

    def post(self, body: bytes | dict[str, Any], **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Raw: status, json, headers."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connection()
        try:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json", **named})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.headers)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = self.connection()
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def served(
    model: GazedModel, engine: Callable[[GazedModel], Engine] = LocalEngine, name: str = "tiny", **config: Any
) -> Iterator[Served]:
    gateway = Gateway(model, engine(model), ServeConfig(port=0, **config), name)
    ready: queue.Queue[str] = queue.Queue()
    thread = threading.Thread(target=run_server, args=(make_app(gateway), gateway, ready.put), daemon=True)
    thread.start()
    try:
        yield Served(gateway, ready.get(timeout=PATIENCE), thread)
    finally:
        gateway.draining = True  # as a signal does
        thread.join(PATIENCE)
        assert not thread.is_alive()


def data_url(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def video_part(url: str, **part: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url, **part}}


def asked(url: str, question: str = "What is there?", **part: Any) -> list[dict[str, Any]]:
    """Messages with one question about one video."""
    return [{"role": "user", "content": [video_part(url, **part), {"type": "text", "text": question}]}]


def body_of(messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": messages, "max_tokens": 8, **fields}
