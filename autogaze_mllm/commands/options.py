"""What several verbs share: options, how they become settings, a device and a model, and how results are printed."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.errors import InputError, first_line

if TYPE_CHECKING:  # the verbs import what they need where they need it, so that --help answers at once
    from ..gaze.settings import VideoSettings
    from ..mllm.model import GazedModel

ONLY_SIGNS = (
    "the bundled model reads the signs of SignVid's generated videos and nothing else. Name a real one with --model"
)
SETTINGS = ("ratio", "loss", "frames", "chunk_frames", "max_tiles", "thumbnails")


def gaze_options(parser: argparse.ArgumentParser, default_gaze: str) -> None:
    parser.add_argument("--gaze", help=f"gaze model id or folder, bundled, pixel-diff, random or all ({default_gaze})")
    parser.add_argument("--preset", help="nvila-hd, nvila-hd-1k, fast or quality; the options below override it")
    parser.add_argument(
        "--ratio", type=float, help="share of a frame's patches that may be kept, in (0, 1] (default 0.75)"
    )
    parser.add_argument("--loss", type=float, help="a frame stops at this loss (default: the selector's own; 0: never)")
    parser.add_argument("--frames", type=int, help="frames taken from the video, evenly spread (default 32)")
    parser.add_argument(
        "--chunk-frames", type=int, metavar="N", help="frames that gaze sees together; then it starts anew (default 16)"
    )
    parser.add_argument("--max-tiles", type=int, metavar="N", help="cut a frame into at most N tiles (default 1)")
    parser.add_argument(
        "--thumbnails", type=int, metavar="N", help="whole frames looked at besides the tiles (default 0)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print json")


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings that stand on the command line."""
    return {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}


def chosen_settings(arguments: argparse.Namespace) -> VideoSettings:
    """Preset and options, for verbs without a model; bad values are refused."""
    from ..gaze.settings import VideoSettings, preset

    return (VideoSettings() if arguments.preset is None else preset(arguments.preset)).changed(**given(arguments))


def usable_device(name: str | None) -> str:
    import torch

    if name is None:
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise InputError("device 'meta' holds no values, so nothing can be computed on it")
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return name


def load_model(arguments: argparse.Namespace, untrained: bool = False) -> GazedModel:
    """untrained: without --model, an untrained model, to see something run; otherwise the bundled one."""
    from ..gaze.autogaze.pretrained import BUNDLED
    from ..gaze.settings import preset
    from ..mllm.loading import load_or_wrap
    from ..mllm.tiny import tiny_model
    from ..mllm.wrap import wrap

    device, cache, options = usable_device(arguments.device), not arguments.no_cache, given(arguments)
    # Without a preset the model's family, or what was saved with the model, decides what the options change.
    settings = None if arguments.preset is None else preset(arguments.preset)
    if arguments.model is None and untrained:
        base, processor = tiny_model()
        selector = arguments.gaze or BUNDLED
        return wrap(base.to(device), selector, processor=processor, settings=settings, cache=cache, **options)
    model, selector = arguments.model or BUNDLED, arguments.gaze or None
    return load_or_wrap(model, selector, settings=settings, device=device, cache=cache, **options)


def quiet() -> None:
    """The libraries' own notices (torchvision is missing, ...) are not the user's business here, and DeepSpeed's, which
    come as soon as accelerate finds it installed, would go to standard output and spoil --json."""
    from transformers.utils import logging as notices

    notices.set_verbosity_error()
    logging.getLogger("DeepSpeed").addFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def kept_rows(video: str, stats: dict[str, Any]) -> list[tuple[str, str]]:
    lost = f", {stats['frames_lost']} could not be decoded" if stats.get("frames_lost") else ""
    kept, total = stats["patches"], stats["patches_total"]
    return [
        ("video", f"{video} ({stats['frames']} frames{lost})"),
        ("patches kept", f"{kept} of {total} ({100 * kept / total:.1f} %)"),
        ("reduction", f"{total / kept:.1f}x"),
    ]


def seconds_row(seconds: dict[str, float]) -> tuple[str, str]:
    return "seconds", "  ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items())


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
