"""Rows of measurements as tables: per frame, per clip and setting, per setting, in the columns of the public evaluation
of the published weights, with ours beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.storage.files import atomic_write, write_text
from .clips import Clip
from .scores import mean_psnr
from .settings import Setting

Row = dict[str, Any]
MEANS = ("actual_gaze_ratio", "non_padded_gazes", "reconstruction_loss", "pixel_mae", "pixel_mse", "psnr", "ssim")
SECONDS = ("gaze_seconds", "reconstruction_seconds")
OTHERS = ("greedy", "random", "pixel_diff")


def frame_table(rows: Sequence[Row], clips: Sequence[Clip]) -> list[Row]:
    """A line for each frame. frame_idx counts within the clip, video_frame in the file."""
    table = []
    for row in rows:
        for number, frame in zip(row["numbers"], row["frames"], strict=True):
            line = _names(row, clips) | {
                "frame_idx": frame["frame"],
                "reconstruction_loss": frame["loss"],
                "non_padded_gazes": frame["patches"],
                "pixel_mae": frame["mae"],
                "pixel_mse": frame["mse"],
                "psnr": frame["psnr"],
                "ssim": frame["ssim"],
                "actual_gaze_ratio": frame["ratio"],
                "video_frame": number,
                "exact": int(frame["exact"]),
                "stopped": int(frame["stopped"]),
            }
            table.append(line)
    return table


def clip_table(rows: Sequence[Row], clips: Sequence[Clip]) -> list[Row]:
    """A line for each clip and setting: means over its frames, that of the PSNR over squared errors."""
    table = []
    for row in rows:
        frames, setting = row["frames"], Setting.parse(row["setting"])
        means = {
            key: float(np.mean([frame[key] for frame in frames])) for key in ("ratio", "loss", "mae", "mse", "ssim")
        }
        exact = sum(frame["exact"] for frame in frames)
        line = _names(row, clips) | {
            "gazing_ratio_arg": setting.ratio if setting.limited else None,
            "task_loss_requirement_arg": setting.loss,
            "non_padded_gazes": sum(frame["patches"] for frame in frames),
            "actual_gaze_ratio": means["ratio"],
            "reconstruction_loss": means["loss"],
            "pixel_mae": means["mae"],
            "pixel_mse": means["mse"],
            "psnr": mean_psnr([frame["mse"] for frame in frames], exact),
            "ssim": means["ssim"],
            **{key: row[key] for key in SECONDS},
            "non_padded_gazes_by_frame": json.dumps([frame["patches"] for frame in frames]),
            "num_gazing_each_frame": json.dumps([frame["entries"] for frame in frames]),
            "frames": len(frames),
            "exact_frames": exact,
        }
        table.append(line)
    return table


def summary_table(rows: Sequence[Row], clips: Sequence[Clip]) -> list[Row]:
    """A line for each selector and setting: means over clips, that of the PSNR over their squared errors.

    measured_over_asked: the loss of frames that the stop rule ended, over the loss asked for. patches_over_X: patches
    over those that X keeps at the same error, where that was measured.
    """
    table: list[Row] = []
    lines = clip_table(rows, clips)
    for selector, name in dict.fromkeys((row["selector"], row["setting"]) for row in rows):
        mine = [row for row in rows if (row["selector"], row["setting"]) == (selector, name)]
        own = [line for line in lines if (line["selector"], line["setting"]) == (selector, name)]
        whole = [line["pixel_mse"] for line in own]
        exact = sum(line["exact_frames"] == line["frames"] for line in own)
        line = {"selector": selector, "setting": name}
        for key in (*MEANS, *SECONDS):
            line[key] = mean_psnr(whole, exact) if key == "psnr" else float(np.mean([part[key] for part in own]))
        line |= {"clips": len(own), "frames": sum(part["frames"] for part in own)}
        line["exact_frames"] = sum(part["exact_frames"] for part in own)
        line["measured_over_asked"] = _reached(mine, Setting.parse(name).loss)
        matched = [row["matched"] for row in mine if "matched" in row]
        for other in OTHERS:
            below = sum(found[other] for found in matched)
            line[f"patches_over_{other}"] = sum(found["patches"] for found in matched) / below if below else None
        table.append(line)
    return table


def _names(row: Row, clips: Sequence[Clip]) -> Row:
    clip = next(clip for clip in clips if clip.id == row["id"])
    named = {"selector": row["selector"], "video": clip.video, "clip_name": clip.name, "clip_start": clip.start}
    return named | {"setting": row["setting"]}


def _reached(rows: Sequence[Row], asked: float | None) -> float | None:
    ended = [frame["loss"] for row in rows for frame in row["frames"] if frame["stopped"]]
    return float(np.mean(ended)) / asked if ended and asked else None


def write_csv(path: Path, table: Sequence[Row]) -> None:
    """None is an empty cell."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def summary_text(summary: Sequence[Row], clips: Sequence[Clip], task: str) -> str:
    """The summary for people: settings of each selector, fewest patches first."""
    columns = {
        "setting": "{}",
        "actual_gaze_ratio": "{:.4f}",
        "non_padded_gazes": "{:.1f}",
        "reconstruction_loss": "{:.4f}",
        "pixel_mae": "{:.4f}",
        "psnr": "{:.3f}",
        "ssim": "{:.4f}",
        "gaze_seconds": "{:.4f}",
        "reconstruction_seconds": "{:.4f}",
        "exact_frames": "{}",
    }
    starts = {
        video: [clip.start for clip in clips if clip.video == video] for video in {clip.video: 0 for clip in clips}
    }
    parts = ["# AutoGaze reconstruction evaluation", ""]
    parts += [f"- clips: {len(clips)}; videos: {len(starts)}; loss: {task}"]
    parts += [f"- {video}: clip starts {found}" for video, found in starts.items()]
    parts += ["- PSNR: of the mean squared error; `exact` where every frame was rebuilt without an error", ""]
    for selector in dict.fromkeys(line["selector"] for line in summary):
        lines = sorted((x for x in summary if x["selector"] == selector), key=lambda x: x["actual_gaze_ratio"])
        cells = [list(columns)]
        for line in lines:
            cells.append(["exact" if line[k] is None else form.format(line[k]) for k, form in columns.items()])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        parts += [f"## {selector}: means over clips", ""]
        parts += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        parts += [""]
    return "\n".join(parts)


def write_tables(out: Path, rows: Sequence[Row], clips: Sequence[Clip], task: str) -> list[Row]:
    """-> the summary"""
    write_csv(out / "metrics_by_frame.csv", frame_table(rows, clips))
    write_csv(out / "metrics_by_clip_setting.csv", clip_table(rows, clips))
    summary = summary_table(rows, clips)
    write_csv(out / "summary_by_setting.csv", summary)
    write_text(out / "summary.txt", summary_text(summary, clips, task))
    matched = [_names(row, clips) | row["matched"] for row in rows if "matched" in row]
    if matched:
        write_csv(out / "matched.csv", matched)
    return summary
