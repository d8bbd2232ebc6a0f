"""The central curve of the AutoGaze paper: the ratio that a loss needs, against frame rate and resolution.

A video is seen at FPS frames a second, SIDE pixels along its longer edge, for --seconds, as the pipeline sees it: in
whole tiles of 224 pixels (8 x 4 of 1920 x 1080 pixels for a SIDE of 1792), in clips of up to 16 frames. For each
selector the strength of its stop rule (of `random`: the ratio) is searched at which the mean loss of all frames and
tiles is the one asked for; the ratio is what it keeps there, interpolated between the two nearest trials. Each frame
keeps at least one patch, so a ratio has a floor (1 / 265). Of large frames --tiles tiles are measured, drawn at random.
A file is shown up to its own resolution and frame rate, unless --enlarge is given; generated scenes are square and
drawn at every resolution. Losses are those of the mosaic (0.2 is about a fortieth of the way from black to white), so
they are no losses of the published VideoMAE, whose ratios the plot shows beside them.

Writes OUT (json) after each measurement, and goes on with what it holds; beside it a table (.csv) and a plot (.png).

    python benchmarks/required_ratio.py videos/ --generated 2 --out benchmarks/results/required_ratio_cpu.json
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import shlex
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import quiet, usable_device
from autogaze_mllm.commands.arguments.revisions import read_revisions, revision_option
from autogaze_mllm.common.drawing.labels import in_plot, told_apart
from autogaze_mllm.common.drawing.palette import line_colours
from autogaze_mllm.common.drawing.plots import panels, plain_log, save_png
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import resize_frames
from autogaze_mllm.common.storage.files import output_folder, read_json, write_json
from autogaze_mllm.common.storage.hashing import content_hash
from autogaze_mllm.common.storage.json_diff import check_same
from autogaze_mllm.gaze.pictures.mosaic import rebuild
from autogaze_mllm.gaze.selectors.base import AnySelector
from autogaze_mllm.gaze.selectors.baselines import RandomSelector
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction.models import Contender, load_models
from autogaze_mllm.training.reconstruction.selectors import own_unit
from autogaze_mllm.training.reconstruction.tables import write_csv
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.synthetic import moving_scene
from operating_points import CLIP, PAPER, TILE

SCENE_FPS = 30  # frames a second of a generated scene
NEAR = 0.02  # a loss this near to the one asked for, in parts of it, is met
TRIALS = 5  # strengths that are tried at most
AT_ONCE = 8  # clips that are gazed together
KEYS = ("video", "fps", "side", "selector", "loss")
Row = dict[str, Any]


@dataclass(frozen=True)
class Footage:
    """A file, or the generated scene of a seed."""

    name: str
    path: Path | None
    seed: int = 0

    @property
    def kind(self) -> str:
        return "generated" if self.path is None else "real"

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of a file's frames."""
        assert self.path is not None
        height, width = next(VideoReader(self.path).read([0])).frames.shape[1:3]
        return height, width

    def tiling(self, side: int) -> tuple[int, int]:
        """Rows and columns of the whole tiles in a frame whose longer edge has `side` pixels; at least one of each."""
        along = side // TILE
        if self.path is None:
            return along, along
        rows, columns = (max(along * edge // max(self.size), 1) for edge in self.size)
        return rows, columns

    def has_pixels_for(self, side: int) -> bool:
        """Whether it need not be enlarged."""
        return self.path is None or all(TILE * n <= edge for n, edge in zip(self.tiling(side), self.size, strict=True))

    def frames(self, fps: int, side: int, seconds: float) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8, all tiles of a frame; `fps` of them a second, or as many as a file has."""
        height, width = (TILE * number for number in self.tiling(side))
        if self.path is None:
            scene = moving_scene(width, height, max(round(SCENE_FPS * seconds), 1), seed=self.seed)
            yield from itertools.islice(scene, 0, None, SCENE_FPS // fps)
            return
        reader = VideoReader(self.path)
        start = float(reader.seconds[0])
        for chunk in reader.read(reader.sample(1, fps, start, start + seconds), chunk=1):
            yield resize_frames(chunk.frames, height, width, torch.device("cpu"))[0].permute(1, 2, 0).numpy()


def cut(footage: Footage, fps: int, side: int, seconds: float, most: int) -> torch.Tensor:
    """(tiles, T, 3, TILE, TILE) uint8: all tiles of the frames, or `most` of them, drawn at random."""
    rows, columns = footage.tiling(side)
    rng = np.random.default_rng([zlib.crc32(footage.name.encode()), side])
    chosen = rng.permutation(rows * columns)[:most]
    places = [(int(number) // columns * TILE, int(number) % columns * TILE) for number in sorted(chosen)]
    frames = [
        np.stack([frame[top : top + TILE, left : left + TILE] for top, left in places])
        for frame in footage.frames(fps, side, seconds)
    ]
    return torch.from_numpy(np.stack(frames, axis=1)).permute(0, 1, 4, 2, 3).contiguous()


@dataclass(frozen=True)
class Trial:
    """strength: of the rule; ratio: kept; loss: mean over frames."""

    strength: float
    ratio: float
    loss: float


@torch.no_grad()
def trial(tiles: torch.Tensor, one: Contender, strength: float, device: torch.device) -> Trial:
    """strength: the loss to stop at, in the task's unit; of random choice, what is left out: 1 / ratio."""
    task, kept, losses = one.task, 0, []
    assert isinstance(task, MosaicTask)
    clips = [rows for part in tiles.split(CLIP, dim=1) for rows in part.split(AT_ONCE)]
    for clip in clips:
        frames = clip.to(device).float() / 255
        ratio, rule = rule_of(one.selector, strength, task)
        info = one.selector.select(frames, task.grid, ratio, rule)
        assert info.gazing_mask is not None
        masks = [mask.to(device).float() for mask in info.gazing_mask]
        kept += int(sum(mask.sum() for mask in masks))
        off = task.normalize(rebuild(frames, masks, task.grid)) - task.normalize(frames)
        losses += off.abs().mean(dim=(2, 3, 4)).flatten().tolist()
    return Trial(strength, kept / (len(losses) * one.task.grid.size), float(np.mean(losses)))


def rule_of(selector: AnySelector, strength: float, task: MosaicTask) -> tuple[float, float | None]:
    """-> ratio, stop rule"""
    if isinstance(selector, RandomSelector):
        return min(1 / strength, 1.0), None
    return 1.0, own_unit(selector, strength, task)


def search(measure: Callable[[float], Trial], wanted: float, first: float) -> tuple[Trial, list[Trial]]:
    """The trial at which the loss is the one wanted, interpolated, and all trials. Where the weakest rule that was
    tried is already better than wanted, or the strictest still worse, it is that one."""
    trials = [measure(first)]
    while len(trials) < TRIALS and abs(trials[-1].loss / wanted - 1) > NEAR:
        below = [one for one in trials if one.loss <= wanted]
        above = [one for one in trials if one.loss > wanted]
        if not below or not above:  # further the same way, as far as the loss is off, at least by half
            off = np.clip(wanted / max(trials[-1].loss, 1e-9), 0.2, 5.0)
            factor = max(off, 1.6) if not above else min(off, 0.6)
            strength = trials[-1].strength * float(factor)
        else:
            strength = between(max(below, key=_loss), min(above, key=_loss), wanted).strength
        if any(math.isclose(strength, one.strength, rel_tol=1e-3) for one in trials):
            break
        trials.append(measure(strength))
    below = [one for one in trials if one.loss <= wanted]
    above = [one for one in trials if one.loss > wanted]
    if not below or not above:
        return (max(below, key=_loss) if below else min(above, key=_loss)), trials
    return between(max(below, key=_loss), min(above, key=_loss), wanted), trials


def _loss(one: Trial) -> float:
    return one.loss


def between(one: Trial, other: Trial, wanted: float) -> Trial:
    """On the straight line through two trials, in logarithms."""
    low, high = (math.log(max(found.loss, 1e-9)) for found in (one, other))
    part = 0.0 if high == low else (math.log(wanted) - low) / (high - low)

    def mean(first: float, second: float) -> float:
        return math.exp((1 - part) * math.log(first) + part * math.log(second))

    return Trial(mean(one.strength, other.strength), mean(one.ratio, other.ratio), wanted)


def measure_point(
    footage: Footage, fps: int, side: int, tiles: torch.Tensor, one: Contender, loss: float, device: torch.device
) -> Row:
    start = time.perf_counter()
    random = isinstance(one.selector, RandomSelector)
    found, trials = search(lambda strength: trial(tiles, one, strength, device), loss, 4.0 if random else loss)
    return {
        "video": footage.name,
        "kind": footage.kind,
        "fps": fps,
        "side": side,
        "selector": one.label,
        "loss": loss,
        "ratio": found.ratio,
        "reached": found.loss,
        "as_asked": None if random else {"ratio": trials[0].ratio, "loss": trials[0].loss},
        "frames": tiles.shape[1],
        "tiles": tiles.shape[0],
        "tiles_of": math.prod(footage.tiling(side)),
        "trials": len(trials),
        "seconds": time.perf_counter() - start,
    }


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Mean over videos, of all and of each kind, and the span, for each selector, loss and point."""
    lines = []
    for selector, loss, fps, side in dict.fromkeys((r["selector"], r["loss"], r["fps"], r["side"]) for r in rows):
        mine = [r for r in rows if (r["selector"], r["loss"], r["fps"], r["side"]) == (selector, loss, fps, side)]
        ratios = [r["ratio"] for r in mine]
        line: Row = {"selector": selector, "loss": loss, "fps": fps, "side": side, "videos": len(mine)}
        line |= {"ratio": float(np.mean(ratios)), "lowest": min(ratios), "highest": max(ratios)}
        for kind in ("real", "generated"):
            own = [r["ratio"] for r in mine if r["kind"] == kind]
            line[kind] = float(np.mean(own)) if own else None
        asked = [r["as_asked"] for r in mine if r["as_asked"]]
        for key in ("ratio", "loss"):
            line[f"as_asked_{key}"] = float(np.mean([found[key] for found in asked])) if asked else None
        lines.append(line)
    return lines


def plot(path: Path, needed: Sequence[Row], losses: Sequence[float]) -> None:
    """A row for each loss: ratio against frame rate at the smallest side, and against the side at the highest frame
    rate; a colour for each selector, filled for real videos and hollow for generated ones."""
    figure, axes = panels(2 * len(losses), columns=2, size=(5.4, 3.9))
    side, fps = min(line["side"] for line in needed), max(line["fps"] for line in needed)
    for axis, (loss, key) in zip(axes, itertools.product(losses, ("fps", "side")), strict=True):
        fixed = {"side": side} if key == "fps" else {"fps": fps}
        lines = [line for line in needed if line["loss"] == loss and all(line[k] == v for k, v in fixed.items())]
        paper = [point for point in PAPER if point[key == "fps"] == (side if key == "fps" else fps)]
        _curves(axis, lines, key)
        places = {line[key] for line in lines}
        if paper:
            xs = [point[0 if key == "fps" else 1] for point in paper]
            axis.plot(xs, [point[2] for point in paper], "s:", color="#555", markersize=4, label="paper: VideoMAE, 0.7")
            places |= set(xs)
        axis.set(xscale="log", yscale="log", ylabel="patches needed (%)", title=f"mosaic loss {loss:g}")
        plain_log(axis.yaxis, per_cent=True)
        axis.minorticks_off()
        axis.set_xticks(sorted(places), [str(place) for place in sorted(places)])
        axis.set_xlabel(f"frames per second, {side} pixels" if key == "fps" else f"pixels, {fps} frames per second")
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=3, fontsize=11, frameon=False)
    save_png(figure, path, 150)


def _curves(axis: Axes, lines: Sequence[Row], key: str) -> None:
    names = list(dict.fromkeys(line["selector"] for line in lines))
    for name, colour in zip(names, line_colours() * len(names), strict=False):
        for kind, style, inside in (("real", "o-", colour), ("generated", "o--", "white")):
            points = [(line[key], line[kind]) for line in lines if line["selector"] == name and line[kind]]
            if points:
                xs, ys = zip(*sorted(points), strict=True)
                label = in_plot(f"{name}, {kind}")
                axis.plot(xs, ys, style, color=colour, markerfacecolor=inside, label=label)


def parser() -> argparse.ArgumentParser:
    options = program_parser(__doc__)
    options.add_argument("videos", nargs="?", help="folder, video or list; with commas (default: none)")
    options.add_argument("--generated", type=int, default=1, metavar="N", help="generated scenes (default 1)")
    options.add_argument("--gaze", default="bundled,pixel-diff,greedy", help="models and names; with commas")
    revision_option(options)
    options.add_argument("--loss", default="0.2", help="losses that are asked for; with commas (default 0.2)")
    default = ",".join(f"{fps}x{side}" for fps, side, _ in PAPER)
    options.add_argument("--points", default=default, help=f"FPSxSIDE; with commas (default {default})")
    options.add_argument("--seconds", type=float, default=2.0, help="of each video (default 2)")
    options.add_argument("--tiles", type=int, default=4, help="tiles of a frame that are measured at most (default 4)")
    options.add_argument("--enlarge", action="store_true", help="also beyond the resolution of a file")
    options.add_argument("--device")
    options.add_argument("--out", type=Path, required=True, help="json file; table and plot are written beside it")
    return options


def read_points(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        fps, _, side = part.partition("x")
        if not (fps.isdigit() and side.isdigit() and int(fps) > 0 and int(side) > 0):
            raise InputError(f"--points {part!r}: expected FPSxSIDE, such as 30x448")
        if int(side) % TILE or SCENE_FPS % int(fps):
            raise InputError(f"--points {part!r}: sides are multiples of {TILE}, frame rates divide {SCENE_FPS}")
        found.append((int(fps), int(side)))
    return found


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(usable_device(arguments.device))
    points = read_points(arguments.points)
    try:
        losses = [float(part) for part in arguments.loss.split(",")]
    except ValueError as error:
        raise InputError(f"--loss {arguments.loss!r}: expected numbers, such as 0.2,0.4") from error
    if min(losses) <= 0 or arguments.tiles < 1 or not arguments.seconds > 0:
        raise InputError("--loss, --tiles and --seconds must be above 0")
    files = told_apart(str(path) for path in find_videos(arguments.videos)) if arguments.videos else {}
    footage = [Footage(label, Path(name)) for name, label in files.items()]
    footage += [Footage(f"generated {seed}", None, seed) for seed in range(arguments.generated)]
    if not footage:
        raise InputError("nothing to measure: name videos, or --generated scenes")
    pinned = read_revisions(arguments.revision)
    models = load_models(arguments.gaze.split(","), "mosaic", device, revisions=pinned)
    output_folder(arguments.out.parent)
    decides: Row = {
        "seconds": arguments.seconds,
        "side": "longer edge",
        "tiles": arguments.tiles,
        "models": models.identities(),
        "videos": {one.name: content_hash(one.path) for one in footage if one.path is not None},
    }
    rows: list[Row] = []
    if arguments.out.exists():
        stored = read_json(arguments.out)
        decides = continued(arguments.out, stored["settings"], decides)
        rows = stored["rows"]
    result: Row = {"command": shlex.join(["python", *sys.argv]), "machine": machine(device), "settings": decides}
    known = {tuple(row[key] for key in KEYS) for row in rows}
    todo = list(itertools.product(footage, points))
    for one, (fps, side) in tqdm(todo, unit="point"):
        wanted = [
            (contender, loss)
            for contender, loss in itertools.product(models.contenders, losses)
            if (one.name, fps, side, contender.label, loss) not in known
        ]
        if not wanted or not (arguments.enlarge or one.has_pixels_for(side)):
            continue
        tiles = cut(one, fps, side, arguments.seconds, arguments.tiles)
        for contender, loss in wanted:
            rows.append(measure_point(one, fps, side, tiles, contender, loss, device))
            write_json(arguments.out, {**result, "rows": rows, "needed": summarise(rows)})
    report(arguments.out, rows, losses)


def continued(path: Path, before: Row, now: Row) -> Row:
    """Settings of both runs. Selectors and videos may be added, but a name stands for the same one in both."""
    named = {part: before[part].keys() & now[part].keys() for part in ("models", "videos")}
    old, new = (
        {**run, **{part: {name: run[part][name] for name in both} for part, both in named.items()}}
        for run in (before, now)
    )
    check_same(path, old, new)
    return {**now, **{part: {**before[part], **now[part]} for part in named}}


def report(out: Path, rows: Sequence[Row], losses: Sequence[float]) -> None:
    needed = summarise(rows)
    if not needed:
        raise InputError("no video has the resolution of a point: --enlarge shows files larger than they are")
    write_csv(out.with_suffix(".csv"), needed)
    print("selector        loss  fps x side  needed   real  generated   with the rule set to the loss")
    for line in needed:
        shares = ["    -" if line[key] is None else f"{100 * line[key]:5.2f}" for key in ("ratio", "real", "generated")]
        asked = line["as_asked_ratio"]
        told = "" if asked is None else f"{100 * asked:5.2f} % at loss {line['as_asked_loss']:.3f}"
        point = f"{line['loss']:g}  {line['fps']:>3} x {line['side']:<5}"
        print(f"{line['selector']:<15} {point} {'  '.join(shares)}   {told}")
    plot(out.with_suffix(".png"), needed, losses)


def main() -> int:
    quiet()
    return run_program(parser(), run)


if __name__ == "__main__":
    sys.exit(main())
