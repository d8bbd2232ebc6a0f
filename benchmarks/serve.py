"""A load generator for `autogaze-mllm serve`: requests a second and time to the first word, by the number of clients.

It starts the server (with --engine once more, in front of that vLLM), makes SignVid videos, and lets clients ask one
question after the other, streamed. Three kinds of requests: `new`, every one about a video that nobody asked about;
`seen`, the same ones again, so that only the LLM works; `dense`, the model without gaze, which keeps nothing of what it
saw, and sees frames shrunk to its tower's size. Each client sends its next request when the last one is answered.

    python benchmarks/serve.py --out benchmarks/results/serve_cpu.json
    python benchmarks/serve.py --engine http://127.0.0.1:8001 --out benchmarks/results/serve_cpu.json
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.signvid import SignVidConfig, VideoShape, write_signvid

QUESTION = "What do the signs say, in order?"
KINDS = ("new", "seen", "dense")
TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Timing:
    """Seconds from sending a request to its first word and to its end; words: pieces that came."""

    first: float
    whole: float
    pieces: int


def make_videos(folder: Path, count: int, side: int, frames: int) -> list[bytes]:
    recipe = SignVidConfig(VideoShape(side, side, frames, signs=3), "test", videos=count, questions=1, seed=1)
    return [path.read_bytes() for path in sorted((write_signvid(folder, recipe) / "videos").glob("*.mp4"))]


def request_of(model: str, video: bytes, end: float, dense: bool) -> bytes:
    """end: seconds, after the video's own; another one is another video to the server, of the same frames."""
    url = f"data:video/mp4;base64,{base64.b64encode(video).decode()}"
    content = [
        {"type": "video_url", "video_url": {"url": url, "end": end}},
        {"type": "text", "text": QUESTION},
    ]
    request: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True}
    return json.dumps({**request, "max_tokens": 32, **({"gaze": False} if dense else {})}).encode()


def ask(address: str, body: bytes) -> Timing:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT)
    begin = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"the server answered {answer.status}: {answer.read().decode()[:300]}")
    first, pieces = 0.0, 0
    for line in answer:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices")
            if choices is None:
                sys.exit(f"the server broke off: {line.decode()[:300]}")
            if choices and choices[0]["delta"].get("content"):
                first = first or time.perf_counter() - begin
                pieces += 1
    connection.close()
    whole = time.perf_counter() - begin
    return Timing(first or whole, whole, pieces)


def measure(address: str, bodies: list[bytes], clients: int) -> dict[str, Any]:
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda body: ask(address, body), bodies))
    spent = time.perf_counter() - begin
    firsts = sorted(one.first for one in found)
    return {
        "clients": clients,
        "requests": len(bodies),
        "requests_per_second": round(len(bodies) / spent, 3),
        "first_word_median": round(statistics.median(firsts), 3),
        "first_word_p90": round(firsts[int(0.9 * len(firsts))], 3),
        "whole_median": round(statistics.median(one.whole for one in found), 3),
        "pieces": sum(one.pieces for one in found),
    }


def run(arguments: argparse.Namespace, videos: list[bytes], engine: str | None) -> list[dict[str, Any]]:
    """All measurements of one server."""
    command = [sys.executable, "-m", "autogaze_mllm", "serve", *([arguments.model] if arguments.model else [])]
    command += ["--port", "0", "--json", "--no-cache", "--keep-videos", str(arguments.requests), "--max-queue", "256"]
    command += ["--gaze", arguments.gaze, *(["--engine", engine] if engine else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        started = json.loads(line)
        address, parts = started["url"].removeprefix("http://").removesuffix("/v1"), itertools.count(10_000)
        ask(address, request_of(started["model"], videos[0], 9_999, False))  # what is loaded at the first call
        rows = []
        for clients in arguments.clients:
            pairs = [
                (video, float(next(parts))) for _, video in zip(range(arguments.requests), itertools.cycle(videos))
            ]
            for kind in KINDS:
                if kind == "dense" and arguments.no_dense:
                    continue
                bodies = [request_of(started["model"], video, end, kind == "dense") for video, end in pairs]
                row = {"engine": started["engine"], "requests_are": kind, **measure(address, bodies, clients)}
                print(to_json(row), flush=True)
                rows.append(row)
        return rows
    finally:
        process.terminate()
        process.wait(60)


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--model", help="hub id or folder (default: the bundled model)")
    parser.add_argument("--gaze", default="pixel-diff", help="selector (default pixel-diff)")
    parser.add_argument("--engine", help="URL of a vLLM with the model's LLM, measured as well")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once (default 1 4 16)")
    parser.add_argument("--requests", type=int, default=32, help="of each measurement (default 32)")
    parser.add_argument("--videos", type=int, default=4, help="files to ask about (default 4)")
    parser.add_argument("--side", type=int, default=448, help="pixels of a video's side (default 448)")
    parser.add_argument("--frames", type=int, default=8, help="of a video (default 8)")
    parser.add_argument("--no-dense", action="store_true", help="leave the dense model out")
    parser.add_argument("--out", type=Path, help="json with all of it")
    return run_program(parser, measure_all)


def measure_all(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        videos = make_videos(Path(folder), arguments.videos, arguments.side, arguments.frames)
    rows = run(arguments, videos, None) + (run(arguments, videos, arguments.engine) if arguments.engine else [])
    if arguments.out:
        load = [round(value, 1) for value in os.getloadavg()]
        about = {
            "command": " ".join(["python", *sys.argv]),
            "machine": machine("cpu"),
            "load_average_at_the_end": load,
        }
        video = {"video": f"{arguments.videos} of {arguments.side}x{arguments.side}, {arguments.frames} frames"}
        arguments.out.write_text(to_json({**about, **video, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
