"""What gaze saves in front of Qwen2.5-VL, with random weights in the published model's shapes.

    python benchmarks/qwen.py seconds --out benchmarks/results/qwen_seconds_cpu.json
    python benchmarks/qwen.py tokens --out benchmarks/results/qwen_tokens.json
    python benchmarks/qwen.py memory --out benchmarks/results/qwen_memory_cpu.json

seconds: tower and LLM of Qwen2.5-VL-3B cut to --layers layers each, prefill of a video of --frames frames at 2 a
second; the dense base against the gazed one at each ratio (without a stop rule), gazing included, each the least of
--repeats alternating runs.
tokens: of 16 seconds of video at 1, 2 and 4 frames a second and several sizes, dense and gazed.
memory: of 1024 frames gazed with the family's defaults, beyond what the model holds.
The video is --video, or one that is made: textured, with parts that move.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.pixels import resize_frames
from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.mllm.tiny import tiny_tokenizer
from autogaze_mllm.video.sources import as_video
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

G = 28  # pixels to a token
QUESTION = "<video>What happens?"
SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def model_of(layers: int, small: bool) -> tuple[Any, Preprocessing]:
    """The base in the shapes of Qwen2.5-VL-3B, but for its depth and its vocabulary. small: a few channels, for
    tests."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    ids = tokenizer.convert_tokens_to_ids(SPECIAL)
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    text = {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2}
    if small:
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
        text = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    head = text["hidden_size"] // text["num_attention_heads"]
    section = [head // 8, head * 3 // 16, head * 3 // 16]
    config = Qwen2_5_VLConfig(
        vision_config={**vision, "depth": layers, "fullatt_block_indexes": [layers - 1]},
        text_config={
            **text,
            "num_hidden_layers": layers,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
            "max_position_embeddings": 128000,
        },
        vision_start_token_id=ids[0],
        vision_end_token_id=ids[1],
        image_token_id=ids[2],
        video_token_id=ids[3],
    )
    torch.manual_seed(0)
    base = Qwen2_5_VLForConditionalGeneration(config).eval()
    return base, Preprocessing(tokenizer, Qwen2VLImageProcessorPil())


def ladder(side: int) -> str:
    """Four scales whose finest has `side` pixels a side, in whole tokens."""
    cells = side // G
    return "+".join(str(max(cells // part, 1) * G) for part in (8, 4, 2, 1))


def video_of(arguments: argparse.Namespace, folder: Path, frames: int, fps: int, side: int) -> Path:
    if arguments.video is not None:
        return arguments.video
    path = folder / f"scene_{side}_{frames}_{fps}.mp4"
    if not path.exists():
        write_video(path, moving_scene(side, side, frames), fps)
    return path


@torch.no_grad()
def dense_run(model: am.GazedModel, video: Path, frames: int, side: int) -> dict[str, Any]:
    """Seconds of tower and LLM of the base itself; decoding and resizing do not count."""
    reader, wanted = as_video(video).sampled(frames)
    chunks = list(reader.read(wanted))
    pixels = torch.cat([resize_frames(chunk.frames, side, side, torch.device("cpu")) for chunk in chunks])
    item = model.family.dense_video(
        model.family.pixels.normalize(pixels.float() / 255), reader.seconds[wanted].tolist()
    )
    with model.disabled():
        inputs = model.prepare(QUESTION, [item])
        start = time.perf_counter()
        model(**inputs, logits_to_keep=1)
    return {"seconds": time.perf_counter() - start, "tokens": item.tokens}


@torch.no_grad()
def gazed_run(model: am.GazedModel, video: Path) -> dict[str, Any]:
    """Seconds of gazing, cutting, tower and LLM; decoding and resizing do not count."""
    gazed = model.gaze_video(video)
    inputs = model.prepare(QUESTION, [gazed])
    start = time.perf_counter()
    model(**inputs, logits_to_keep=1)
    forward = time.perf_counter() - start
    gaze = sum(gazed.stats["seconds"][stage] for stage in ("gaze", "gather"))
    tokens = model.stats["visual_tokens"]
    return {"seconds": forward + gaze, "gaze": gaze, "forward": forward, "tokens": tokens, "patches": len(gazed)}


def seconds(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Gazed on the video's own ladder, as by default, and on one whose finest scale is the dense size."""
    base, preprocessing = model_of(arguments.layers, arguments.small)
    rows = []
    for side in arguments.sides:
        video = video_of(arguments, folder, arguments.frames, 2, side)
        options = {"processor": preprocessing, "frames": arguments.frames, "cache": False, "loss": 0}
        kinds = [(scales, ratio) for scales in (None, ladder(side)) for ratio in arguments.ratios]
        best: dict[Any, dict[str, Any]] = {}
        for _ in range(arguments.repeats):
            for kind in (None, *kinds):
                scales, ratio = kind or (None, 1.0)
                model = am.wrap(base, arguments.gaze, ratio=ratio, scales=scales, **options)
                found = dense_run(model, video, arguments.frames, side) if kind is None else gazed_run(model, video)
                model.unwrap()
                if kind not in best or found["seconds"] < best[kind]["seconds"]:
                    best[kind] = found
        dense = best.pop(None)
        for (scales, ratio), found in best.items():
            times = dense["seconds"] / found["seconds"]
            rows.append(
                {
                    "side": side,
                    "scales": scales or "own",
                    "ratio": ratio,
                    **found,
                    "dense": dense,
                    "times_faster": times,
                }
            )
            point = f"{side} px, {scales or 'own ladder'}, ratio {ratio}"
            print(f"{point}: {found['tokens']} of {dense['tokens']} tokens, {times:.1f} times", flush=True)
    return rows


def tokens(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    base, preprocessing = model_of(1, small=True)  # tokens do not depend on weights
    rows = []
    for side in arguments.sides:
        video = video_of(arguments, folder, 64, 4, side)
        for fps in (1, 2, 4):
            for ratio in arguments.ratios:
                scales, frames = ladder(side), 16 * fps
                model = am.wrap(
                    base, arguments.gaze, processor=preprocessing, scales=scales, frames=frames, ratio=ratio, loss=0
                )
                gazed = model.gaze_video(video)
                dense = -(-frames // 2) * (side // G) ** 2
                rows.append({"side": side, "fps": fps, "ratio": ratio, "dense": dense, "gazed": len(gazed)})
                print(rows[-1], flush=True)
                model.unwrap()
    return rows


def memory(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    base, preprocessing = model_of(arguments.layers, small=True)
    model = am.wrap(
        base, arguments.gaze, processor=preprocessing, frames=arguments.frames, ratio=0.1, loss=0, cache=False
    )
    video = video_of(arguments, folder, arguments.frames, 30, arguments.sides[-1])
    model.gaze_video(am.Video(video, end=0.5))  # what is loaded at the first video is not the video's
    peak = PeakMemory()
    encoded = model.encode_video(video)
    row = {"frames": arguments.frames, "side": arguments.sides[-1], "tokens": encoded.tokens}
    row["peak_mib"] = round(peak.above / 2**20)
    print(row, flush=True)
    return [row]


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("what", choices=["seconds", "tokens", "memory"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--gaze", default="bundled")
    parser.add_argument("--sides", type=int, nargs="+", default=None, help="pixels along a frame")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--frames", type=int, default=None)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a few channels, to see that it runs")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    sides = {"seconds": [448, 896], "tokens": [448, 896, 1792], "memory": [896]}
    arguments.sides = arguments.sides or sides[arguments.what]
    arguments.frames = arguments.frames or {"seconds": 8, "tokens": 64, "memory": 1024}[arguments.what]
    with tempfile.TemporaryDirectory() as folder:
        rows = {"seconds": seconds, "tokens": tokens, "memory": memory}[arguments.what](arguments, Path(folder))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "video")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine(), "settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
