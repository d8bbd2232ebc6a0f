"""The command line: `autogaze-mllm ask | gaze | cache | info`.

Exit codes: 0 done, 2 the input is at fault (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:  # the verbs import what they need, so that --help answers at once
    from .gaze.settings import VideoSettings
    from .mllm.model import GazedModel

UNTRAINED = "the built-in model is tiny and untrained: its reply is noise. Name a real one with --model"


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"autogaze-mllm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autogaze-mllm: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autogaze-mllm", description="Multimodal LLMs that look only where it matters."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    ask = verbs.add_parser("ask", help="answer a question about a video")
    ask.add_argument("video", metavar="VIDEO")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--model", help="hub id or folder of the base model (default: a built-in untrained one)")
    ask.add_argument("--no-cache", action="store_true", help="do not keep or reuse what was seen of the video")
    ask.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    _gaze_options(ask, "default: nvidia/AutoGaze with --model, otherwise pixel-diff")
    ask.set_defaults(run=_ask)

    gaze = verbs.add_parser("gaze", help="show which patches of a video are kept")
    gaze.add_argument("video", metavar="VIDEO")
    gaze.add_argument("--out", metavar="OVERLAY.mp4", help="write a video of the kept patches and the rebuilt picture")
    _gaze_options(gaze, "default: pixel-diff, which needs no weights")
    gaze.set_defaults(run=_gaze)

    cache = verbs.add_parser("cache", help="list or clear what was kept of videos asked about before")
    cache.add_argument("action", choices=["ls", "clear"])
    cache.add_argument("--json", action="store_true", help="print json")
    cache.set_defaults(run=_cache)

    info = verbs.add_parser("info", help="versions, devices, attention back ends, extras")
    info.add_argument("--json", action="store_true", help="print json")
    info.set_defaults(run=_info)
    return parser


def _gaze_options(parser: argparse.ArgumentParser, default_gaze: str) -> None:
    parser.add_argument("--gaze", help=f"gaze model id or folder, pixel-diff, random or all ({default_gaze})")
    parser.add_argument("--preset", help="nvila-hd, nvila-hd-1k, fast or quality; the options below override it")
    parser.add_argument(
        "--ratio", type=float, help="share of a frame's patches that may be kept, in (0, 1] (default 0.75)"
    )
    parser.add_argument("--loss", type=float, help="a frame stops at this loss (default: the selector's own; 0: never)")
    parser.add_argument("--frames", type=int, help="frames taken from the video, evenly spread (default 32)")
    parser.add_argument("--max-tiles", type=int, metavar="N", help="cut a frame into at most N tiles (default 1)")
    parser.add_argument(
        "--thumbnails", type=int, metavar="N", help="whole frames looked at besides the tiles (default 0)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print json")


SETTINGS = ("ratio", "loss", "frames", "max_tiles", "thumbnails")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that stand on the command line."""
    return {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}


def _settings(arguments: argparse.Namespace) -> VideoSettings:
    """Preset and options, for verbs without a model; bad values are refused."""
    from .gaze.settings import VideoSettings, preset

    return (VideoSettings() if arguments.preset is None else preset(arguments.preset)).changed(**_given(arguments))


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise InputError("device 'meta' holds no values, so nothing can be computed on it")
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).strip().splitlines()[0]}") from error
    return name


def _load_model(arguments: argparse.Namespace) -> GazedModel:
    from pathlib import Path

    from .gaze.settings import preset
    from .mllm.tiny import tiny_model
    from .mllm.wrap import DEFAULT_GAZE, SETTINGS_FILE, load, wrap

    device, cache, options = _device(arguments.device), not arguments.no_cache, _given(arguments)
    # Without a preset the model's family, or what was saved with the model, decides what the options change.
    settings = None if arguments.preset is None else preset(arguments.preset)
    if arguments.model is None:
        base, processor = tiny_model()
        selector = arguments.gaze or "pixel-diff"
        return wrap(base.to(device), selector, processor=processor, settings=settings, cache=cache, **options)
    if (Path(arguments.model) / SETTINGS_FILE).is_file():  # saved by GazedModel.save_pretrained
        changed = {**(settings.to_dict() if settings else {}), **options}
        return load(arguments.model, gaze=arguments.gaze, device=device, cache=cache, **changed)
    selector = arguments.gaze or DEFAULT_GAZE
    return wrap(arguments.model, selector, settings=settings, device=device, cache=cache, **options)


def _ask(arguments: argparse.Namespace) -> int:
    _quiet()
    if not arguments.question.strip():
        raise InputError("the question has no text")
    if arguments.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    from .video.reader import VideoReader

    VideoReader(arguments.video)  # a bad file is refused before a large model is loaded
    model = _load_model(arguments)
    reply = model.ask(
        arguments.video, arguments.question, max_new_tokens=arguments.max_new_tokens, progress=not arguments.json
    )
    stats = model.stats
    if arguments.json:
        note = {} if arguments.model else {"note": UNTRAINED}
        print(json.dumps({"reply": reply, **stats, **note}, ensure_ascii=False))
        return 0
    _print_rows(
        [
            *_kept_rows(arguments.video, stats),
            *([("cache", "what was kept of this video before was used again")] if stats.get("from_cache") else []),
            ("visual tokens", f"{stats['visual_tokens']} (the dense model: {stats['dense_tokens']})"),
            _seconds_row(stats["seconds"]),
            ("reply", reply),
        ]
    )
    if not arguments.model:
        print(f"\nnote: {UNTRAINED}")
    return 0


def _gaze(arguments: argparse.Namespace) -> int:
    _quiet()
    settings = _settings(arguments)
    from .gaze.model import AutoGaze
    from .gaze.overlay import Overlay
    from .gaze.pipeline import DEFAULT_GRID, gaze_video
    from .gaze.selectors import load_selector
    from .video.reader import VideoReader
    from .video.writer import video_writer

    reader = VideoReader(arguments.video)
    if arguments.out and os.path.realpath(arguments.out) == os.path.realpath(arguments.video):
        raise InputError(f"{arguments.out}: is the video itself; give the overlay another name")
    device = _device(arguments.device)
    selector = load_selector(arguments.gaze or "pixel-diff", device=device)
    grid = selector.grid if isinstance(selector, AutoGaze) else DEFAULT_GRID
    fps = max(min(settings.frames, len(reader)) / reader.duration, 1.0)
    output = video_writer(arguments.out, fps) if arguments.out else nullcontext(None)
    with output as write:
        overlay = Overlay(grid, write)
        gazed = gaze_video(
            arguments.video, selector, settings, grid=grid, device=device, listener=overlay, progress=not arguments.json
        )
    stats = gazed.stats
    if arguments.json:
        quality = overlay.psnr if overlay.psnr != float("inf") else None
        print(
            json.dumps(
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
        *_kept_rows(arguments.video, stats),
        ("PSNR", f"{overlay.psnr:.1f} dB, rebuilt from the kept patches"),
        _seconds_row(stats["seconds"]),
    ]
    _print_rows(rows + ([("overlay", arguments.out)] if arguments.out else []))
    return 0


def _cache(arguments: argparse.Namespace) -> int:
    from .gaze.cache import VideoCache

    cache = VideoCache()
    if arguments.action == "clear":
        freed = cache.clear()
        print(json.dumps({"folder": str(cache.folder), "freed": freed}) if arguments.json else f"{_size(freed)} freed")
        return 0
    entries = cache.entries()
    if arguments.json:
        rows = [{"key": entry.key, "kind": entry.kind, "bytes": entry.bytes, "used": entry.used} for entry in entries]
        print(json.dumps({"folder": str(cache.folder), "entries": rows}))
        return 0
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        print(f"{entry.key[:12]}  {entry.kind:<6}  {_size(entry.bytes):>9}  used {used}")
    print(f"{len(entries)} entries, {_size(sum(entry.bytes for entry in entries))} in {cache.folder}")
    return 0


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _info(arguments: argparse.Namespace) -> int:
    _quiet()
    from .environment import describe

    found = describe()
    if arguments.json:
        print(json.dumps(found))
        return 0
    rows = [("autogaze_mllm", str(found["autogaze_mllm"])), ("python", found["python"])]
    rows += [(package, version or "missing") for package, version in found["packages"].items()]
    rows += [
        ("device", ", ".join(f"{value}" if name != "threads" else f"{value} threads" for name, value in device.items()))
        for device in found["devices"]
    ]
    rows += [(f"attention: {name}", "yes" if state is True else state) for name, state in found["attention"].items()]
    rows += [(f"extra: {name}", version or "not installed") for name, version in found["extras"].items()]
    _print_rows(rows)
    return 0


def _quiet() -> None:
    """transformers' own notices (torchvision is missing, ...) are not the user's business here."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def _kept_rows(video: str, stats: dict[str, Any]) -> list[tuple[str, str]]:
    lost = f", {stats['frames_lost']} could not be decoded" if stats.get("frames_lost") else ""
    kept, total = stats["patches"], stats["patches_total"]
    return [
        ("video", f"{video} ({stats['frames']} frames{lost})"),
        ("patches kept", f"{kept} of {total} ({100 * kept / total:.1f} %)"),
        ("reduction", f"{total / kept:.1f}x"),
    ]


def _seconds_row(seconds: dict[str, float]) -> tuple[str, str]:
    return "seconds", "  ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items())


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    sys.exit(main())
