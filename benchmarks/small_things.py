"""Does a selector keep small print, and things that move, when it may keep little? Tables and a figure.

Into each real clip go a line of small print, which turns up at some time and stands for four frames, and a textured
ball that crosses the picture; so it is known where they are. Counted is what is kept of them as finely as the gaze
model can, in patches of the finest scale or the one before: of the print in any of its frames, for it does not move,
of the ball in each frame. Selectors see the clips clean and with noise, and keep a share of the patches.
Writes clips.csv, summary.csv and kept.png into OUT; 95 % intervals are bootstrapped over clips.

    python benchmarks/small_things.py videos/ --gaze bundled,OTHER --out results/
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import quiet, usable_device
from autogaze_mllm.common.drawing.labels import in_plot, told_apart
from autogaze_mllm.common.drawing.plots import legend, panels, save_png
from autogaze_mllm.common.storage.files import output_folder
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selection import read_selection
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.training.data.camera import CameraClip
from real_gaze import judged_videos, write_csv

RATIOS = (0.02, 0.05, 0.1)
CONDITIONS = ("clean", "noise-middle")
STANDS = 4  # frames
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"
PRINT = 0.055  # height of a letter, of the frame's
BALL = 0.1  # diameter, of the frame's height
COVERED = 0.3  # of a cell, at least, for the cell to count


class Things:
    """Where print and ball of a clip are: their boxes (left, top, right, bottom) as shares of the frame, or None."""

    def __init__(self, name: str, frames: int) -> None:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        self.text = "".join(rng.choice(list(LETTERS), 7))
        self.begin = int(rng.integers(1, frames - STANDS))
        self.corner = rng.uniform((0.05, 0.05), (0.6, 0.85))
        start, end = rng.uniform((0.05, 0.1), (0.15, 0.8)), rng.uniform((0.75, 0.1), (0.85, 0.8))
        self.way = start + np.linspace(0, 1, frames)[:, None] * (end - start)
        self.texture = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)

    def stands(self, frame: int) -> bool:
        return self.begin <= frame < self.begin + STANDS

    def draw(self, frame: np.ndarray, number: int) -> tuple[np.ndarray, dict[str, tuple[float, ...]]]:
        """(h, w, 3) -> the frame with what is there at the time, and its boxes."""
        picture = Image.fromarray(frame)
        width, height = picture.size
        diameter = round(BALL * height)
        left, top = (self.way[number] * (width, height)).round().astype(int).tolist()
        mask = Image.new("L", (diameter * 4, diameter * 4))
        ImageDraw.Draw(mask).ellipse((0, 0, diameter * 4 - 1, diameter * 4 - 1), fill=255)
        ball = Image.fromarray(self.texture).resize((diameter, diameter), Image.Resampling.NEAREST)
        picture.paste(ball, (left, top), mask.resize((diameter, diameter)))
        boxes = {"ball": (left, top, left + diameter, top + diameter)}
        if self.stands(number):
            font = ImageFont.load_default(size=PRINT * height * 1.35)
            x, y = (self.corner * (width, height)).tolist()
            box = ImageDraw.Draw(picture).textbbox((x, y), self.text, font=font)
            ImageDraw.Draw(picture).rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), fill=(238, 236, 228))
            ImageDraw.Draw(picture).text((x, y), self.text, font=font, fill=(20, 20, 30))
            boxes["print"] = box
        scale = (width, height, width, height)
        return np.asarray(picture), {
            name: tuple(v / s for v, s in zip(box, scale, strict=True)) for name, box in boxes.items()
        }


def cells(box: tuple[float, ...], side: int) -> np.ndarray:
    """(side, side) bool: cells of a grid that lie in the box far enough."""
    edges = np.arange(side + 1) / side

    def shares(low: float, high: float) -> np.ndarray:
        return (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(min=0) * side

    area = shares(box[1], box[3])[:, None] * shares(box[0], box[2])[None]
    # What is thinner than a cell must still count somewhere.
    return area >= min(COVERED, float(area.max()))


def kept_finely(info: Any, grid: PatchGrid) -> np.ndarray:
    """(T, n, n) bool on the finest scale's cells: kept there or one scale above."""
    selection = read_selection(info, grid, "the count")
    frames, side = len(selection.counts), round(grid.counts[-1] ** 0.5)
    kept = torch.zeros(frames * grid.size, dtype=torch.bool)
    kept[(selection.index + selection.frame * grid.size)[selection.keep].cpu()] = True
    scales = kept.view(frames, grid.size).split(list(grid.counts), dim=1)
    fine = scales[-1].view(frames, side, side)
    coarse = scales[-2].view(frames, *[round(grid.counts[-2] ** 0.5)] * 2).float()[:, None]
    spread = torch.nn.functional.interpolate(coarse, (side, side), mode="nearest")[:, 0] > 0
    return (fine | spread).numpy()


def measure(selector: Any, seen: torch.Tensor, where: list[dict[str, tuple[float, ...]]], ratio: float) -> dict:
    """seen: (1, T, 3, S, S) in [0, 1]. -> shares of print and ball that are kept finely, and seconds."""
    grid = getattr(selector, "grid", None) or load_selector("bundled").grid
    start = time.perf_counter()
    info = selector.select(seen, grid, ratio, None)
    seconds = time.perf_counter() - start
    kept = kept_finely(info, grid)
    side = kept.shape[-1]
    printed = [(number, cells(boxes["print"], side)) for number, boxes in enumerate(where) if "print" in boxes]
    seen_once = np.logical_or.reduce([kept[number] for number, _ in printed])
    balls = [(kept[number] & cells(boxes["ball"], side)).sum() for number, boxes in enumerate(where)]
    of = sum(cells(boxes["ball"], side).sum() for boxes in where)
    return {
        "print": float(seen_once[printed[0][1]].mean()),
        "ball": float(sum(balls) / of),
        "seconds": seconds,
    }


def run(arguments: argparse.Namespace) -> None:
    quiet()
    device = torch.device(usable_device(arguments.device))
    videos = judged_videos(arguments.videos, arguments.only)
    selectors = {
        label: load_selector(name, device=device) for name, label in told_apart(arguments.gaze.split(",")).items()
    }
    side = load_selector("bundled").grid.scales[-1][0]
    out, rows = output_folder(arguments.out), []
    for path in tqdm(videos, unit="video"):
        clip = CameraClip(path, arguments.frames, side)
        things, where = Things(path.name, len(clip.chosen)), []
        clip.frames = clip.frames.copy()
        for number, frame in enumerate(clip.chosen):
            clip.frames[frame], boxes = things.draw(clip.frames[frame], number)
            where.append(boxes)
        for condition in CONDITIONS:
            seen = clip.under(condition)[1][None].to(device).float() / 255
            for (label, selector), ratio in itertools.product(selectors.items(), RATIOS):
                found = measure(selector, seen, where, ratio)
                rows.append({"video": path.name, "condition": condition, "selector": label, "ratio": ratio, **found})
        write_csv(out / "clips.csv", rows)
    summary = summarise(rows)
    write_csv(out / "summary.csv", summary)
    plot(out / "kept.png", summary)
    for line in summary:
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in line.items()})


def summarise(rows: list[dict[str, Any]], rounds: int = 1000) -> list[dict[str, Any]]:
    lines = []
    for kind in dict.fromkeys((row["condition"], row["selector"], row["ratio"]) for row in rows):
        mine = [row for row in rows if (row["condition"], row["selector"], row["ratio"]) == kind]
        drawn = np.random.default_rng(0).integers(len(mine), size=(rounds, len(mine)))
        line: dict[str, Any] = dict(zip(("condition", "selector", "ratio"), kind, strict=True))
        for name in ("print", "ball"):
            values = np.array([row[name] for row in mine])
            low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
            line |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
        lines.append({**line, "seconds": float(np.mean([row["seconds"] for row in mine])), "videos": len(mine)})
    return lines


def plot(path: Path, summary: list[dict[str, Any]]) -> None:
    titles = {"print": "small print", "ball": "a ball that crosses the picture"}
    figure, axes = panels(4, columns=2, size=(5.2, 3.4))
    for axis, (name, condition) in zip(axes, itertools.product(titles, CONDITIONS), strict=True):
        for selector in dict.fromkeys(line["selector"] for line in summary):
            lines = [line for line in summary if (line["selector"], line["condition"]) == (selector, condition)]
            ratios, values = ([line[key] for line in lines] for key in ("ratio", name))
            spans = [[line[name] - line[f"{name}_low"], line[f"{name}_high"] - line[name]] for line in lines]
            axis.errorbar(ratios, values, np.array(spans).T.clip(min=0), marker="o", capsize=3, label=in_plot(selector))
        axis.set(title=f"{titles[name]}, {condition}", xlabel="share of the patches", ylabel="kept finely", ylim=(0, 1))
    legend(axes[0])
    save_png(figure, path)


def parser() -> argparse.ArgumentParser:
    found = program_parser(__doc__)
    found.add_argument("videos", help="folder, video or list; with commas")
    found.add_argument("--only", type=Path, help="a json whose entry `validation` names the files that count")
    found.add_argument("--gaze", default="bundled,pixel-diff,pixel-diff-raw,random", help="models and names")
    found.add_argument("--frames", type=int, default=16, help="frames of a clip, evenly spread over it (default 16)")
    found.add_argument("--device")
    found.add_argument("--out", type=Path, required=True)
    return found


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
