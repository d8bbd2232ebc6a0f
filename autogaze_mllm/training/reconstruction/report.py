"""What a measurement leaves: tables, figures, and what it takes to repeat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.environment import describe, machine
from ...common.storage.files import output_folder, write_json
from .clips import ClipPlan
from .figures import plot_frames, plot_ratios, plot_trade_off
from .maps import plot_maps
from .run import Evaluation
from .tables import write_tables

Row = dict[str, Any]


def write_report(run: Evaluation, rows: Sequence[Row], plan: ClipPlan, command: str, seed: int) -> list[Row]:
    """-> the summary. command: what repeats the run."""
    loss = run.models.task["name"]
    summary = write_tables(run.out, rows, run.clips, loss)
    write_json(run.out / "summary.json", {"summary": summary})
    write_json(run.out / "metadata.json", metadata(run, plan, command, seed))
    draw(run.out / "plots", run, rows, summary, loss)
    return summary


def metadata(run: Evaluation, plan: ClipPlan, command: str, seed: int) -> Row:
    """What was measured, by what, where. Models are named by their content (`weights`, of the values in memory, and the
    sha256 of their files) and, where they come from the hub, by revision and commit."""
    decided = run.decides()
    return {
        "command": command,
        "seed": seed,
        "settings": [
            {
                "name": setting.name,
                "gazing_ratio": setting.ratio if setting.limited else None,
                "task_loss_requirement": setting.loss,
            }
            for setting in run.settings
        ],
        "clips": {**dataclasses.asdict(plan), "frames": decided["clips"]},
        "videos": {name: {"blake2b": content} for name, content in decided["videos"].items()},
        "models": {"gaze": {one.label: one.metadata for one in run.models.contenders}, "task": run.models.task},
        "machine": machine(run.device),
        "device": str(run.device),
        "versions": describe(),
    }


def draw(folder: Path, run: Evaluation, rows: Sequence[Row], summary: Sequence[Row], loss: str) -> None:
    """plots/tradeoff_curves.png of all selectors, and in a folder of its own for each of them what happens frame by
    frame, the table of ratios and where it looks in the clips that are shown."""
    plot_trade_off(output_folder(folder) / "tradeoff_curves.png", summary, loss)
    over = "one clip" if len(run.clips) == 1 else f"mean over {len(run.clips)} clips"
    for one in run.models.contenders:
        mine = [row for row in rows if row["selector"] == one.label]
        own = output_folder(folder / one.file)
        plot_frames(own / "per_frame_curves.png", mine, f"{one.label}, {over}", loss)
        plot_ratios(own / "gaze_heatmap.png", mine, one.label)
        for clip in run.clips[: run.shown]:
            pixels, numbers = clip.read(one.task.grid)
            middle = len(numbers) // 2
            title = (
                f"{one.label} in {clip.video}, frames {numbers[0]} to {numbers[-1]} (frame {numbers[middle]} beneath)"
            )
            seen = [row for row in mine if row["id"] == clip.id]
            file = f"where_gaze_looks_{clip.video.replace('/', '-')}_{clip.name}.png"
            plot_maps(own / file, seen, pixels[middle], title)
