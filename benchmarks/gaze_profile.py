"""Where the time of gazing goes on a device: its kernels by the time they take, for a call of the gaze model.

For each batch and ratio: milliseconds of a call by the clock, milliseconds that the device was at work (what is missing
it waited for the host), how many kernels ran, and those that took most.

    python benchmarks/gaze_profile.py --batches 1,128 --ratios 0.1,0.009
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import autogaze_mllm as am
from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.storage.json_text import to_json
from gaze_speed import DTYPES, seconds

SHOWN = 12  # kernels of a call


def kernels(call: Any, device: torch.device) -> tuple[list[dict[str, Any]], float, int]:
    """Kernels by their time, milliseconds of all, how many ran."""
    kind = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if spent > 0:
            found.append({"kernel": event.key[:120], "milliseconds": spent / 1000, "count": event.count})
    found.sort(key=lambda kernel: -kernel["milliseconds"])
    return found[:SHOWN], sum(k["milliseconds"] for k in found), sum(k["count"] for k in found)


@torch.no_grad()
def measure(model: am.AutoGaze, batch: int, ratio: float) -> dict[str, Any]:
    height, width = model.grid.scales[-1]
    video = torch.rand(batch, 16, 3, height, width, device=model.device, dtype=model.dtype)

    def gaze() -> None:
        model.generate(video, ratio)

    for _ in range(2):  # steps are recorded when they come again
        gaze()
    spent = seconds(gaze, 5, 5, model.device)
    found, busy, count = kernels(gaze, model.device)
    return {
        "batch": batch,
        "ratio": ratio,
        "milliseconds": 1000 * spent,
        "device_milliseconds": busy,
        "kernels": count,
        "most": found,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(
            f"batch {row['batch']}, ratio {row['ratio']}: {row['milliseconds']:.1f} ms, the device at work "
            f"{row['device_milliseconds']:.1f} ms in {row['kernels']} kernels"
        )
        for kernel in row["most"][:4]:
            lines.append(f"    {kernel['milliseconds']:8.2f} ms {kernel['count']:>5} x {kernel['kernel'][:80]}")
    return "\n".join(lines)


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("--batches", default="1,128")
    parser.add_argument("--ratios", default="0.1,0.009")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="json file")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    kind = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    model = am.AutoGaze.from_pretrained("bundled").eval().to(device, DTYPES[kind])
    rows: list[dict[str, Any]] = []
    result = {"command": "python " + " ".join(sys.argv), "machine": f"{machine(device)}, {kind}", "rows": rows}
    for batch in arguments.batches.split(","):
        for ratio in arguments.ratios.split(","):
            rows.append(measure(model, int(batch), float(ratio)))
            print(table(rows[-1:]), flush=True)
            if arguments.out:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
