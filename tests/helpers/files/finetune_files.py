"""What the fine-tuning tests share: a tiny base model, generated data, and launches of several real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import PRESETS, FinetuneConfig, PartConfig
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.writer import write_video

SETTINGS = {"frames": 4, "ratio": 0.5}
ALL = {part: PartConfig("full", 1e-3) for part in PRESETS["sft"]}


def wrapped(family: str = "llava_onevision", gaze: Any = "pixel-diff", **more: Any) -> am.GazedModel:
    base, processor = tiny_model(family, image_size=64)
    return am.wrap(base, gaze, processor=processor, cache=False, **{**SETTINGS, **more})


def save_base(folder: Path, family: str = "llava_onevision") -> Path:
    base, processor = tiny_model(family, image_size=64)
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def config(data: Path, output: Path, **changes: Any) -> FinetuneConfig:
    """Small, quick, on the CPU, every update logged."""
    chosen = {
        "parts": ALL,
        "cpu": True,
        "workers": 0,
        "log_steps": 1,
        "save_steps": 0,
        "progress": False,
        "max_steps": 4,
        "batch_size": 4,
        "cache": str(data.parent / "gazed"),
        **changes,
    }
    return FinetuneConfig(data=(str(data),), output=str(output), **chosen)


def box_clip(path: Path, colour: tuple[int, int, int], frames: int, width: int = 64, height: int = 64) -> None:
    """A coloured box that crosses a grey wall."""

    def pictures():
        for number in range(frames):
            frame = np.full((height, width, 3), 128, dtype=np.uint8)
            left = number * width // (2 * frames)
            frame[height // 5 : height * 4 // 5, left : left + width // 2] = colour
            yield frame

    write_video(path, pictures(), fps=8)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def mixed_data(folder: Path) -> Path:
    """Eight samples of very different length: one, two or no videos, an image, both conventions, several turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, colour in enumerate([(220, 30, 30), (30, 170, 40), (40, 60, 220)]):
        box_clip(folder / f"{number}.mp4", colour, frames=3 + 4 * number, width=64 + 32 * number)
    Image.fromarray(np.full((50, 80, 3), (235, 220, 40), dtype=np.uint8)).save(folder / "picture.png")
    chat = [
        {"role": "user", "content": "<video> first, then <video> second: which is longer?"},
        {"role": "assistant", "content": "the second"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    rows = [
        {"video": "0.mp4", "conversations": turns("<video>\nwhat is it?", "a red box")},
        {"conversations": turns("how much is two and two?", "four")},
        {"image": "picture.png", "conversations": turns("<image>\nwhat colour?", "yellow")},
        {"videos": ["1.mp4", "2.mp4"], "messages": chat},
        {"video": "2.mp4", "conversations": turns("what moves? " * 20 + "<video>", "a blue box, " * 10 + "slowly")},
        {"conversations": turns("say a", "a")},
        {"video": "1.mp4", "image": "picture.png", "conversations": turns("<image>then<video>and?", "green")},
        {"image": "picture.png", "conversations": turns("is it so? <image>", "it is")},
    ]
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def launch(arguments: list[str], processes: int = 2, seconds: int = 900) -> dict[str, Any]:
    """`torchrun ... autogaze-mllm finetune ARGUMENTS --json` in real processes -> what it printed."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return finished([*run, "-m", "autogaze_mllm.cli", "finetune", *arguments, "--cpu", "--json"], seconds)


def finished(command: list[str], seconds: int = 900) -> dict[str, Any]:
    """Runs a command that prints json in its last line; asserts that it ends well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("XDG_CACHE_HOME", None)  # where DeepSpeed keeps what it compiles, for a minute, the first time
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
