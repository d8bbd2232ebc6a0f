"""How well do the kept patches show a video? Measures selectors under several settings.

Writes OUT/clips.csv, frames.csv, summary.csv and summary.json, the plots trade_off.png and frames.png, a heat map and a
grid of pictures for each selector. With --match it also counts what greedy search, random choice and pixel-diff keep at
the same mosaic error (matched.csv).

    python scripts/evaluate_reconstruction.py videos/ --gaze MODEL,pixel-diff,random,greedy --out results/
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from autogaze_mllm.commands.options import quiet, usable_device
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.labels import in_plot, told_apart
from autogaze_mllm.common.plots import legend, panels, save_png
from autogaze_mllm.common.storage.files import output_folder, read_json, write_json
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.gaze.selection import read_selection
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.selectors.base import Selector
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction import (
    PUBLISHED,
    ClipScore,
    GreedySelector,
    Setting,
    calibration,
    default_task,
    heat_map,
    match,
    read_clips,
    score_clip,
)
from autogaze_mllm.training.tasks.base import ReconstructionTask
from autogaze_mllm.training.tasks.mosaic import MosaicTask
from autogaze_mllm.training.tasks.registry import load_task
from autogaze_mllm.training.validation import picture_rows

NUMBERS = ("ratio", "loss", "mae", "mse", "psnr", "ssim")


@dataclasses.dataclass(frozen=True)
class Measured:
    video: str
    clip: int
    pixels: torch.Tensor
    score: ClipScore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", help="folder, video or list; with commas")
    parser.add_argument("--gaze", default="pixel-diff,random,greedy", help="models and names; with commas")
    parser.add_argument("--task", default="mosaic", help="mosaic, or the folder or id of a VideoMAE")
    parser.add_argument("--settings", default=PUBLISHED, help="such as ratio_0.25,task_0.70,ratio_0.75_task_0.70")
    parser.add_argument("--frames", type=int, default=32, help="frames of a video, evenly spread (default 32)")
    parser.add_argument("--split", default="train", choices=["train", "val"], help="of folders with train/ and val/")
    parser.add_argument("--match", action="store_true", help="count what others keep at the same error")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    quiet()
    try:
        run(arguments)
    except InputError as error:
        print(f"evaluate_reconstruction: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(usable_device(arguments.device))
    settings = [Setting.parse(name) for name in arguments.settings.split(",")]
    videos = find_videos(arguments.videos, arguments.split)
    if not videos:
        raise InputError(f"{arguments.videos}: no videos there")
    out = output_folder(arguments.out)
    measured: list[Measured] = []
    matched: list[dict[str, Any]] = []
    tasks: dict[str, ReconstructionTask] = {}
    asked = list(dict.fromkeys(arguments.gaze.split(",")))
    short = told_apart(asked)
    for name in asked:
        selector: Selector = GreedySelector() if name == "greedy" else load_selector(name, device=device)
        task: ReconstructionTask = default_task(selector)
        if arguments.task != "mosaic":
            task = load_task(arguments.task, task.grid, device=device)
        label = short[name]
        tasks[label] = task
        for path in tqdm(videos, desc=name, unit="video"):
            for number, pixels in enumerate(read_clips(path, task.grid, arguments.frames)):
                for setting in settings:
                    score = dataclasses.replace(score_clip(pixels, selector, setting, task, device), selector=label)
                    measured.append(Measured(path.name, number, pixels, score))
                    if arguments.match and isinstance(task, MosaicTask) and name != "all":
                        row = dataclasses.asdict(match(pixels, score, task, device))
                        matched.append({"video": path.name, "clip": number, **_names(score), **row})
    write_tables(out, measured, matched)
    plot_trade_off(out / "trade_off.png", measured)
    plot_frames(out / "frames.png", measured)
    for name, task in tasks.items():
        mine = [entry for entry in measured if entry.score.selector == name]
        file = name.replace("/", "-")
        save_heat_map(out / f"heat_map_{file}.png", mine, task)
        save_pictures(out / f"pictures_{file}.png", mine, task)
    print(to_json(read_json(out / "summary.json"), indent=1))


def _names(score: ClipScore) -> dict[str, str]:
    return {"selector": score.selector, "setting": score.setting.name}


def write_tables(out: Path, measured: Sequence[Measured], matched: Sequence[dict[str, Any]]) -> None:
    clips, frames = [], []
    for entry in measured:
        score = entry.score
        where = {"video": entry.video, "clip": entry.clip, **_names(score)}
        numbers = {name: score.mean(name) for name in NUMBERS}
        seconds = {"gaze_seconds": score.gaze_seconds, "reconstruction_seconds": score.reconstruction_seconds}
        clips.append({**where, "frames": len(score.frames), "patches": score.patches, **numbers, **seconds})
        frames += [{**where, **dataclasses.asdict(frame)} for frame in score.frames]
    summary = []
    for names in dict.fromkeys((row["selector"], row["setting"]) for row in clips):
        rows = [row for row in clips if (row["selector"], row["setting"]) == names]
        scores = [entry.score for entry in measured if tuple(_names(entry.score).values()) == names]
        line: dict[str, Any] = {"selector": names[0], "setting": names[1], "clips": len(rows)}
        line |= {key: float(np.mean([row[key] for row in rows])) for key in (*NUMBERS, "patches", *seconds)}
        line["measured_over_asked"] = calibration(scores)
        others = [row for row in matched if (row["selector"], row["setting"]) == names]
        for other in ("greedy", "random", "pixel_diff"):
            own = sum(row["patches"] for row in others)
            line[f"patches_over_{other}"] = own / sum(row[other] for row in others) if others else None
        summary.append(line)
    for name, table in (("clips", clips), ("frames", frames), ("summary", summary), ("matched", matched)):
        if table:
            with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
    write_json(out / "summary.json", {"summary": summary})


def plot_trade_off(path: Path, measured: Sequence[Measured]) -> None:
    """Loss and PSNR against the kept ratio, a line for each selector; settings with a stop rule are marks."""
    figure, axes = panels(2)
    for name in dict.fromkeys(entry.score.selector for entry in measured):
        points: dict[Setting, list[ClipScore]] = {}
        for entry in measured:
            if entry.score.selector == name:
                points.setdefault(entry.score.setting, []).append(entry.score)
        for axis, number in zip(axes, ("loss", "psnr"), strict=True):
            means = [
                (np.mean([s.mean("ratio") for s in scores]), np.mean([s.mean(number) for s in scores]))
                for scores in points.values()
            ]
            line = axis.plot(*zip(*sorted(means), strict=True), marker="o", label=in_plot(name))[0]
            for (x, y), setting in zip(means, points, strict=True):
                if setting.loss is not None:
                    axis.plot([x], [y], marker="*", markersize=13, color=line.get_color())
    for axis, number in zip(axes, ("loss of the task", "PSNR (dB)"), strict=True):
        axis.set(xlabel="share of patches kept", ylabel=number, xscale="log")
    axes[0].set_yscale("log")
    legend(axes[0])
    save_png(figure, path)


def plot_frames(path: Path, measured: Sequence[Measured]) -> None:
    """Kept ratio and loss over the frames of a clip, mean over clips, for the last setting that was measured."""
    figure, axes = panels(2)
    setting = measured[-1].score.setting
    for name in dict.fromkeys(entry.score.selector for entry in measured):
        scores = [m.score for m in measured if m.score.selector == name and m.score.setting == setting]
        length = max(len(score.frames) for score in scores)
        for axis, number in zip(axes, ("ratio", "loss"), strict=True):
            values = [
                np.mean([getattr(score.frames[t], number) for score in scores if len(score.frames) > t])
                for t in range(length)
            ]
            axis.plot(range(length), values, marker=".", label=in_plot(name))
    for axis, number in zip(axes, ("share of patches kept", "loss of the task"), strict=True):
        axis.set(xlabel=f"frame of the clip ({setting.name})", ylabel=number)
    legend(axes[0])
    save_png(figure, path)


def save_heat_map(path: Path, measured: Sequence[Measured], task: ReconstructionTask) -> None:
    figure, (axis,) = panels(size=(4.5, 4.0))
    axis.grid(False)
    image = axis.imshow(heat_map([entry.score for entry in measured], task.grid), cmap="inferno", vmin=0)
    figure.colorbar(image, label="patches over a place, per frame")
    axis.set(xticks=[], yticks=[])
    save_png(figure, path)


def save_pictures(path: Path, measured: Sequence[Measured], task: ReconstructionTask, shown: int = 6) -> None:
    """Original, kept patches and reconstruction of a few clips, spread over what was measured."""
    rows = []
    for place in np.unique(np.linspace(0, len(measured) - 1, shown).round().astype(int)):
        entry = measured[place]
        selection = read_selection(entry.score.info, task.grid, "pictures")
        rows.append(picture_rows(entry.pixels.float() / 255, selection, entry.score.rebuilt, task.grid))
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    sys.exit(main())
