"""Trains the LLM of the bundled MLLM on a GPU for so many minutes, start and end included.

Words come first (what a video shows, as text: letters of options, counting, order), then videos of SignVid's train
split at 672x672, clean and noisy, in five ways of looking that get the same samples and the same number of updates:
every patch, the gaze model, pixel-diff, random patches, and shrunk frames; some larger and longer ones keep the model
used to these. Videos are made by other processes meanwhile. Tower and projector rest. Writes OUT/llm.safetensors
(bf16), OUT/metrics.jsonl and, at the end, OUT/result.json: how well it answers about the videos that are kept for
development.

With --letters, choosing an option's letter comes first, and saying of codes whether they are shown: on texts of a few
words, with a few cheap videos at low weight meanwhile; then videos at full weight, so that nothing is forgotten. Nearly
all of these are seen through pixel-diff, a few hundred tokens each, so a CPU will do. With --letters kept, the LLM
knows them already: exercises go on beside videos in all five ways of looking, at full weight.

    python scripts/train_signvid_llm.py OUT --minutes 5
    python scripts/train_signvid_llm.py OUT2 --letters --minutes 70 --workers 1 --llm OUT/llm.safetensors --device cpu
    python scripts/train_signvid_llm.py OUT3 --letters kept --minutes 9 --llm OUT2/llm.safetensors
    python scripts/bundle_mllm.py bundled FOLDER --llm OUT3/llm.safetensors
"""

from __future__ import annotations

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from autogaze_mllm.cli import program_parser, run_program  # noqa: E402
from autogaze_mllm.common.errors import InputError  # noqa: E402
from autogaze_mllm.common.storage.files import output_folder, write_json  # noqa: E402
from autogaze_mllm.finetuning.on_device.course import Course, CourseConfig, Encoded, Group, encode, load_llm  # noqa: E402
from autogaze_mllm.finetuning.on_device.looks import Look  # noqa: E402
from autogaze_mllm.finetuning.on_device.signs import SignSource, VideoJob, speech_of  # noqa: E402
from autogaze_mllm.gaze.autogaze.pretrained import BUNDLED  # noqa: E402
from autogaze_mllm.gaze.selector_registry import load_selector  # noqa: E402
from autogaze_mllm.gaze.settings import VideoSettings  # noqa: E402
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER, load_or_wrap  # noqa: E402
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED  # noqa: E402
from autogaze_mllm.signvid.plan import VideoShape  # noqa: E402
from autogaze_mllm.training.on_device.loop import Clock  # noqa: E402

BUDGETS = (0.15, 0.06, 0.025)  # shares of a frame's patches, one for each batch of videos in turn
GAZE = {"loss": 0.0, "chunk_frames": 2}  # two at a time the model finds more signs, where it is not guided
DEV_NOISE = 0.05
# Videos at most and of a step, of each group; of the development set; seconds that it takes.
SIZES: dict[str, Any] = {
    "cuda": {"small": (1200, 8), "large": (128, 2), "long": (64, 2), "dev": 16, "reserve": 30.0},
    "cpu": {"small": (64, 2), "large": (4, 1), "long": (4, 1), "dev": 2, "reserve": 60.0},
    "tiny": {"small": (4, 2), "large": (2, 1), "long": (2, 1), "dev": 1, "reserve": 5.0},
}
TINY_STEPS = 8
LETTERS: dict[str, Any] = {"letters": 40, "verdicts": 12, "questions": 8, "texts": 0}
LETTERS_LR = 2.5e-3
LEARNT, KEPT = "learnt", "kept"  # letters are new to the LLM, or known
CHEAP = {"small": (400, 3), "clips": (400, 3), "large": (60, 3), "gazed": (80, 1)}  # as in SIZES, with --letters


class Looks:
    """The ways of looking, with the selectors that they share."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        names = (BUNDLED, "pixel-diff", "pixel-diff-raw", "all", "random")
        self.selectors = {name: load_selector(name, device=device, dtype=dtype) for name in names}

    def look(self, name: str, selector: str, tiles: int, **changes: Any) -> Look:
        return Look(name, self.selectors[selector], VideoSettings().changed(max_tiles=tiles, **changes))

    def fair(self, tiles: int, number: int) -> list[Look]:
        """What is compared: every patch, and three selectors of the same budget."""
        ratio = BUDGETS[number % len(BUDGETS)]
        difference = ("pixel-diff-raw", "pixel-diff")[number % 2]
        return [
            self.look("all", "all", tiles, ratio=1),
            self.look("gaze", BUNDLED, tiles, ratio=ratio, **GAZE),
            self.look("pixel-diff", difference, tiles, ratio=ratio),
            self.look("random", "random", tiles, ratio=ratio),
            self.look("shrunk", "all", (4, 1)[number % 2], ratio=1),
        ]

    def sparse(self, tiles: int, number: int) -> list[Look]:
        difference = ("pixel-diff-raw", "pixel-diff")[number % 2]
        return [
            self.look("gaze", BUNDLED, tiles, ratio=0.147, **GAZE),
            self.look("pixel-diff", difference, tiles, ratio=0.147),
        ]

    def long(self, tiles: int, number: int) -> list[Look]:
        return [self.look("pixel-diff", ("pixel-diff-raw", "pixel-diff")[number % 2], tiles, ratio=0.147)]

    def measured(self, tiles: int) -> list[Look]:
        """Those of the benchmark."""
        found = [self.look("all", "all", tiles, ratio=1), self.look("random", "random", tiles, ratio=BUDGETS[0])]
        for ratio in BUDGETS:
            found.append(self.look(f"gaze {ratio}", BUNDLED, tiles, ratio=ratio, **GAZE))
            found += [
                self.look(f"{name} {ratio}", name, tiles, ratio=ratio) for name in ("pixel-diff", "pixel-diff-raw")
            ]
        return [*found, self.look("whole-448", "all", 4, ratio=1), self.look("whole-224", "all", 1, ratio=1)]


def groups_of(looks: Looks, sizes: dict[str, Any], tiny: bool) -> list[Group]:
    small, large, long = (sizes[name] for name in ("small", "large", "long"))
    if tiny:
        shape = VideoShape(224, 224, 4, signs=3)
        shapes = (shape, dataclasses.replace(shape, width=448), dataclasses.replace(shape, frames=16))
        tiles = (1, 2, 1)
    else:
        shapes = (VideoShape(672, 672), VideoShape(), VideoShape(672, 672, 64, signs=6))
        tiles = (9, 36, 9)
    fair = (("all",), ("gaze", "pixel-diff", "random"), ("shrunk",))
    return [
        Group("small", shapes[0], *small, 0.8, lambda number: looks.fair(tiles[0], number), fair),
        Group("large", shapes[1], *large, 0.13, lambda n: looks.sparse(tiles[1], n), (("gaze",), ("pixel-diff",))),
        Group("long", shapes[2], *long, 0.07, lambda number: looks.long(tiles[2], number), (("pixel-diff",),)),
    ]


def cheap_groups(looks: Looks, tiny: bool) -> list[Group]:
    """What keeps the LLM reading while it learns letters."""
    sizes = dict.fromkeys(CHEAP, (4, 2)) if tiny else CHEAP
    if tiny:
        shapes, tiles = {name: VideoShape(224, 224, 4, signs=3) for name in CHEAP}, dict.fromkeys(CHEAP, 1)
    else:
        small = VideoShape(672, 672)
        shapes = {"small": small, "clips": VideoShape(448, 448, 8, signs=4), "large": VideoShape(), "gazed": small}
        tiles = {"small": 9, "clips": 4, "large": 36, "gazed": 9}

    def seen(name: str) -> Callable[[int], list[Look]]:
        if name == "gazed":
            return lambda number: [looks.look("gaze", BUNDLED, tiles[name], ratio=BUDGETS[0], **GAZE)]
        return lambda number: looks.long(tiles[name], number)

    shares = {"small": 0.55, "clips": 0.25, "large": 0.12, "gazed": 0.08}
    return [
        Group(name, shapes[name], *sizes[name], share, seen(name), (("gaze" if name == "gazed" else "pixel-diff",),))
        for name, share in shares.items()
    ]


def measure(course: Course, looks: Looks, group: Group, count: int, tiles: int) -> dict[str, Any]:
    """On development videos, clean and noisy: shares of right answers by look and kind."""
    found: dict[str, Any] = {}
    for name, noise in (("clean", 0.0), ("noisy", DEV_NOISE)):
        shape = dataclasses.replace(group.shape, noise=noise)
        jobs = [VideoJob(shape, DEVELOPMENT_SEED, number, 1, 10, measured=True) for number in range(count)]
        films = [future.result() for future in [course.source.film(job) for job in jobs]]
        videos: list[Encoded] = []
        for start in range(0, count, group.batch):
            videos += encode(course.model, films[start : start + group.batch], looks.measured(tiles))
        found[name] = course.measure(videos)
    return found


def run(arguments: argparse.Namespace) -> None:
    if DEVELOPMENT_SEED - 10 < arguments.seed <= DEVELOPMENT_SEED:  # each group takes one of its own
        raise InputError(f"--seed {arguments.seed}: {DEVELOPMENT_SEED} is for development; train on another")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = output_folder(arguments.out)
    sizes = SIZES["tiny" if arguments.small else device.type]
    folder = BUNDLED_FOLDER if arguments.model == BUNDLED else Path(arguments.model)
    model = load_or_wrap(
        arguments.model,
        "all",
        settings=VideoSettings(),
        device=str(device),
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        cache=False,
    )
    if arguments.llm is not None:
        base: Any = model.base
        load_llm(base.llm, arguments.llm)
    settings = CourseConfig(lr=arguments.lr or CourseConfig.lr, seed=arguments.seed)
    if arguments.letters:
        settings = dataclasses.replace(settings, **LETTERS)
        if arguments.letters == KEPT:
            settings = dataclasses.replace(settings, letters_first=0.0)
        else:
            settings = dataclasses.replace(settings, lr=arguments.lr or LETTERS_LR)
    if arguments.small:
        settings = dataclasses.replace(
            settings, packs=2, questions=4, texts=8, text_chunk=4, text_batch=2, text_only=4, waiting=2
        )
        settings = dataclasses.replace(settings, letters=4, texts=0) if arguments.letters else settings
    looks = Looks(device, model.dtype)
    cheap = arguments.letters == LEARNT
    groups = cheap_groups(looks, arguments.small) if cheap else groups_of(looks, sizes, arguments.small)
    seconds = arguments.minutes * 60 - (time.monotonic() - STARTED) - sizes["reserve"]
    clock = Clock(seconds, steps=TINY_STEPS if arguments.small else arguments.steps)
    speech = speech_of(model, folder / "llm" / "tokenizer.json")
    with tempfile.TemporaryDirectory() as films, SignSource(Path(films), speech, arguments.workers) as source:
        course = Course(model, source, groups, settings, out, clock)
        print(f"training on {device} for {seconds:.0f} s from {time.monotonic() - STARTED:.1f} s on", flush=True)
        course.train()
        print(f"{clock.step} steps; measuring", flush=True)
        source.cancel()
        found = measure(course, looks, groups[0], sizes["dev"], 1 if arguments.small else 9)
    write_json(out / "result.json", {"steps": clock.step, "development": found})
    for name, rows in found.items():
        for look, values in rows.items():
            shares = "  ".join(f"{kind} {value:.2f}" for kind, value in values.items())
            print(f"{name:6} {look:22} {shares}")
    print(f"done after {time.monotonic() - STARTED:.1f} s", flush=True)


def parser() -> argparse.ArgumentParser:
    options = program_parser(__doc__)
    options.add_argument("out", type=Path)
    options.add_argument("--minutes", type=float, default=5.0, help="in all (default 5)")
    options.add_argument("--steps", type=int, help="at most so many, where there is time for more")
    options.add_argument("--small", action="store_true", help="the same in small: a few steps on a few tiny videos")
    options.add_argument(
        "--model", default=BUNDLED, help="folder of the model to start from (default: the bundled one)"
    )
    options.add_argument("--llm", type=Path, help="weights to start from in place of its LLM's, from an earlier run")
    options.add_argument(
        "--letters",
        nargs="?",
        const=LEARNT,
        choices=[LEARNT, KEPT],
        help="choosing an option's letter, and counting: new to the LLM (default: learnt), or known and kept",
    )
    options.add_argument("--lr", type=float, help=f"default {CourseConfig.lr}; with --letters {LETTERS_LR}")
    options.add_argument("--workers", type=int, default=12, help="processes that make videos (default 12)")
    options.add_argument("--seed", type=int, default=60, help=f"of the videos; not {DEVELOPMENT_SEED}")
    options.add_argument("--device", help="default: a GPU where there is one")
    return options


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
