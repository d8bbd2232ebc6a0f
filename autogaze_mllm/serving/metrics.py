"""Numbers for Prometheus, of one server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
STAGES = ("upload", "fetch", "wait_vision", "vision", "wait_llm", "first_token", "llm", "whole")


class Metrics:
    def __init__(self, in_work: Callable[[], int], waiting: Callable[[str], int]) -> None:
        """in_work: requests that are in the house. waiting: how many wait for a stage, "vision" or "llm"."""
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry, "namespace": "autogaze_mllm"}
        self.requests = Counter("requests", "Chat requests that came to an end, by status", ["status"], **made)
        self.seconds = Histogram("seconds", "Seconds of each stage of a request", ["stage"], buckets=SECONDS, **made)
        self.videos = Counter("videos", "Videos asked about, by whether they were seen before", ["seen"], **made)
        self.tokens = Counter("tokens", "Tokens read and written", ["kind"], **made)
        self.dense_tokens = Counter("dense_tokens", "Visual tokens that the dense model would have read", **made)
        Gauge("in_work", "Requests that are in work or wait", **made).set_function(in_work)
        lines = Gauge("waiting", "Requests that wait for a stage", ["stage"], **made)
        for stage in ("vision", "llm"):
            lines.labels(stage).set_function(partial(waiting, stage))
        for stage in STAGES:
            self.seconds.labels(stage)

    def page(self) -> bytes:
        return generate_latest(self._registry)
