"""Many clients at once, not all of them kind: the good ones are answered as if they were alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.serving.load import GOOD, Load
from ..helpers.serving.servers import asked, data_url, served, talkative, video_part


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> str:
    """10,000 frames."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    scene = list(moving_scene(32, 32, 10))
    write_video(path, scene * 1000, fps=25)
    return data_url(path)


def requests(name: str, clips: list[Path], folder: Path) -> list[dict]:
    """What good clients ask: about bytes and files, in one turn and in three, with pictures of the same video left."""
    found = []
    for number, clip in enumerate(clips):
        url = data_url(clip) if number % 2 else f"file://{folder / clip.name}"
        found.append({"messages": asked(url)})
        found.append({"messages": asked(data_url(clip), "Why?", start=0.3)})
        turns = [*asked(url), {"role": "assistant", "content": "A sign."}, {"role": "user", "content": "Which?"}]
        found.append({"messages": turns, "stop": ["zz"]})
    found.append({"messages": [{"role": "user", "content": "Hello"}]})
    both = [video_part(data_url(clip)) for clip in clips[:2]]
    found.append({"messages": [{"role": "user", "content": [*both, {"type": "text", "text": "Which is longer?"}]}]})
    return [{"model": name, "max_tokens": 8, "user": f"u{number % 5}", **one} for number, one in enumerate(found)]


def test_a_small_crowd(clip, short_clip, long_video):
    with served(talkative(), allow_folder=[str(clip.parent)], keep_videos=2, max_body=2) as server:
        load = Load(
            server.url.removeprefix("http://"), requests("tiny", [clip, short_clip], clip.parent)[:4], long_video
        )
        load.ask_alone()
        load.run(36, clients=6)
        assert not load.wrong
        assert sum(load.found[kind, "as alone"] for kind in GOOD) == 18
        deadline = time.monotonic() + 60
        while server.gateway.in_work and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.gateway.in_work == len(server.gateway.gates["llm"]) == len(server.gateway.gates["vision"]) == 0
        assert threading.active_count() < 40
        assert load._whole(load.requests[0]) == (200, load.alone[0])


def memory(process: int) -> int:
    """MiB that a process holds."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) // 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads how much memory a process holds from /proc")
def test_two_hundred_requests_of_sixteen_clients(clip, short_clip, long_video, tmp_path):
    """The command itself, with the bundled model."""
    clips = []
    for number in range(4):
        clips.append(tmp_path / f"{number}.mp4")
        write_video(clips[-1], moving_scene(160, 96, 20, seed=number), fps=10)
    command = [sys.executable, "-m", "autogaze_mllm", "serve", "--port", "0", "--json", "--no-cache", "--frames", "4"]
    command += ["--allow-folder", str(tmp_path), "--max-body", "8", "--keep-videos", "4"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        address = told["url"].removeprefix("http://").removesuffix("/v1")
        load = Load(address, requests(told["model"], clips, tmp_path), long_video)
        load.ask_alone()
        load.run(100, clients=16, seed=1)  # what is kept for good is there by now
        before = memory(process.pid)
        load.found.clear()
        load.run(200, clients=16, seed=2)
        after = memory(process.pid)
        print(f"\n{before} MiB before, {after} after; {dict(load.found)}")
        assert not load.wrong
        assert sum(load.found[kind, "as alone"] for kind in GOOD) == 100 and load.found.total() == 200
        assert after < before + 64
        assert load._whole(load.requests[0]) == (200, load.alone[0]) and process.poll() is None
    finally:
        process.terminate()
        assert process.wait(60) == 0
