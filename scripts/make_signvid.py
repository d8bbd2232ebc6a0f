"""Writes SignVid: the benchmark in HLVid's layout, or training samples for `autogaze-mllm finetune`.

Whatever is chosen by its accuracy (a learning rate, a stage of training, a share of patches) is chosen on the train
split in the same layout (--dev), whose videos no training sample shows; the test split is asked once, at the end.

python scripts/make_signvid.py benchmarks/data/signvid                        # the test split: 51 videos, 510 questions
python scripts/make_signvid.py benchmarks/data/signvid-dev --dev              # as many of the train split
python scripts/make_signvid.py data --train stills --size 224x224 --frames 1 --signs 6 --videos 8000 --questions 1
python scripts/make_signvid.py --check benchmarks/data/signvid                # can its signs be read, full and shrunk?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import add_settings, size_of, values_of
from autogaze_mllm.common.storage.json_text import parse_object
from autogaze_mllm.signvid import SignVidConfig, VideoShape, write_signvid
from autogaze_mllm.signvid.conversations import TURNS, write_conversations
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED, stored_recipe
from autogaze_mllm.signvid.legible import check_legible
from autogaze_mllm.signvid.plan import Split


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("folder", type=Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dev", action="store_true", help="write the train split, for development")
    what.add_argument("--train", metavar="NAME", help="write training samples FOLDER/NAME.jsonl instead")
    what.add_argument("--check", action="store_true", help="only read the signs of the data set in FOLDER")
    parser.add_argument("--size", default="1344x1344", help="WIDTHxHEIGHT, up to 3840x2160")
    add_settings(parser, VideoShape)
    add_settings(parser, SignVidConfig)
    parser.add_argument("--turns", type=int, default=TURNS, help="of a conversation at most, with --train")
    parser.add_argument("--look", help="of training samples: pixel-diff, or json with settings")
    parser.add_argument("--seed", type=int, help=f"default 0, and {DEVELOPMENT_SEED} with --dev")
    parser.add_argument("--workers", type=int, default=2)
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.check:
        found = check_legible(arguments.folder, stored_recipe(arguments.folder))
        print(f"{found.n} signs: {100 * found.full:.0f} % read at full size, {100 * found.shrunk:.0f} % at a third")
        return
    shape = VideoShape(*size_of(arguments.size), **values_of(arguments, VideoShape))
    seed = (DEVELOPMENT_SEED if arguments.dev else 0) if arguments.seed is None else arguments.seed
    split: Split = "train" if arguments.train or arguments.dev else "test"
    recipe = SignVidConfig(shape, split, seed=seed, **values_of(arguments, SignVidConfig))
    options = {"workers": arguments.workers, "progress": True}
    if arguments.train:
        look = arguments.look
        if look and look.startswith("{"):
            look = parse_object(look, "--look")
        written = {"turns": arguments.turns, "look": look, **options}
        print(write_conversations(arguments.folder, arguments.train, recipe, **written))
    else:
        print(write_signvid(arguments.folder, recipe, **options))


if __name__ == "__main__":
    sys.exit(main())
