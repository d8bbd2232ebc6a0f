"""What several verbs share: options, how they become settings, a device and a model, and how results are printed."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...common.errors import InputError, first_line
from ...common.fields import Setting, settings_of
from ...common.storage.paths import shown_name
from ...gaze.settings import LIMITS, SAMPLING, VideoSettings, preset
from .revisions import at_revisions, revision_option

if TYPE_CHECKING:  # the verbs import what they need where they need it, so that --help answers at once
    from ...mllm.model import GazedModel
    from ...video.sources import Video

BUNDLED_READS = "the bundled model reads the signs of SignVid's generated videos and nothing else"
ONLY_SIGNS = f"{BUNDLED_READS}. Name a real one with --model"


def gaze_options(
    parser: argparse._ActionsContainer, default_gaze: str, *, json: bool = True, revision: bool = True
) -> None:
    """json: whether the verb prints something that a program may read. revision: False where the verb has one of its
    own words."""
    names = "pixel-diff, pixel-diff-raw, greedy, random or all"
    parser.add_argument("--gaze", help=f"gaze model id or folder, bundled, {names} ({default_gaze})")
    if revision:
        revision_option(parser)
    parser.add_argument("--preset", help="nvila-hd, nvila-hd-1k, fast or quality; the options below override it")
    for group in (LIMITS, SAMPLING):
        add_settings(parser, VideoSettings, group, defaults=False)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    if json:
        parser.add_argument("--json", action="store_true", help="print json")


def part_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--start", type=float, metavar="SECONDS", help="look from there on (default: the beginning)")
    parser.add_argument("--end", type=float, metavar="SECONDS", help="look up to there (default: the end)")


def chosen_video(arguments: argparse.Namespace) -> Video:
    """The video, or the part of it, that the command line names."""
    from ...video.sources import Video

    return Video(arguments.video, arguments.start, arguments.end)


def size_of(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels, as options have it -> both."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, flags=re.ASCII)
    if found is None or not int(found[1]) * int(found[2]):
        raise InputError(f"expected WIDTHxHEIGHT in pixels, got {text!r}")
    return int(found[1]), int(found[2])


def add_settings(parser: argparse._ActionsContainer, kind: type, group: str = "", *, defaults: bool = True) -> None:
    """An option for each declared field of a group that has one.

    defaults: where nothing is given the option has the field's default; otherwise None, as if it were not there.
    """
    for one in settings_of(kind):
        if one.option and one.group == group:
            _add_setting(parser, one, one.default if defaults else None)


def _add_setting(parser: argparse._ActionsContainer, one: Setting, default: Any) -> None:
    named: dict[str, Any] = {"help": one.option_help, "default": default}
    if one.kind is tuple:
        text = None if default is None else one.shown_default
        parser.add_argument(one.option, metavar=one.metavar, help=one.option_help, default=text)
    elif one.kind is not bool:
        parser.add_argument(one.option, type=one.kind, metavar=one.metavar, choices=one.choices or None, **named)
    elif one.paired:
        parser.add_argument(one.option, action=argparse.BooleanOptionalAction, **named)
    else:
        parser.add_argument(one.option, action="store_true", help=one.option_help)


def values_of(arguments: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields of a class that have options, as the command line has them."""
    found = {}
    for one in settings_of(kind):
        if one.option:
            value = getattr(arguments, one.key)
            if one.kind is tuple and value is not None:
                try:
                    value = one.read(value)
                except ValueError as error:
                    raise InputError(f"{one.option} {value!r}: {error}") from error
            found[one.name] = not value if one.off else (value or None) if one.zero_is_none else value
    return found


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of videos that stand on the command line."""
    found = {one.name: getattr(arguments, one.key) for one in settings_of(VideoSettings)}
    return {name: value for name, value in found.items() if value is not None}


def chosen_settings(arguments: argparse.Namespace) -> VideoSettings:
    """Preset and options, for verbs without a model; bad values are refused."""
    return (VideoSettings() if arguments.preset is None else preset(arguments.preset)).changed(**given(arguments))


def usable_device(name: str | None) -> str:
    import torch

    if name is None:
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise InputError("device 'meta' holds no values, so nothing can be computed on it")
        torch.zeros(1, device=name)
    except InputError:
        raise
    except Exception as error:  # each kind of device has its own way of not being there
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return name


def load_model(arguments: argparse.Namespace, untrained: bool = False) -> GazedModel:
    """untrained: without --model, an untrained model, to see something run; otherwise the bundled one."""
    from ...gaze.autogaze.pretrained import BUNDLED
    from ...mllm.loading import load_or_wrap
    from ...mllm.tiny import tiny_model
    from ...mllm.wrap import wrap

    if getattr(arguments, "index", None) is not None:
        if arguments.model is None and untrained:
            raise InputError("--index needs the --model that it was made for")
        return _load_for_index(arguments)
    device, cache, options = usable_device(arguments.device), not arguments.no_cache, given(arguments)
    # Without a preset the model's family, or what was saved with the model, decides what the options change.
    settings = None if arguments.preset is None else preset(arguments.preset)
    if arguments.model is None and untrained:
        base, processor = tiny_model()
        (gaze,) = at_revisions(arguments.revision, arguments.gaze or BUNDLED)
        return wrap(base.to(device), gaze, processor=processor, settings=settings, cache=cache, **options)
    model, selector = pinned_models(arguments, arguments.model or BUNDLED, arguments.gaze or None)
    return load_or_wrap(model, selector, settings=settings, device=device, cache=cache, **options)


def pinned_models(arguments: argparse.Namespace, model: str, gaze: str | None) -> tuple[str, str | None]:
    """Both, as `load_or_wrap` takes them, at the revisions of the command line; also the gaze model of a base model
    that goes without saying."""
    if not arguments.revision:  # nothing is imported that a command may not need
        return model, gaze
    from ...mllm.loading import is_saved
    from ...mllm.wrap import DEFAULT_GAZE

    if gaze is None and is_saved(model):
        return at_revisions(arguments.revision, model)[0], None
    model, gaze = at_revisions(arguments.revision, model, gaze or DEFAULT_GAZE)
    return model, gaze


def _load_for_index(arguments: argparse.Namespace) -> GazedModel:
    """The model that finds what was indexed: gaze and settings are those of the index, where none are given."""
    from ...gaze.autogaze.pretrained import BUNDLED
    from ...gaze.cache import VideoCache
    from ...gaze.index_info import check_finds, read_index
    from ...mllm.loading import load_or_wrap

    info = read_index(arguments.index)
    settings = VideoSettings.from_dict(info.settings) if arguments.preset is None else preset(arguments.preset)
    named, gaze = pinned_models(arguments, arguments.model or BUNDLED, arguments.gaze or info.gaze)
    model = load_or_wrap(
        named,
        gaze,
        settings=settings,
        device=usable_device(arguments.device),
        cache=VideoCache(index=arguments.index),
        **given(arguments),
    )
    check_finds(arguments.index, info, model.cache_facts()[0])
    return model


def cache_options(parser: argparse._ActionsContainer, no_cache: str) -> None:
    """no_cache: what --no-cache does."""
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--no-cache", action="store_true", help=no_cache)
    kept.add_argument(
        "--index",
        metavar="DIR",
        help="take videos as `index` left them there; its gaze and settings hold unless others are given",
    )


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
        ("video", f"{shown_name(video)} ({stats['frames']} frames{lost})"),
        ("patches kept", f"{kept} of {total} ({100 * kept / total:.1f} %)"),
        ("reduction", f"{total / kept:.1f}x"),
    ]


def seconds_row(seconds: dict[str, float]) -> tuple[str, str]:
    return "seconds", "  ".join(f"{stage} {spent:.2f}" for stage, spent in seconds.items())


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
