"""How well do the kept patches show a video? Measures selectors under several settings.

Clips are 16 frames each, cut from frames that are spread over a video (--frames), or from consecutive frames
(--clip-len, --clip-starts, --stride, --max-clips). OUT then holds metrics_by_frame.csv, metrics_by_clip_setting.csv,
summary_by_setting.csv, summary.txt, summary.json, metadata.json, plots/ (trade-off; per selector: frame by frame, a
table of ratios, where it looks) and visualizations/ (a sheet for each setting of the first --viz-clips clips). With
--match it also counts what greedy search, random choice and pixel-diff keep at the same mosaic error (matched.csv).

Under torchrun the processes share the clips. A run that was killed goes on when the same command is given again.

    python scripts/evaluate_reconstruction.py videos/ --gaze MODEL,pixel-diff,random,greedy --out results/
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import quiet, usable_device
from autogaze_mllm.commands.arguments.revisions import read_revisions, revision_option
from autogaze_mllm.common.compute.distributed import Shard
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction.clips import LENGTH, ClipPlan, plan_clips
from autogaze_mllm.training.reconstruction.models import load_models
from autogaze_mllm.training.reconstruction.report import write_report
from autogaze_mllm.training.reconstruction.run import Evaluation
from autogaze_mllm.training.reconstruction.settings import PUBLISHED, parse_settings

SPREAD = 32  # frames of a video, where nothing is said about clips


def main() -> int:
    quiet()
    return run_program(parser(), run)


def parser() -> argparse.ArgumentParser:
    options = program_parser(__doc__)
    options.add_argument("videos", help="folder, video or list; with commas")
    options.add_argument("--gaze", default="pixel-diff,random,greedy", help="models and names; with commas")
    options.add_argument("--task", default="mosaic", help="mosaic, or the folder or id of a VideoMAE")
    revision_option(options)
    options.add_argument("--attn-mode", choices=["sdpa"], help="of the fork: torch's attention, which is what there is")
    options.add_argument("--settings", default=PUBLISHED, help="such as ratio_0.25,task_0.70,ratio_0.75_task_0.70")
    options.add_argument("--split", default="train", choices=["train", "val"], help="of folders with train/ and val/")
    cut = options.add_argument_group("clips")
    cut.add_argument("--frames", type=int, help=f"frames of a video, evenly spread over it (default {SPREAD})")
    cut.add_argument("--clip-len", type=int, metavar="N", help=f"consecutive frames of a clip (default {LENGTH})")
    cut.add_argument(
        "--clip-starts", metavar="0,16,...", help="first frames of the clips, which are consecutive frames"
    )
    cut.add_argument("--stride", type=int, metavar="N", help="a clip starts every N frames (default: --clip-len)")
    cut.add_argument("--max-clips", type=int, metavar="N", help="clips of consecutive frames in a video (default: all)")
    options.add_argument("--viz-clips", type=int, default=1, metavar="N", help="clips to make pictures of (default 1)")
    options.add_argument("--match", action="store_true", help="count what others keep at the same error")
    options.add_argument("--seed", type=int, default=0, help="of random choice (default 0)")
    options.add_argument("--device")
    options.add_argument("--out", type=Path, required=True)
    return options


def run(arguments: argparse.Namespace) -> None:
    settings, plan = parse_settings(arguments.settings), clip_plan(arguments)
    if arguments.viz_clips < 0:
        raise InputError(f"--viz-clips must be at least 0, got {arguments.viz_clips}")
    videos = find_videos(arguments.videos, arguments.split)
    if not videos:
        raise InputError(f"{arguments.videos}: no videos there")
    shard = Shard.from_environment()
    if arguments.device is None and shard.world > 1 and torch.cuda.is_available():
        arguments.device = f"cuda:{shard.local_rank}"
    device = torch.device(usable_device(arguments.device))
    pinned = read_revisions(arguments.revision)
    models = load_models(arguments.gaze.split(","), arguments.task, device, seed=arguments.seed, revisions=pinned)
    clips = plan_clips(videos, plan)
    evaluation = Evaluation(arguments.out, models, settings, clips, arguments.viz_clips, arguments.match, device, shard)
    rows = evaluation.measure()
    if shard.rank == 0:
        write_report(evaluation, rows, plan, shlex.join(["python", *sys.argv]), arguments.seed)
        print((arguments.out / "summary.txt").read_text(encoding="utf-8"))


def clip_plan(arguments: argparse.Namespace) -> ClipPlan:
    consecutive = {
        "--clip-len": arguments.clip_len,
        "--clip-starts": arguments.clip_starts,
        "--stride": arguments.stride,
        "--max-clips": arguments.max_clips,
    }
    given = [name for name, value in consecutive.items() if value is not None]
    if not given:
        return ClipPlan(SPREAD if arguments.frames is None else arguments.frames)
    if arguments.frames is not None:
        raise InputError(f"--frames spreads frames over a video, {given[0]} takes consecutive ones: give one of them")
    starts = None if arguments.clip_starts is None else frame_numbers(arguments.clip_starts)
    length = LENGTH if arguments.clip_len is None else arguments.clip_len
    return ClipPlan(None, length, starts, arguments.stride, arguments.max_clips)


def frame_numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--clip-starts {text!r}: expected numbers of frames, such as 0,16,32") from error


if __name__ == "__main__":
    sys.exit(main())
