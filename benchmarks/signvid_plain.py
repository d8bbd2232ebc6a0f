"""SignVid asked plainly: what does the red sign say? No options, so no luck: one answer in 160 is right by chance.

python benchmarks/signvid_plain.py --videos 12                    # gaze, pixel-diff, random, the frame shrunk to 448 px
python benchmarks/signvid_plain.py --videos 4 --looks all         # every patch of every tile: a minute a video
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import torch

import autogaze_mllm as am
from autogaze_mllm.environment import machine
from autogaze_mllm.errors import InputError
from autogaze_mllm.evaluation.scoring import Accuracy
from autogaze_mllm.evaluation.signvid import Recipe, Shape
from autogaze_mllm.evaluation.signvid.conversations import plainly
from autogaze_mllm.evaluation.signvid.dataset import DEVELOPMENT_SEED, video_name, write_videos
from autogaze_mllm.files import output_folder, write_json
from autogaze_mllm.gaze.checkpoint import BUNDLED

LOOKS = ("gaze", "pixel-diff", "random", "whole-448", "all")


def look(name: str, recipe: Recipe, folder: Path) -> dict[str, object]:
    """Reads every sign of every video in one way."""
    selector = {"gaze": BUNDLED, "whole-448": "all"}.get(name, name)
    model = am.load(
        cache=False,
        gaze=selector,
        frames=recipe.shape.frames,
        loss=0.0 if name in ("gaze", "random") else None,
        max_tiles=4 if name == "whole-448" else 144,
    )
    marks: list[bool] = []
    tokens, seconds = [], []
    for number in range(recipe.videos):
        start = time.perf_counter()
        seen = model.encode_video(folder / video_name(number), share_prompt=True)
        for place, (question, code) in enumerate(plainly(recipe.plan(number))):
            marks.append(model.ask(seen, question, max_new_tokens=8) == code)
            if not place:
                seconds.append(time.perf_counter() - start)
        tokens.append(seen.tokens)
        print(f"{name}: {sum(marks)} of {len(marks)} signs read", file=sys.stderr)
    return {
        "signs read": dataclasses.asdict(Accuracy.of(marks)),
        "visual_tokens": statistics.fmean(tokens),
        "first_question_s": statistics.median(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the videos (default: below benchmarks/data)")
    parser.add_argument("--videos", type=int, default=12, help="of 5 signs each")
    parser.add_argument("--looks", default=",".join(LOOKS[:-1]), help=f"some of {','.join(LOOKS)}")
    parser.add_argument("--dev", action="store_true", help="the train split, to choose settings on")
    parser.add_argument("--out", type=Path, help="json file")
    arguments = parser.parse_args()
    try:
        unknown = set(arguments.looks.split(",")) - set(LOOKS)
        if unknown:
            raise InputError(f"--looks: no {min(unknown)!r}; known: {', '.join(LOOKS)}")
        recipe = Recipe(Shape(), "train" if arguments.dev else "test", arguments.videos, 0)
        if arguments.dev:
            recipe = Recipe(Shape(), "train", arguments.videos, 0, DEVELOPMENT_SEED)
        folder = arguments.data or Path("benchmarks/data", f"signvid-plain-{recipe.split}")
        write_videos(folder, recipe, progress=True)
        found = {name: look(name, recipe, folder) for name in arguments.looks.split(",")}
    except InputError as error:
        print(f"signvid_plain: {error}", file=sys.stderr)
        return 2
    result = {
        "command": " ".join(["python benchmarks/signvid_plain.py", *sys.argv[1:]]),
        "split": f"{recipe.split}, seed {recipe.seed}",
        "machine": machine(torch.device("cpu")),
        "looks": found,
    }
    if arguments.out:
        output_folder(arguments.out.parent)
        write_json(arguments.out, result)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
