"""`autogaze-mllm gaze`: show which patches of a video are kept."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext

from ..common.errors import InputError
from ..common.storage.json_text import to_json
from ..common.storage.paths import shown_name
from .options import (
    chosen_settings,
    chosen_video,
    gaze_options,
    kept_rows,
    part_options,
    print_rows,
    quiet,
    seconds_row,
    usable_device,
)


def add(verbs: argparse._SubParsersAction) -> None:
    gaze = verbs.add_parser("gaze", help="show which patches of a video are kept")
    gaze.add_argument("video", metavar="VIDEO")
    gaze.add_argument("--out", metavar="OVERLAY.mp4", help="write a video of the kept patches and the rebuilt picture")
    part_options(gaze)
    gaze_options(gaze, "default: the bundled gaze model")
    gaze.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    settings = chosen_settings(arguments)
    from ..gaze.autogaze.pretrained import BUNDLED
    from ..gaze.overlay import Overlay, pace
    from ..gaze.pipeline import gaze_video
    from ..gaze.selector_registry import load_selector
    from ..gaze.selectors.base import as_selector
    from ..video.writer import video_writer

    video = chosen_video(arguments)
    reader, numbers = video.sampled(settings.frames, settings.fps)
    if arguments.out and os.path.realpath(arguments.out) == os.path.realpath(arguments.video):
        raise InputError(f"{arguments.out}: is the video itself; give the overlay another name")
    device = usable_device(arguments.device)
    selector = as_selector(load_selector(arguments.gaze or BUNDLED, device=device))
    output = video_writer(arguments.out, pace(reader.seconds[numbers])) if arguments.out else nullcontext(None)
    with output as write:
        overlay = Overlay(selector.grid, write)
        gazed = gaze_video(video, selector, settings, device=device, listener=overlay, progress=not arguments.json)
    stats = gazed.stats
    if arguments.json:
        quality = overlay.psnr if overlay.psnr != float("inf") else None
        print(
            to_json(
                {
                    **stats,
                    "reduction": stats["patches_total"] / stats["patches"],
                    "psnr_db": quality,
                    "overlay": arguments.out,
                }
            )
        )
        return 0
    rows = [
        ("selector", stats["selector"]),
        *kept_rows(arguments.video, stats),
        ("PSNR", f"{overlay.psnr:.1f} dB, rebuilt from the kept patches"),
        seconds_row(stats["seconds"]),
    ]
    print_rows(rows + ([("overlay", shown_name(arguments.out))] if arguments.out else []))
    return 0
