"""`autogaze-mllm label`: search what a gaze model should look at, for next-token prediction."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...common.errors import InputError
from ...common.storage.json_text import to_json
from ...training.config import LabelConfig
from ..arguments.config_file import CONFIG, write_config
from ..arguments.options import add_settings, print_rows, quiet, usable_device, values_of
from ..arguments.revisions import at_revisions, revision_option


def add(verbs: argparse._SubParsersAction) -> None:
    label = verbs.add_parser(
        "label",
        help="search which patches of videos to keep, as labels for train-gaze",
        description="Greedy search: the patch that lowers the reconstruction loss most comes next, until the loss or "
        "the budget of the frame is reached. A run that was interrupted goes on when the same command is given again.",
    )
    label.add_argument(
        "videos", metavar="VIDEOS", help="folders (with train/ and val/, or flat), or lists; with commas"
    )
    label.add_argument("--out", required=True, metavar="gazing_labels.json")
    label.add_argument("--split", default="train", choices=["train", "val"])
    add_settings(label, LabelConfig)
    revision_option(label)
    label.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    label.add_argument("--shard", type=int, default=20_000, help="videos in a file at most (default 20000)")
    label.add_argument("--unreadable", type=float, default=0.05, help="share of videos that may be unreadable")
    label.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one, else cpu)")
    label.add_argument("--json", action="store_true", help="print json")
    label.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    from ...training.data.clips import find_videos
    from ...training.search.labelling import label_videos

    for name in ("workers", "shard"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if not 0 <= arguments.unreadable <= 1:
        raise InputError(f"--unreadable is a share, in [0, 1], got {arguments.unreadable}")
    (task,) = at_revisions(arguments.revision, arguments.task)
    settings = LabelConfig(**{**values_of(arguments, LabelConfig), "task": task})
    report = label_videos(
        find_videos(arguments.videos, arguments.split),
        Path(arguments.out),
        settings,
        workers=arguments.workers,
        unreadable=arguments.unreadable,
        shard=arguments.shard,
        device=usable_device(arguments.device),
        progress=not arguments.json,
    )
    write_config(arguments, Path(arguments.out).with_suffix(f".{CONFIG}"))
    if arguments.json:
        result = {"files": [str(file) for file in report.files], "labels": report.labels, "patches": report.patches}
        print(to_json({**result, "unreadable": report.unreadable}))
        return 0
    per_frame = report.patches / report.labels / settings.frames
    rows = [("labels", str(report.labels)), ("patches", f"{report.patches} ({per_frame:.1f} a frame)")]
    rows += [("unreadable", str(len(report.unreadable)))] if report.unreadable else []
    print_rows([*rows, *(("file", str(file)) for file in report.files)])
    return 0
