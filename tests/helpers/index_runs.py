"""What the tests of `index` share: folders of videos, how it is run, and selectors that are hard on workers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

DAMAGED = ["cut.mp4", "deep/notes.mp4"]


def tiny_base(folder: Path) -> Path:
    base, processor = tiny_model("llava", image_size=64)
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_videos(folder: Path, count: int, seed: int = 0) -> Path:
    for number in range(count):
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{number}.mp4", moving_scene(96, 64, 6, seed=seed + number), fps=6)
    return folder


def make_mixed(folder: Path) -> Path:
    """Five videos, some of them alike, in folders; two damaged ones; and what is no video, or hidden."""
    make_videos(folder, 2)
    inner = make_videos(folder / "deep" / "er", 1, seed=2) / "0.mp4"
    inner.replace(inner.with_name("näme 'x'.MP4"))
    (folder / "deep" / "same.mp4").write_bytes((folder / "1.mp4").read_bytes())
    (folder / "deep" / os.fsdecode(b"\xff.mp4")).write_bytes((folder / "0.mp4").read_bytes())  # no text
    (folder / "cut.mp4").write_bytes((folder / "1.mp4").read_bytes()[:900])
    (folder / "deep" / "notes.mp4").write_text("not a video")
    (folder / "deep" / "readme.txt").write_text("nothing")
    (folder / "._0.mp4").write_text("what some systems leave beside a file")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "0.mp4").write_bytes((folder / "1.mp4").read_bytes())
    return folder


def index(capsys, folder: Path, out: Path, *more: str | Path, code: int = 0) -> dict[str, Any]:
    """What the command prints."""
    assert main(["index", str(folder), "--out", str(out), *map(str, more), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The lines of index.jsonl by path, in their order."""
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    found = {line["path"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def stored(out: Path) -> dict[str, bytes]:
    """Every file of results, and the lines without their seconds."""
    found = {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}
    return found | {name: json.dumps(line | {"seconds": {}}).encode() for name, line in records(out).items()}


def half_files(out: Path) -> list[str]:
    """What is in the folder besides whole results and what processes meet at."""
    known = {".attempts", ".merge.lock", "config.yaml", "index.json", "index.jsonl"}
    names = {path.name for path in out.iterdir()} - known - {path.name for path in out.glob(".run-*.lock")}
    return sorted(name for name in names if name.startswith(".") or not name.endswith(".safetensors"))


class Slow(am.PixelDiffSelector):
    """Takes a while for every clip."""

    def identity(self) -> dict[str, Any]:
        return {"name": "slow"}

    def select(self, frames: torch.Tensor, grid: am.PatchGrid, ratio: Any, loss: float | None) -> Any:
        time.sleep(0.3)
        return super().select(frames, grid, ratio, loss)


class Deadly(am.PixelDiffSelector):
    """Kills its process at a black video, as a system does that has no more memory, so many times at each shade of
    black. counted: a folder to count them in."""

    def __init__(self, counted: Path, times: int) -> None:
        super().__init__()
        self.counted, self.times = counted, times

    def identity(self) -> dict[str, Any]:
        return {"name": "deadly"}

    def select(self, frames: torch.Tensor, grid: am.PatchGrid, ratio: Any, loss: float | None) -> Any:
        shade = round(float(frames.mean()) * 255)
        if shade < 20:
            deaths = len(list(self.counted.glob(f"{shade}-*")))
            if deaths < self.times:
                (self.counted / f"{shade}-{deaths}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().select(frames, grid, ratio, loss)
