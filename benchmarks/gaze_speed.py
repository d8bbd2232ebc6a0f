"""Speed and memory of gazing: the decoding engine beside the plain reference decoder, in the same run.

For every batch size, budget, number format and way of starting steps (--captures): seconds for each 16-frame clip, peak
memory above the model and its input, floating-point operations and their share of the machine's measured matmul rate,
and the same for the reference decoder of the tests (dense masks, concatenated caches, every token through every layer),
which runs on fewer clips. On the CPU each row has a process of its own, whose peak memory is its own; a device counts
its memory by itself, so there one process does. What does not fit is a row that says so.
Without --gaze the weights are random: neither time nor memory depend on them without a stop rule. With trained weights,
--loss switches the stop rule on, and the agreement of bf16 with fp32 means something: the share of ids that both keep,
and the error of the mosaic painted from what bf16 keeps over that of what fp32 keeps, on the same clips.
What is measured is the model alone. For models that ask for denoised clips, what denoising takes is measured, too, and
for guided ones the seconds with the guidance.

    python benchmarks/gaze_speed.py --out benchmarks/results/gaze_speed_cpu.json
    python benchmarks/gaze_speed.py --gaze bundled --videos FOLDER --dtypes bf16 --batches 16 --ratios 0.1,0.75
    python benchmarks/gaze_speed.py --gaze bundled --batches 1,8,32,128,512 --captures graphs,off --minutes 2
"""

from __future__ import annotations

import argparse
import functools
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
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.revisions import at_revisions, revision_option
from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.drawing.plots import legend, panels, save_png
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.json_text import to_json
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.denoising import denoised
from autogaze_mllm.training.data.clips import find_videos
from autogaze_mllm.training.reconstruction.clips import read_clips
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.video.synthetic import moving_scene
from reference_decoder import Reference

FRAMES = 16
PRESET = (0.2, *[0.06] * 15)
DISTINCT = 32  # generated clips; larger batches repeat them
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


@functools.cache
def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations in a second of a large square product."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, 10, 10, device)


def read(model: am.AutoGaze, count: int, videos: str | None, device: torch.device | str = "cpu") -> torch.Tensor:
    """Clips (count, 16, 3, H, W) at the model's largest scale, preprocessed: of generated scenes, or one of each video
    (of val/, where there is one), from the first again where there are too few."""
    height, width = model.grid.scales[-1]
    if videos is None:
        distinct = range(min(count, DISTINCT))
        scenes = (np.stack(list(moving_scene(width, height, FRAMES, seed=seed))) for seed in distinct)
        found = [torch.from_numpy(scene).permute(0, 3, 1, 2) for scene in scenes]
    else:
        paths = (find_videos(videos, "val") or find_videos(videos))[:count]
        found = [clip for path in paths for clip in read_clips(path, model.grid, FRAMES) if len(clip) == FRAMES]
    if not found:
        raise InputError(f"{videos}: no videos of {FRAMES} frames there")
    distinct = model.processor.normalize(torch.stack(found[:count]).to(device).float() / 255)
    return distinct[torch.arange(count, device=device) % len(distinct)]


def mosaic_error(model: am.AutoGaze, video: torch.Tensor, info: am.GazingInfo) -> float:
    """Mean over clips and frames, in the unit of the model's own loss."""
    return float(MosaicTask(model.grid, model.processor)(video, info).loss.mean())


def kept(info: am.GazingInfo) -> list[set[int]]:
    """Of each row, the ids that it keeps."""
    rows = zip(info.gazing_pos.cpu(), info.if_padded_gazing.cpu(), strict=True)
    return [set(ids[~padded].tolist()) for ids, padded in rows]


def build(arguments: argparse.Namespace, dtype: torch.dtype) -> tuple[am.AutoGaze, am.AutoGaze]:
    """The model in float32, and the same weights in `dtype`."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    (source,) = at_revisions(arguments.revision, arguments.gaze)
    plain = am.AutoGaze.from_pretrained(source) if source else am.AutoGaze()
    plain = plain.eval().to(device, torch.float32)
    model = am.AutoGaze(plain.config).eval().to(device)
    model.load_state_dict(plain.state_dict())
    return plain, model.to(dtype)


_references: dict[str, dict[str, Any]] = {}  # by ratio, of this process


@torch.no_grad()
def measure(arguments: argparse.Namespace, batch: int, ratio: str, dtype: str, capture: str | None) -> dict[str, Any]:
    device = torch.device(arguments.device)
    plain, model = build(arguments, DTYPES[dtype])
    video = read(plain, batch, arguments.videos, device)
    budget: float | tuple[float, ...] = PRESET if ratio == "preset" else float(ratio)

    def gaze(guidance: float = 0.0) -> am.GazingInfo:
        return model.generate(video, budget, arguments.loss, capture=capture, reward_guidance=guidance)  # type: ignore[arg-type]

    peak = PeakMemory(device)
    info = gaze()
    peak_bytes = peak.above
    spent = seconds(gaze, arguments.repeats, arguments.limit, device)
    counts = [
        round(int((~x).sum()) / batch) for x in info.if_padded_gazing.split(info.num_gazing_each_frame.tolist(), 1)
    ]
    work, rate = operations(model.config, counts), matmul_rate(DTYPES[dtype], device)
    result = {
        "batch": batch,
        "ratio": ratio,
        "dtype": dtype,
        "capture": capture or "default",
        "patches_per_clip": sum(counts),
        "seconds_per_clip": spent / batch,
        "peak_mib": peak_bytes / 2**20,
        "gflop_per_clip": work / 1e9,
        "matmul_gflops": rate / 1e9,
        "share_of_matmul_rate": work * batch / spent / rate,
    }
    if model.config.reward_guidance:
        guided = functools.partial(gaze, model.config.reward_guidance)
        result["guided_seconds_per_clip"] = seconds(guided, arguments.repeats, arguments.limit, device) / batch
    if plain.processor.do_denoise:
        result |= denoising(plain, batch, arguments)
    if dtype != "fp32":
        few = video[:DISTINCT]
        exact, rounded = (
            part.generate(few, budget, arguments.loss, capture="off", reward_guidance=0) for part in (plain, model)
        )
        same = sum(len(a & b) for a, b in zip(kept(exact), kept(rounded), strict=True))
        result["ids_as_in_fp32"] = same / sum(map(len, kept(exact)))
        errors = [mosaic_error(plain, few, selection) for selection in (rounded, exact)]
        result["mosaic_error_over_fp32"] = errors[0] / errors[1]
    if dtype == "fp32" and arguments.reference_clips and arguments.loss is None:
        if ratio not in _references:  # it is slow, and no other for larger batches
            _references[ratio] = against_reference(plain, video[: arguments.reference_clips], counts, info)
        result |= _references[ratio]
        result["speedup"] = result["reference_seconds_per_clip"] / result["seconds_per_clip"]
    return result


def denoising(model: am.AutoGaze, batch: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds that the noise of a clip takes before it is gazed, where there is none and where there is some."""
    still = torch.full((batch, FRAMES, 3, *model.grid.scales[-1]), 0.5, device=arguments.device)
    clips = {"clean": still, "noisy": still + 0.05 * torch.randn_like(still)}
    return {
        f"denoise_{name}_seconds_per_clip": seconds(
            functools.partial(denoised, clip), arguments.repeats, arguments.limit, torch.device(arguments.device)
        )
        / batch
        for name, clip in clips.items()
    }


def against_reference(
    plain: am.AutoGaze, clips: torch.Tensor, counts: list[int], info: am.GazingInfo
) -> dict[str, Any]:
    """Time and memory of the reference decoder on the same clips and device, and the share of ids it chooses too."""
    device = clips.device
    with device:  # the reference makes its masks where it is told to
        reference = Reference(plain.config.to_dict(), plain.state_dict())
        peak = PeakMemory(device)
        expected = None

        def generate() -> None:
            nonlocal expected
            expected = reference.generate(clips, counts)

        if device.type != "cpu":
            generate()  # warm-up: the first call loads kernels
        _synchronize(device)
        start = time.perf_counter()
        generate()
        _synchronize(device)
        spent = time.perf_counter() - start
    assert expected is not None
    frame = torch.repeat_interleave(torch.arange(FRAMES), torch.tensor(counts)).to(device) * reference.size
    return {
        "reference_seconds_per_clip": spent / len(clips),
        "reference_peak_mib": peak.above / 2**20,
        "reference_clips": len(clips),
        "ids_as_in_reference": (info.gazing_pos[: len(clips)] == expected.ids + frame).float().mean().item(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "batch  ratio   dtype  steps     s/clip  clips/s  share of matmul  peak MiB  speed-up over the reference or "
        "nearness to fp32"
    ]
    for row in rows:
        start = f"{row['batch']:>5}  {row['ratio']:<6}  {row['dtype']:<5}  {row['capture']:<7}"
        if "error" in row:
            lines.append(f"{start}  {row['error']}")
            continue
        last = "-"
        if "speedup" in row:
            last = f"{row['speedup']:.1f}x ({row['reference_clips']} clips)"
        elif "ids_as_in_fp32" in row:
            last = f"{row['ids_as_in_fp32']:.1%} of the ids, mosaic error x {row['mosaic_error_over_fp32']:.4f}"
        lines.append(
            f"{start}  {row['seconds_per_clip']:>7.4f}  {1 / row['seconds_per_clip']:>7.1f}  "
            f"{row['share_of_matmul_rate']:>15.1%}  {row['peak_mib']:>8.0f}  {last}"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Clips a second against the batch, a line for each budget, format and way of starting steps."""
    ratios = list(dict.fromkeys(row["ratio"] for row in rows))
    figure, axes = panels(len(ratios))
    for axis, ratio in zip(axes, ratios, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row["ratio"] == ratio and "error" not in row:
                point = (row["batch"], 1 / row["seconds_per_clip"])
                lines.setdefault(f"{row['dtype']}, steps: {row['capture']}", []).append(point)
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), "o-", label=name)
        name = "0.2, then 0.06" if ratio == "preset" else ratio
        axis.set(xscale="log", yscale="log", xlabel="clips gazed together", ylabel="clips a second")
        axis.set_title(f"kept share {name}")
        axis.grid(alpha=0.3, which="both")
        legend(axis)
    figure.suptitle(title)
    save_png(figure, path)


def measured(arguments: argparse.Namespace, row: tuple[str, str, str, str]) -> dict[str, Any]:
    """One row: in this process where the device counts its own memory, in one of its own on the CPU."""
    batch, ratio, dtype, capture = row
    if torch.device(arguments.device).type == "cpu":
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", ",".join(row)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        return json.loads(done.stdout)
    try:
        return measure(arguments, int(batch), ratio, dtype, None if capture == "default" else capture)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"batch": int(batch), "ratio": ratio, "dtype": dtype, "capture": capture, "error": "out of memory"}


def write(result: dict[str, Any], path: Path | None) -> None:
    """After every row, so that nothing is lost when a long run is ended."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(result, indent=2) + "\n")
    if any("error" not in row for row in result["rows"]):
        plot(result["rows"], path.with_suffix(".png"), f"Gazing clips of {FRAMES} frames: {result['machine']}")


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--ratios", default="0.1,0.25,0.75,preset")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--captures", default="default", help="how decoding steps are started: off, graphs, compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gaze", help="folder or id of a gaze model (default: random weights)")
    revision_option(parser)
    parser.add_argument("--videos", help="folder, video or list that clips are read from (default: generated scenes)")
    parser.add_argument("--loss", type=float, help="stop rule, for trained weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20, help="seconds for the repeats of one measurement")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no row is begun after so many")
    parser.add_argument(
        "--reference-clips", type=int, default=1, help="clips for the reference decoder; 0: leave it out"
    )
    parser.add_argument("--out", type=Path, help="json file; a plot is written beside it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.measure:
        batch, ratio, dtype, capture = arguments.measure.split(",")
        chosen = None if capture == "default" else capture
        print(to_json(measure(arguments, int(batch), ratio, dtype, chosen)))
        return
    start = time.monotonic()
    rows: list[dict[str, Any]] = []
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": machine(arguments.device),
        "frames_per_clip": FRAMES,
        "rows": rows,
    }
    names = (arguments.captures, arguments.dtypes, arguments.ratios, arguments.batches)
    captures, dtypes, ratios, batches = (text.split(",") for text in names)
    wanted = [(b, r, d, c) for c in captures for r in ratios for d in dtypes for b in batches]
    for number, row in enumerate(wanted):
        if time.monotonic() - start > 60 * arguments.minutes:
            print(f"{len(wanted) - number} rows left out: {arguments.minutes} minutes are over", flush=True)
            result["left_out"] = len(wanted) - number
            break
        rows.append(measured(arguments, row))
        print(table(rows) if len(rows) == 1 else table(rows[-1:]).splitlines()[1], flush=True)
        write(result, arguments.out)
    write(result, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
