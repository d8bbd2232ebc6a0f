"""`autogaze-mllm index`: gaze at, and encode, all videos of a folder once, for all later questions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import InputError
from ..common.storage.json_text import to_json
from .arguments.config_file import CONFIG, write_config
from .arguments.options import gaze_options, given, pinned_models, print_rows, quiet

if TYPE_CHECKING:  # the verbs import what they need where they need it, so that --help answers at once
    from ..common.compute.distributed import Shard
    from ..indexing.job import IndexJob
    from ..indexing.run import IndexResult

SHOWN = 20  # videos that could not be read


def add(verbs: argparse._SubParsersAction) -> None:
    index = verbs.add_parser("index", help="gaze at all videos of a folder, for all later questions")
    index.add_argument("folder", metavar="FOLDER", help="its videos, and those of the folders in it")
    index.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the index; one that is there is gone on with"
    )
    form = index.add_mutually_exclusive_group()
    form.add_argument(
        "--model",
        help="hub id or folder of the model that will be asked: gazed videos have the form that it takes (default: the "
        "bundled one)",
    )
    form.add_argument("--encode", metavar="MODEL", help="the same, and its visual tokens are kept, too")
    index.add_argument(
        "--workers", type=int, default=0, metavar="N", help="default: one for each accelerator, or for each core"
    )
    index.add_argument("--ray", metavar="ADDRESS", help="let a Ray cluster work; `local` starts one (extra: ray)")
    index.add_argument("--retry-failed", action="store_true", help="try videos again that could not be read")
    gaze_options(index, "default: nvidia/AutoGaze with a model, otherwise pixel-diff")
    index.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    if arguments.workers < 0:
        raise InputError(f"--workers must be at least 1, got {arguments.workers}")
    from ..common.compute import distributed
    from ..indexing.run import IndexResult, run_index

    shard = distributed.Shard.from_environment()
    with distributed.launched(shard):
        result = run_index(
            _job(arguments, shard),
            workers=arguments.workers,
            ray=arguments.ray,
            shard=shard,
            retry_failed=arguments.retry_failed,
            progress=not arguments.json and shard.rank == 0,
        )
        results = distributed.gathered(result)
    if shard.rank == 0:
        write_config(arguments, Path(arguments.out, CONFIG))
    if len(results) > 1 and shard.rank != 0:  # the first one tells of all
        return 0
    return _told(arguments, IndexResult.joined(results))


def _job(arguments: argparse.Namespace, shard: Shard) -> IndexJob:
    import torch

    from ..gaze.autogaze.pretrained import BUNDLED
    from ..gaze.settings import preset
    from ..indexing.job import IndexJob
    from .arguments.options import usable_device

    device = arguments.device
    if device is None and shard.world > 1 and torch.cuda.is_available():
        device = f"cuda:{shard.local_rank}"
    model, gaze = arguments.encode or arguments.model, arguments.gaze
    if arguments.revision:  # of the model's default, too
        model, gaze = pinned_models(arguments, model or BUNDLED, gaze)
    return IndexJob(
        arguments.folder,
        arguments.out,
        model=model,
        encode=arguments.encode is not None,
        gaze=gaze,
        settings=None if arguments.preset is None else preset(arguments.preset),
        overrides=given(arguments),
        device=device if device is None or arguments.ray else usable_device(device),
    )


def _told(arguments: argparse.Namespace, result: IndexResult) -> int:
    found = result.to_dict(arguments.out)
    failed = result.failed
    if arguments.json:
        print(to_json(found))
    else:
        kept, total = found["patches"], found["patches_total"]
        rows = [
            ("index", arguments.out),
            ("videos", f"{found['videos']} ({found['tried']} now, {len(failed)} could not be read)"),
        ]
        if total:
            rows.append(("patches kept", f"{kept} of {total} ({100 * kept / total:.1f} %)"))
        if found["tried"]:
            rows.append(("seconds", f"{found['seconds']:.1f} ({found['videos_per_hour']:g} videos an hour)"))
        print_rows(rows)
    for record in failed[:SHOWN]:
        print(f"autogaze-mllm: {record.error}", file=sys.stderr)
    if len(failed) > SHOWN:
        print(f"autogaze-mllm: and {len(failed) - SHOWN} more, in index.jsonl", file=sys.stderr)
    return 1 if failed else 0
