"""One question on a long 4K video, from the file to the first token, with the shapes of NVILA-8B-HD-Video.

The video is made first (3840x2160, H.264, a still background and moving parts) and is not part of the time. Weights of
the MLLM are random, those of the gaze model are the bundled ones; tiles of 392 pixels, chunks of 16 frames, as many
patches as the paper keeps of 30 FPS x 3584 pixels (0.9 %), no stop rule. Reported: seconds per stage (stages of one
thread overlap with those of another), seconds by the clock, patches, tokens, peak memory of the device. The question is
asked once on a short video to load kernels, and then on the long one.

    python benchmarks/question.py --out benchmarks/results/question_h100.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import size_of
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.mllm.native.model import NativeConfig
from autogaze_mllm.mllm.native.nvila import NvilaModel
from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.mllm.tiny import SPECIAL, tiny_tokenizer
from autogaze_mllm.video import PYAV, Decoder
from latency import SIZES
from long_video import make_video

QUESTION = "What does the sign say?"


def nvila(size: str, side: int, device: torch.device, dtype: torch.dtype) -> tuple[NvilaModel, Preprocessing]:
    """A random model of NVILA's layout. side: pixels of the tower's largest scale, a multiple of 14."""
    shapes = SIZES[size]
    hidden, inner, layers, heads = shapes.vision
    width, text_inner, text_layers, text_heads, kv_heads = shapes.text
    vision = SiglipVisionConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=shapes.vocabulary,
        hidden_size=width,
        intermediate_size=text_inner,
        num_hidden_layers=text_layers,
        num_attention_heads=text_heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1 << 21,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    ids = {"image_token_id": SPECIAL.index("<image>"), "video_token_id": SPECIAL.index("<video>")}
    facts: dict[str, Any] = {"text_config": text, "vision_config": vision, **ids}
    config = NativeConfig("nvila", "random weights", {}, **facts)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            projector = NvilaModel.make_projector(config, {}, "random weights")
            model = NvilaModel(config, SiglipVisionModel(vision), projector, Qwen2ForCausalLM(text)).eval()
    finally:
        torch.set_default_dtype(default)
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    return model, Preprocessing(tiny_tokenizer(), processor)


def measure(arguments: argparse.Namespace, gaze: str) -> dict[str, Any]:
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size, folder = arguments.size, arguments.video_folder
    width, height = size_of(arguments.pixels)
    base, processor = nvila(size, arguments.tile, device, dtype)
    settings = am.preset("nvila-hd").changed(
        frames=arguments.frames,
        ratio=arguments.ratio,
        loss=0,
        max_tiles=arguments.tiles,
        thumbnails=arguments.thumbnails,
        decoder=arguments.decoder,
    )
    model = am.wrap(base, gaze, processor=processor, settings=settings, cache=False)
    paths = {count: folder / f"{width}x{height}_{count}.mp4" for count in (arguments.warm_up, arguments.frames)}
    for count, path in paths.items():
        make_video(path, width, height, count)
    model.ask(paths[arguments.warm_up], QUESTION, max_new_tokens=1)
    memory = PeakMemory(device)
    start = time.perf_counter()
    model.ask(paths[arguments.frames], QUESTION, max_new_tokens=1)
    wall = time.perf_counter() - start
    stats = model.stats
    return {
        "gaze": gaze,
        **({} if arguments.decoder == PYAV else {"decoder": arguments.decoder}),
        "frames": stats["frames"],
        "patches": stats["patches"],
        "patches_total": stats["patches_total"],
        "visual_tokens": stats["visual_tokens"],
        "dense_tokens": stats["dense_tokens"],
        "seconds": wall,
        "stage_seconds": stats["seconds"],
        "peak_gib": memory.above / 2**30,
        "model_gib": memory.before / 2**30,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        stages = ", ".join(f"{name} {spent:.1f}" for name, spent in row["stage_seconds"].items())
        lines.append(
            f"{row['gaze']}: {row['frames']} frames, {row['patches']} of {row['patches_total']} patches, "
            f"{row['visual_tokens']} tokens; {row['seconds']:.1f} s ({stages}); "
            f"{row['peak_gib']:.1f} GiB above the model"
        )
    return "\n".join(lines)


@torch.no_grad()
def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="nvila-8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--warm-up", type=int, default=48, help="frames of the short video")
    parser.add_argument("--pixels", default="3840x2160", help="size of the video")
    parser.add_argument("--tile", type=int, default=392, help="pixels along a side of a tile")
    parser.add_argument("--tiles", type=int, default=48, help="tiles of a frame at most")
    parser.add_argument("--thumbnails", type=int, default=64)
    parser.add_argument("--ratio", type=float, default=0.009, help="share of the patches that a frame keeps")
    parser.add_argument("--gaze", default="bundled,pixel-diff", help="selectors, with commas between them")
    parser.add_argument("--decoder", choices=get_args(Decoder), default=PYAV, help="what decodes the video")
    parser.add_argument("--video-folder", type=Path, default=Path("benchmarks/data"))
    parser.add_argument("--make-only", action="store_true", help="make the videos and stop")
    parser.add_argument("--out", type=Path, help="json file")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.make_only:
        width, height = size_of(arguments.pixels)
        for count in (arguments.warm_up, arguments.frames):
            make_video(arguments.video_folder / f"{width}x{height}_{count}.mp4", width, height, count)
        return
    rows: list[dict[str, Any]] = []
    result = {"command": "python " + " ".join(sys.argv), "machine": machine(arguments.device), "rows": rows}
    for gaze in arguments.gaze.split(","):
        rows.append({**measure(arguments, gaze), "size": arguments.size, "pixels": arguments.pixels})
        print(table(rows[-1:]), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
