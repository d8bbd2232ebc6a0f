"""`autogaze-mllm ask`: answer a question about a video."""

from __future__ import annotations

import argparse

from ..common.errors import InputError
from ..common.storage.json_text import is_text, to_json
from ..video import PYAV
from .arguments.options import (
    ONLY_SIGNS,
    cache_options,
    chosen_video,
    gaze_options,
    kept_rows,
    load_model,
    part_options,
    print_rows,
    quiet,
    seconds_row,
)


def add(verbs: argparse._SubParsersAction) -> None:
    ask = verbs.add_parser("ask", help="answer a question about a video")
    ask.add_argument("video", metavar="VIDEO")
    ask.add_argument("question", metavar="QUESTION")
    part_options(ask)
    ask.add_argument(
        "--model", help="hub id or folder of the base model (default: the bundled one, which reads SignVid's signs)"
    )
    cache_options(ask, "do not keep or reuse what was seen of the video")
    ask.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    gaze_options(ask, "default: nvidia/AutoGaze with --model, otherwise pixel-diff")
    ask.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet()
    if not arguments.question.strip():
        raise InputError("the question has no text")
    if not is_text(arguments.question):
        raise InputError("the question is not UTF-8 text")
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    video = chosen_video(arguments)
    video.sampled(1, decoder=arguments.decoder or PYAV)  # a bad file is refused before a large model is loaded
    model = load_model(arguments)
    reply = model.ask(video, arguments.question, max_new_tokens=arguments.max_new_tokens, progress=not arguments.json)
    stats = model.stats
    if arguments.json:
        note = {} if arguments.model else {"note": ONLY_SIGNS}
        print(to_json({"reply": reply, **stats, **note}))
        return 0
    print_rows(
        [
            *kept_rows(arguments.video, stats),
            *([("cache", "what was kept of this video before was used again")] if stats.get("from_cache") else []),
            ("visual tokens", f"{stats['visual_tokens']} (the dense model: {stats['dense_tokens']})"),
            seconds_row(stats["seconds"]),
            ("reply", reply),
        ]
    )
    if not arguments.model:
        print(f"\nnote: {ONLY_SIGNS}")
    return 0
