"""Writes a trained MLLM as it is bundled: in bf16, with the settings that `ask` and `am.load()` take from it.

python scripts/bundle_mllm.py mllm_training/mixed/merged mllm_training/model --llm mllm_training/signs/llm.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.storage.files import read_json, write_json
from autogaze_mllm.finetuning.on_device.course import load_llm
from autogaze_mllm.gaze.autogaze.pretrained import BUNDLED
from autogaze_mllm.mllm.saving import SETTINGS_FILE, save_base
from autogaze_mllm.signvid.plan import GAIN, TILES_4K


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("model", type=Path, help="folder of the trained model")
    parser.add_argument("folder", type=Path, help="what to write")
    parser.add_argument("--llm", type=Path, help="weights in place of its LLM's, from train_signvid_llm.py")
    parser.add_argument("--ratio", type=float, default=0.147, help="share of a frame's patches that may be kept")
    parser.add_argument("--gaze", default="pixel-diff", choices=(BUNDLED, "pixel-diff"), help="it looks through")
    return run_program(parser, bundle)


def bundle(arguments: argparse.Namespace) -> None:
    settings = {"frames": 16, "max_tiles": TILES_4K, "enlarge": False, "ratio": arguments.ratio}
    if arguments.gaze == BUNDLED:
        settings |= {"loss": 0.0, "gain": GAIN}  # as in benchmarks/signvid.py, which says why
    model = am.wrap(arguments.model, "pixel-diff", cache=False, dtype=torch.bfloat16, **settings)
    if arguments.llm is not None:
        base: Any = model.base
        load_llm(base.llm, arguments.llm)
    save_base(model, arguments.folder, "")
    if arguments.gaze == BUNDLED:  # the gaze model that comes with the package is named, not copied
        path = arguments.folder / SETTINGS_FILE
        write_json(path, {**read_json(path), "gaze": {"name": BUNDLED}})
    size = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file())
    print(f"{arguments.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
