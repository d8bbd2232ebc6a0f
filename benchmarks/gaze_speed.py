"""Speed and memory of gazing: the decoding engine beside the plain reference decoder, in the same run.

For every batch size, budget and number format: seconds for each 16-frame clip, peak memory above the model and its
input, floating-point operations and their share of the machine's measured matmul rate, and the same for the reference
decoder of the tests (dense masks, concatenated caches, every token through every layer), which runs on fewer clips.
Without --gaze the weights are random: neither time nor memory depend on them without a stop rule. With trained weights,
--loss switches the stop rule on, and the agreement of bf16 with fp32 means something: the share of ids that both keep,
and the error of the mosaic painted from what bf16 keeps over that of what fp32 keeps, on the same clips.

    python benchmarks/gaze_speed.py --out benchmarks/results/gaze_speed_cpu.json
    python benchmarks/gaze_speed.py --gaze bundled --videos FOLDER --dtypes bf16 --batches 16 --ratios 0.1,0.75
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import autogaze_mllm as am
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.memory import PeakMemory
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction import read_clips
from autogaze_mllm.training.tasks.mosaic import MosaicTask
from autogaze_mllm.video.synthetic import moving_scene

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference_decoder import Reference

FRAMES = 16
PRESET = (0.2, *[0.06] * 15)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def operations(config: AutoGazeConfig, counts: list[int]) -> float:
    """Floating-point operations that a clip cannot do without: two for each weight and token, and attention over what
    is there; one pass of every token through every layer, and of the last layer only what is read out."""
    encoder, decoder, prompt, step = config.encoder, config.decoder, config.num_prompt_tokens, config.heads_per_step
    width, side = decoder.hidden_size, decoder.kv_heads * decoder.head_size
    queries = decoder.num_attention_heads * decoder.head_size
    weights_kv, weights_q = 2 * width * side, 2 * width * queries  # the latter with the output projection
    mlp = 3 * width * decoder.intermediate_size
    pixels = 3 * encoder.kernel_size**2 * encoder.temporal_patch_size * encoder.hidden_dim
    trunk = encoder.depth * encoder.hidden_dim**2
    trunk *= encoder.trunk_temporal_kernel_size * encoder.trunk_spatial_kernel_size**2
    total = 2.0 * len(counts) * prompt * (pixels + trunk + encoder.hidden_dim * encoder.out_dim)
    held = unfed = 0
    for count in counts:
        for fed in [unfed + prompt, *[step] * (-(-count // step) - 1)]:
            attention = 2 * queries * (held + fed / 2)  # of one query: with the keys, and with the values
            full = fed * (weights_kv + weights_q + mlp + attention)
            last = fed * weights_kv + weights_q + mlp + 2 * queries * (held + fed)
            total += 2 * ((decoder.num_hidden_layers - 1) * full + last)
            total += 2 * step * (config.num_vision_tokens_each_frame + 2) * width
            held += fed
        unfed = count - (-(-count // step) - 1) * step
    return total


def seconds(call: Callable[[], Any], repeats: int, limit: float, device: torch.device) -> float:
    """Median of `repeats` calls after one to warm up, fewer when they take longer than `limit` seconds together."""
    call()
    taken: list[float] = []
    while len(taken) < repeats and (not taken or sum(taken) < limit):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations in a second of a large square product."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, 10, 10, device)


def read(model: am.AutoGaze, count: int, videos: str | None) -> torch.Tensor:
    """Clips (count, 16, 3, H, W) at the model's largest scale, preprocessed: of generated scenes, or one of each video
    (of val/, where there is one), from the first again where there are too few."""
    height, width = model.grid.scales[-1]
    if videos is None:
        scenes = (np.stack(list(moving_scene(width, height, FRAMES, seed=seed))) for seed in range(count))
        found = [torch.from_numpy(scene).permute(0, 3, 1, 2) for scene in scenes]
    else:
        paths = (find_videos(videos, "val") or find_videos(videos))[:count]
        found = [clip for path in paths for clip in read_clips(path, model.grid, FRAMES) if len(clip) == FRAMES]
    if not found:
        raise InputError(f"{videos}: no videos of {FRAMES} frames there")
    return model.processor.normalize(torch.stack([found[n % len(found)] for n in range(count)]).float() / 255)


def mosaic_error(model: am.AutoGaze, video: torch.Tensor, info: am.GazingInfo) -> float:
    """Mean over clips and frames, in the unit of the model's own loss."""
    return float(MosaicTask(model.grid, model.processor)(video, info).loss.mean())


def kept(info: am.GazingInfo) -> list[set[int]]:
    """Of each row, the ids that it keeps."""
    rows = zip(info.gazing_pos.cpu(), info.if_padded_gazing.cpu(), strict=True)
    return [set(ids[~padded].tolist()) for ids, padded in rows]


@torch.no_grad()
def measure(arguments: argparse.Namespace, batch: int, ratio: str, dtype: str) -> dict[str, Any]:
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    plain = am.AutoGaze.from_pretrained(arguments.gaze) if arguments.gaze else am.AutoGaze()
    plain = plain.eval().to(device)
    video = read(plain, batch, arguments.videos).to(device)
    budget: float | tuple[float, ...] = PRESET if ratio == "preset" else float(ratio)
    model = am.AutoGaze(plain.config).eval().to(device)
    model.load_state_dict(plain.state_dict())
    model.to(DTYPES[dtype])
    need, capture = arguments.loss, arguments.capture
    peak = PeakMemory(device)
    info = model.generate(video, budget, need, capture=capture)
    peak_bytes = peak.above
    spent = seconds(
        lambda: model.generate(video, budget, need, capture=capture), arguments.repeats, arguments.limit, device
    )
    counts = [
        round(int((~x).sum()) / batch) for x in info.if_padded_gazing.split(info.num_gazing_each_frame.tolist(), 1)
    ]
    work, rate = operations(model.config, counts), matmul_rate(DTYPES[dtype], device)
    result = {
        "batch": batch,
        "ratio": ratio,
        "dtype": dtype,
        "patches_per_clip": sum(counts),
        "seconds_per_clip": spent / batch,
        "peak_mib": peak_bytes / 2**20,
        "gflop_per_clip": work / 1e9,
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": work * batch / spent / rate,
    }
    if dtype != "fp32":
        exact = plain.generate(video, budget, need)
        same = sum(len(a & b) for a, b in zip(kept(exact), kept(info), strict=True))
        result["ids_as_in_fp32"] = same / sum(map(len, kept(exact)))
        errors = [mosaic_error(plain, video, selection) for selection in (info, exact)]
        result["mosaic_error_over_fp32"] = errors[0] / errors[1]
    if dtype == "fp32" and arguments.reference_clips and device.type == "cpu" and need is None:
        clips = video[: arguments.reference_clips]
        reference = Reference(plain.config.to_dict(), plain.state_dict())
        peak = PeakMemory(device)
        start = time.perf_counter()
        expected = reference.generate(clips, counts)
        result["reference_seconds_per_clip"] = (time.perf_counter() - start) / len(clips)
        result["reference_peak_mib"] = peak.above / 2**20
        result["reference_clips"] = len(clips)
        result["speedup"] = result["reference_seconds_per_clip"] / result["seconds_per_clip"]
        frame = torch.repeat_interleave(torch.arange(FRAMES), torch.tensor(counts)) * reference.size
        result["ids_as_in_reference"] = (info.gazing_pos[: len(clips)] == expected.ids + frame).float().mean().item()
    return result


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["batch  ratio   dtype  s/clip  share of matmul  peak MiB  speed-up over the reference or nearness to fp32"]
    for row in rows:
        last = "-"
        if "speedup" in row:
            last = f"{row['speedup']:.1f}x ({row['reference_clips']} clips)"
        elif "ids_as_in_fp32" in row:
            last = f"{row['ids_as_in_fp32']:.1%} of the ids, mosaic error x {row['mosaic_error_over_fp32']:.4f}"
        lines.append(
            f"{row['batch']:>5}  {row['ratio']:<6}  {row['dtype']:<5}  {row['seconds_per_clip']:>6.3f}  "
            f"{row['share_of_matmul_rate']:>15.0%}  {row['peak_mib']:>8.0f}  {last}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--ratios", default="0.1,0.25,0.75,preset")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gaze", help="folder or id of a gaze model (default: random weights)")
    parser.add_argument("--videos", help="folder, video or list that clips are read from (default: generated scenes)")
    parser.add_argument("--loss", type=float, help="stop rule, for trained weights")
    parser.add_argument("--capture", choices=["off", "graphs", "compile"], help="how decoding steps are started")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20, help="seconds for the repeats of one measurement")
    parser.add_argument(
        "--reference-clips", type=int, default=1, help="clips for the reference decoder; 0: leave it out"
    )
    parser.add_argument("--out", type=Path, help="json file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        batch, ratio, dtype = arguments.measure.split(",")
        print(json.dumps(measure(arguments, int(batch), ratio, dtype)))
        return
    rows = []
    for batch in arguments.batches.split(","):
        for ratio in arguments.ratios.split(","):
            for dtype in arguments.dtypes.split(","):  # each in a process of its own, whose peak memory is its own
                command = [sys.executable, __file__, *sys.argv[1:], "--measure", f"{batch},{ratio},{dtype}"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
                rows.append(json.loads(done.stdout))
                print(table(rows) if len(rows) == 1 else table(rows[-1:]).splitlines()[1], flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(arguments.device),
        "capture": arguments.capture or "the default",
        "frames_per_clip": FRAMES,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
