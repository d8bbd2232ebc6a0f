"""`autogaze-mllm gaze`: show which patches of a video are kept."""

from __future__ import annotations

import argparse
import itertools
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError
from ..common.fields import settings_of
from ..common.storage.json_text import to_json
from ..common.storage.paths import shown_name
from ..gaze.settings import VideoSettings
from .arguments.config_file import repeating
from .arguments.options import (
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
from .arguments.revisions import at_revisions

if TYPE_CHECKING:  # what is heavy is imported where it is needed, so that --help answers at once
    from ..app.report import Report
    from ..gaze.gazed_video import GazedVideo


def add(verbs: argparse._SubParsersAction) -> None:
    gaze = verbs.add_parser("gaze", help="show which patches of a video are kept")
    gaze.add_argument("video", metavar="VIDEO")
    gaze.add_argument("--out", metavar="OVERLAY.mp4", help="write a video of the kept patches and the rebuilt picture")
    gaze.add_argument(
        "--report", metavar="DIR", help="write one html file with that video, a chart, all numbers and settings"
    )
    part_options(gaze)
    gaze_options(gaze, "default: the bundled gaze model")
    gaze.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    settings = chosen_settings(arguments)
    if arguments.out and os.path.realpath(arguments.out) == os.path.realpath(arguments.video):
        raise InputError(f"{arguments.out}: is the video itself; give the overlay another name")
    if arguments.report is None:
        _show(arguments, _gaze(arguments, settings, arguments.out), None)
        return 0
    from ..app.report import report_folder, report_path, write_report

    path = report_path(arguments.report, arguments.video)
    with report_folder(arguments.report) as passing:
        seen = _gaze(arguments, settings, arguments.out or str(passing))
        overlay = Path(arguments.out or passing).read_bytes()
    write_report(path, _report(arguments, settings, seen, overlay))
    _show(arguments, seen, path)
    return 0


@dataclass(frozen=True)
class _Seen:
    """psnr: decibels of the picture rebuilt from the kept patches. loss: at which frames stopped; None: at none."""

    gazed: GazedVideo
    psnr: float
    loss: float | None


def _gaze(arguments: argparse.Namespace, settings: VideoSettings, out: str | None) -> _Seen:
    """out: the overlay's file, if there is to be one."""
    from ..gaze.autogaze.pretrained import BUNDLED
    from ..gaze.pictures.overlay import Overlay, pace
    from ..gaze.pipeline import gaze_video
    from ..gaze.selector_registry import load_selector
    from ..gaze.selectors.base import as_selector, stop_rule
    from ..video.writer import video_writer

    video = chosen_video(arguments)
    reader, numbers = video.sampled(settings.frames, settings.fps, settings.decoder)
    device = usable_device(arguments.device)
    (source,) = at_revisions(arguments.revision, arguments.gaze or BUNDLED)
    selector = as_selector(load_selector(source, device=device))
    output = video_writer(out, pace(reader.seconds[numbers])) if out else nullcontext(None)
    with output as write:
        overlay = Overlay(selector.grid, write)
        gazed = gaze_video(video, selector, settings, device=device, listener=overlay, progress=not arguments.json)
    return _Seen(gazed, overlay.psnr, stop_rule(settings.loss, selector, settings))


def _report(arguments: argparse.Namespace, settings: VideoSettings, seen: _Seen, overlay: bytes) -> Report:
    from .. import __version__
    from ..app.chart import frame_counts, scale_names
    from ..app.report import Report

    gazed, stats = seen.gazed, seen.gazed.stats
    rows = [
        ("selector", stats["selector"]),
        ("scales", f"{' + '.join(scale_names(gazed.grid))} px, patches of {gazed.grid.patch} px"),
        ("tiles of a frame", " x ".join(map(str, stats["tiles"]))),
        ("a frame stops at a loss of", "none" if seen.loss is None else f"{seen.loss:g}"),
    ]
    for one in settings_of(VideoSettings):
        value = getattr(settings, one.name)
        of_none = one.name.startswith("thumbnail") and not settings.thumbnails
        if value is not None and not of_none and one.name not in ("loss", "predicted_loss"):  # in force: see above
            rows.append((one.report or one.help, _shown(value)))
    command = repeating(arguments, leave_out=("report", "out"))
    return Report(arguments.video, stats, frame_counts(gazed), seen.psnr, rows, command, __version__, overlay)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):  # of each frame of a clip
        runs = [(number, len(list(alike))) for number, alike in itertools.groupby(value)]
        return ", ".join(f"{number:g}" + (f" ({count} times)" if count > 1 else "") for number, count in runs)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _show(arguments: argparse.Namespace, seen: _Seen, report: Path | None) -> None:
    stats = seen.gazed.stats
    if arguments.json:
        found = {
            **stats,
            "reduction": stats["patches_total"] / stats["patches"],
            "psnr_db": seen.psnr if seen.psnr != float("inf") else None,
            "overlay": arguments.out,
        }
        print(to_json(found if report is None else {**found, "report": str(report)}))
        return
    rows = [
        ("selector", stats["selector"]),
        *kept_rows(arguments.video, stats),
        ("PSNR", f"{seen.psnr:.1f} dB, rebuilt from the kept patches"),
        seconds_row(stats["seconds"]),
    ]
    if arguments.out:
        rows.append(("overlay", shown_name(arguments.out)))
    if report is not None:
        rows.append(("report", f"{shown_name(str(report))} ({report.stat().st_size / 2**20:.1f} MiB)"))
    print_rows(rows)
