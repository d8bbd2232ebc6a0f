"""What is a gaze model worth on real video, clean and as cameras leave it? Tables and a figure.

Every selector sees the disturbed clip; the error of what it keeps is measured against the clean one. For each setting
(loss to stop at, or share of the patches) the patches that a selector keeps are set against those that others need for
the same mosaic error: greedy search on the clean picture (`oracle`, as a selector), frame by frame; pixel-diff, with
its noise floor and `raw` without, by its stop rule and (`_budget`) by a share of the patches, and random choice, on
average over the clip. Writes clips.csv, summary.csv, summary.json and patches.png into OUT; 95 % intervals are
bootstrapped over clips. What OUT holds already is not measured again, so a model can be added to a table.

    python benchmarks/real_gaze.py videos/ --gaze bundled,OTHER --out results/
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import quiet, usable_device
from autogaze_mllm.commands.arguments.revisions import at_revisions, revision_option
from autogaze_mllm.common.drawing.labels import in_plot, told_apart
from autogaze_mllm.common.drawing.plots import legend, panels, save_png
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import output_folder, read_json, write_json
from autogaze_mllm.common.storage.json_diff import check_same
from autogaze_mllm.gaze.selection import GazingInfo, read_selection
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.selectors.base import as_selector
from autogaze_mllm.gaze.selectors.baselines import RandomSelector
from autogaze_mllm.gaze.selectors.pixel_diff import PixelDiffSelector
from autogaze_mllm.training.data.camera import CODEC, CONDITIONS, NOISE, CameraClip
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction.selectors import default_task, own_unit
from autogaze_mllm.training.reconstruction.settings import Setting
from autogaze_mllm.training.search.greedy import search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask

SETTINGS = "task_0.20,task_0.40,ratio_0.05,ratio_0.10"
RIVALS = ("pixel_diff", "pixel_diff_raw", "pixel_diff_budget", "pixel_diff_raw_budget", "random_budget")
ORACLE = "oracle"  # greedy search that knows the clean picture, which no selector does
KEYS = ("video", "condition", "selector", "setting")
SHARES = (0.01, 0.02, 0.04, 0.07, 0.11, 0.17, 0.26, 0.4, 0.65, 1.0)  # of the patches
RULES = (0.36, 0.25, 0.18, 0.13, 0.09, 0.06, 0.04, 0.025, 0.012, 0.004)  # where black to white is 1


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("videos", help="folder, video or list; with commas")
    parser.add_argument("--only", type=Path, help="a json whose entry `validation` names the files that count")
    parser.add_argument("--gaze", default="bundled,pixel-diff,pixel-diff-raw", help="models, names, oracle")
    revision_option(parser)
    parser.add_argument("--settings", default=SETTINGS, help=f"default {SETTINGS}")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="default: all")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="whose patches are counted, beside greedy's")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip, evenly spread over it (default 16)")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, required=True)
    quiet()
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(usable_device(arguments.device))
    settings = [Setting.parse(name) for name in arguments.settings.split(",")]
    videos = judged_videos(arguments.videos, arguments.only)
    rivals = [name for name in arguments.rivals.split(",") if name]
    named = told_apart(arguments.gaze.split(","))
    sources = at_revisions(arguments.revision, *named)
    selectors = {label: load(source, device) for label, source in zip(named.values(), sources, strict=True)}
    task = next((default_task(s) for s in selectors.values() if hasattr(s, "processor")), default_task(load("random")))
    out = output_folder(arguments.out)
    check_models(out / "models.json", selectors)
    rows, curves = read_csv(out / "clips.csv"), read_json(out / "curves.json") if (out / "curves.json").exists() else {}
    known = {tuple(row[key] for key in KEYS) for row in rows}
    for path in tqdm(videos, unit="video"):
        clip = CameraClip(path, arguments.frames, task.grid.scales[-1][0])
        for condition in arguments.conditions.split(","):
            judge: Judge | None = None
            for name, setting in itertools.product(selectors, settings):
                where = {"video": path.name, "condition": condition, "selector": name, "setting": setting.name}
                if tuple(where.values()) in known:
                    continue
                if judge is None:
                    shown, seen = (part[None].to(device).float() / 255 for part in clip.under(condition))
                    judge = Judge(task, shown, seen, rivals, curves.setdefault(f"{path.name} {condition}", {}))
                rows.append({**where, **judge.row(selectors[name], setting)})
        write_csv(out / "clips.csv", rows)
        write_json(out / "curves.json", curves)
    summary = summarise(rows)
    write_csv(out / "summary.csv", summary)
    write_json(
        out / "summary.json",
        {"videos": [path.name for path in videos], "frames": arguments.frames, "device": str(device), "rows": summary},
    )
    plot(out / "patches.png", summary)
    for line in summary:
        if line["condition"] in ("clean", "noise"):
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in line.items() if "_low" not in key})


def judged_videos(videos: str, only: Path | None) -> list[Path]:
    """only: a json whose entry `validation` names the files that count."""
    found = find_videos(videos)
    if only is not None:
        named = set(read_json(only)["validation"])
        found = [path for path in found if path.name in named]
    if not found:
        raise InputError(f"{videos}: no videos there")
    return found


def check_models(path: Path, selectors: dict[str, Any]) -> None:
    """Rows are known by a model's label, so a label stands for the same model as long as the folder is used."""
    now = {label: None if found == ORACLE else as_selector(found).identity() for label, found in selectors.items()}
    before = read_json(path) if path.exists() else {}
    both = before.keys() & now.keys()
    check_same(path, {label: before[label] for label in both}, {label: now[label] for label in both})
    write_json(path, before | now)


def load(name: str, device: torch.device | None = None) -> Any:
    return ORACLE if name == ORACLE else load_selector(name, device=device)


class Judge:
    """One clip under one condition. shown, seen: (1, T, 3, S, S) in [0, 1]."""

    def __init__(
        self,
        task: MosaicTask,
        shown: torch.Tensor,
        seen: torch.Tensor,
        rivals: Sequence[str],
        curves: dict[str, list[list[float]]],
    ) -> None:
        """curves: of the rivals, those that were measured before."""
        self.rivals = rivals
        self.task, self.frames = task, seen
        self.video, self.wanted = task.normalize(seen), task.normalize(shown)
        painter = task.tables(seen.device).painter
        self.pictures = [painter.pictures(self.video[:, t]) for t in range(seen.shape[1])]
        self.size = seen.shape[1] * task.grid.size
        self._curves = curves

    def row(self, selector: Any, setting: Setting) -> dict[str, Any]:
        start = time.perf_counter()
        info = self._oracle(setting) if selector == ORACLE else self._select(selector, setting)
        seconds = time.perf_counter() - start
        kept, losses = self._measure(info)
        greedy = search_mosaic(
            self.task,
            self.video,
            losses[None] + 1e-6,
            torch.full((1, len(losses)), self.task.grid.size),
            reference=self.wanted,
        )
        limit = int(setting.ratio * self.task.grid.size)
        ended = (kept > 1) & (kept < limit) if setting.loss is not None else torch.zeros_like(kept, dtype=torch.bool)
        mean = float(losses.mean())
        return {
            "patches": int(kept.sum()),
            "loss": mean,
            "seconds": seconds,
            "ended": int(ended.sum()),
            "ended_loss": float(losses[ended].sum()),
            "greedy": int((greedy.ids >= 0).sum()),
            **{rival: self._needs(rival, mean) for rival in self.rivals},
        }

    def _select(self, selector: Any, setting: Setting) -> GazingInfo:
        rule = own_unit(selector, setting.loss, self.task)
        return selector.select(self.frames, self.task.grid, setting.ratio, rule)

    def _oracle(self, setting: Setting) -> dict[str, torch.Tensor]:
        shape = self.video.shape[:2]
        budget = torch.full(shape, max(int(setting.ratio * self.task.grid.size), 1))
        targets = torch.full(shape, setting.loss or 0.0)
        return search_mosaic(self.task, self.video, targets, budget, reference=self.wanted).info(self.task.grid)

    def _measure(self, info: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """-> patches and loss of each frame, (T,)"""
        grid, painter = self.task.grid, self.task.tables(self.video.device).painter
        selection = read_selection(info, grid, "the judge")
        index = (selection.index + selection.frame * grid.size)[selection.keep]
        mask = (
            self.video.new_zeros(self.video.shape[1] * grid.size)
            .index_fill(0, index, 1.0)
            .unflatten(0, (-1, grid.size))
        )
        canvas, losses = self.task.blank(self.video[:, 0]), []
        for t, pictures in enumerate(self.pictures):
            canvas = painter.paint(canvas, pictures, list(mask[t : t + 1].split(list(grid.counts), dim=1)))
            losses.append((canvas - self.wanted[:, t]).abs().mean())
        return mask.sum(dim=1).long().cpu(), torch.stack(losses).cpu()

    def _needs(self, rival: str, loss: float) -> float:
        """Patches at which the rival is as good; all of them where it never is."""
        if rival not in self._curves:
            self._curves[rival] = self._curve(rival)
        losses, patches = zip(*self._curves[rival], strict=True)
        return float(self.size) if loss < losses[0] else float(np.interp(loss, losses, patches))

    def _curve(self, rival: str) -> list[list[float]]:
        """The least loss for any number of patches: pairs (loss, patches), losses rising and patches falling."""
        selector = RandomSelector() if rival.startswith("random") else PixelDiffSelector("raw" not in rival)
        limits = [(share, None) for share in SHARES] if rival.endswith("_budget") else [(1.0, rule) for rule in RULES]
        best: list[list[float]] = []
        for patches, loss in sorted(self._point(selector, *limit) for limit in limits):
            if not best or loss < best[-1][0]:
                best.append([loss, float(patches)])
        return best[::-1]

    def _point(self, rival: Any, ratio: float, rule: float | None) -> tuple[int, float]:
        kept, losses = self._measure(rival.select(self.frames, self.task.grid, ratio, rule))
        return int(kept.sum()), float(losses.mean())


def summarise(rows: Sequence[dict[str, Any]], rounds: int = 1000) -> list[dict[str, Any]]:
    """A line for each selector, setting and condition, and for each kind of them (`noise`, `h264`, `disturbed`)."""
    groups = {name: [name] for name in dict.fromkeys(row["condition"] for row in rows)}
    groups |= {"noise": list(NOISE), "h264": list(CODEC), "disturbed": [name for name in CONDITIONS if name != "clean"]}
    lines = []
    for condition, members in groups.items():
        for selector, setting in dict.fromkeys((row["selector"], row["setting"]) for row in rows):
            mine = [
                r for r in rows if (r["selector"], r["setting"]) == (selector, setting) and r["condition"] in members
            ]
            if mine:
                lines.append(_line(condition, selector, setting, mine, rounds))
    return lines


def _line(condition: str, selector: str, setting: str, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    videos = list(dict.fromkeys(row["video"] for row in rows))
    drawn = np.random.default_rng(0).integers(len(videos), size=(rounds, len(videos)))

    def total(name: str) -> np.ndarray:
        """(videos,)"""
        return np.array([sum(row[name] for row in rows if row["video"] == video) for video in videos], dtype=float)

    def ratio(above: np.ndarray, below: np.ndarray, name: str) -> dict[str, float | None]:
        if not below.sum():
            return {name: None, f"{name}_low": None, f"{name}_high": None}
        samples = above[drawn].sum(axis=1) / np.maximum(below[drawn].sum(axis=1), 1e-9)
        low, high = np.quantile(samples, (0.025, 0.975))
        return {name: float(above.sum() / below.sum()), f"{name}_low": float(low), f"{name}_high": float(high)}

    line: dict[str, Any] = {"condition": condition, "selector": selector, "setting": setting, "videos": len(videos)}
    line |= {name: float(np.mean([row[name] for row in rows])) for name in ("patches", "loss", "seconds")}
    for other in [name for name in ("greedy", *RIVALS) if name in rows[0]]:
        line |= ratio(total("patches"), total(other), f"over_{other}")
    asked = Setting.parse(setting).loss
    if asked is not None:
        line |= ratio(total("ended_loss"), asked * total("ended"), "reached_over_asked")
    return line


def read_csv(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v if k in KEYS else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def plot(path: Path, summary: Sequence[dict[str, Any]]) -> None:
    """Bars for each condition: patches over those of the oracle and of pixel-diff."""
    settings = list(dict.fromkeys(line["setting"] for line in summary))
    conditions = [c for c in CONDITIONS if any(line["condition"] == c for line in summary)]
    selectors = [s for s in dict.fromkeys(line["selector"] for line in summary) if s not in (ORACLE, "random")]
    others = {"over_greedy": ORACLE, "over_pixel_diff": "pixel-diff"}
    others = {key: name for key, name in others.items() if key in summary[0]}
    figure, axes = panels(len(settings) * len(others), columns=len(others), size=(7, 2.8))
    for axis, (setting, (key, name)) in zip(axes, itertools.product(settings, others.items()), strict=True):
        for number, selector in enumerate(selectors):
            lines = [line for line in summary if (line["setting"], line["selector"]) == (setting, selector)]
            _bars(axis, lines, key, conditions, number, len(selectors), in_plot(selector))
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"{setting}: patches over {name} at equal error", fontsize=9)
        axis.set_xticks(range(len(conditions)), conditions, rotation=30, fontsize=8)
    legend(axes[0])
    save_png(figure, path)


def _bars(
    axis: Any, lines: list[dict[str, Any]], key: str, conditions: list[str], number: int, of: int, label: str
) -> None:
    by_name = {line["condition"]: line for line in lines}
    width = 0.8 / of
    xs = [i + (number - (of - 1) / 2) * width for i in range(len(conditions))]
    values = [by_name[c][key] for c in conditions]
    spans = [
        [v - by_name[c][f"{key}_low"], by_name[c][f"{key}_high"] - v] for v, c in zip(values, conditions, strict=True)
    ]
    axis.bar(xs, values, width, yerr=np.abs(np.array(spans).T), label=label, error_kw={"linewidth": 0.8})


if __name__ == "__main__":
    sys.exit(main())
