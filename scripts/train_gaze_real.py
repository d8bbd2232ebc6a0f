"""Trains a gaze model on packed real clips for so many minutes, on a GPU or a CPU, start and end included.

PACK is what pack_clips.py made. Labels are searched for on the device while training: the model sees clips as a camera
leaves them, the error is measured against what was to be shown. First short clips, then clips of 16 frames, then clips
that the model goes through itself; then the loss-prediction head is scaled so that the stop rule says what it means.
Writes OUT/gaze (bf16), OUT/metrics.jsonl, OUT/calibration.json. A run that was interrupted goes on with the time it had
left; one that is told to end (SIGTERM) saves first.

    python scripts/train_gaze_real.py PACK OUT --minutes 5
"""

from __future__ import annotations

import sys
import time

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.revisions import at_revisions, revision_option

STARTED = time.monotonic()

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import logging  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from autogaze_mllm import AutoGaze  # noqa: E402
from autogaze_mllm.common.errors import InputError  # noqa: E402
from autogaze_mllm.common.storage.files import write_json  # noqa: E402
from autogaze_mllm.training.config import SearchConfig, TrainingConfig  # noqa: E402
from autogaze_mllm.training.on_device.augment import TakeConfig, TakeSource  # noqa: E402
from autogaze_mllm.training.on_device.calibrate import LOSSES, calibrate, reached  # noqa: E402
from autogaze_mllm.training.on_device.loop import ClockTrainer, Stage  # noqa: E402
from autogaze_mllm.training.on_device.pack import read_pack  # noqa: E402
from autogaze_mllm.training.on_device.pool import PoolConfig  # noqa: E402
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask  # noqa: E402

SIZES = {  # of each stage: clips of a pool and of a step, and their frames; clips to calibrate on
    "cuda": {"short": (2048, 64, 4), "search": (768, 16, 16), "own": (768, 16, 16), "calibration": 64},
    "cpu": {"short": (16, 8, 4), "search": (8, 4, 16), "own": (8, 4, 16), "calibration": 24},
    "small": {"short": (4, 2, 2), "search": (2, 1, 3), "own": (2, 1, 3), "calibration": 2},
}
SMALL_STEPS = 12


def main() -> int:
    parser = program_parser(__doc__)
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="in all (default 5)")
    parser.add_argument("--steps", type=int, help="at most so many, where there is time for more")
    parser.add_argument("--small", action="store_true", help="the same in small: a few steps on a few short clips")
    parser.add_argument("--init", default="bundled", help="gaze model to start from (default bundled)")
    revision_option(parser)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--convolution-lr", type=float, default=0.05, help="share of it that convolutions learn with")
    parser.add_argument(
        "--reward-share", type=float, default=0.0, help="of the loss that is what a pick earns, and not its label"
    )
    parser.add_argument("--precision", choices=["no", "bf16"], help="default: bf16 on a GPU")
    parser.add_argument("--stages", help="those of short,search,own that are wanted (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: a GPU where there is one")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return run_program(parser, run)


def run(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    sizes = SIZES["small" if arguments.small else device.type]
    limit = 4 if arguments.small else None
    seconds = arguments.minutes * 60
    torch.backends.cudnn.benchmark = True
    real = read_pack(arguments.pack, "train", device, limit=limit)
    generated = read_pack(arguments.pack, "generated", device, limit=limit) if _has(arguments.pack, "generated") else []
    takes = TakeSource(real, generated, device, arguments.seed)
    (source,) = at_revisions(arguments.revision, arguments.init)
    gaze = AutoGaze.from_pretrained(source, device=device).float()
    print(f"{len(real)} real and {len(generated)} generated clips on {device}: {_passed():.1f} s", flush=True)
    reserve = min(max(0.08 * seconds, 25.0 if device.type == "cuda" else 4.0), 120.0)  # to calibrate and to save
    trainer = ClockTrainer(
        gaze,
        takes,
        settings_of(arguments, device),
        stages_of(sizes, arguments.stages),
        arguments.out,
        seconds - _passed() - reserve,
        steps=SMALL_STEPS if arguments.small else arguments.steps,
        save_every=60.0 if device.type != "cpu" else 300.0,
    )
    trainer.train()
    save(gaze, arguments.out)
    measured = {} if trainer.stopped else finish(gaze, takes, sizes["calibration"], arguments)
    save(gaze, arguments.out)
    write_json(arguments.out / "calibration.json", measured)
    print(f"done after {_passed():.1f} s: {measured}", flush=True)


def settings_of(arguments: argparse.Namespace, device: torch.device) -> TrainingConfig:
    precision = arguments.precision or ("bf16" if device.type == "cuda" else "no")
    return TrainingConfig(
        lr=arguments.lr,
        convolution_lr=arguments.convolution_lr,
        precision=precision,
        hint_weight=0.0,
        reward_share=arguments.reward_share,
        prediction_weight=0.5,
        relative_prediction=0.1,
        # Where nothing moves a budget is spent below any loss that is asked for: labels go down to 0.02.
        search=SearchConfig(target=(0.02, 0.8), max_patches=120, disturbance=0.2),
        seed=arguments.seed,
    )


def stages_of(sizes: dict, wanted: str | None) -> list[Stage]:
    stages = []
    for name, share, own in (("short", 0.1, 0.0), ("search", 0.2, 0.0), ("own", 0.7, 1.0)):
        clips, batch, frames = sizes[name]
        # Two short clips are cut from a take: what is read and sampled for one serves both.
        take = TakeConfig(2 * frames, (1, 8)) if name == "short" else TakeConfig(frames, (1.3, 4.3))
        stages.append(Stage(name, share, PoolConfig(clips, frames, take, own), batch))
    if wanted is None:
        return stages
    names = wanted.split(",")
    if not set(names) <= {stage.name for stage in stages}:
        raise InputError(f"--stages {wanted}: expected some of {', '.join(stage.name for stage in stages)}")
    return [stage for stage in stages if stage.name in names]


def finish(gaze: AutoGaze, takes: TakeSource, clips: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Calibrates on clean whole pictures of the training clips, and says how it came out on the validation ones."""
    task = MosaicTask(gaze.grid, gaze.processor)
    plain = dataclasses.replace(
        TakeConfig(), strides=(1.5, 3.5), whole=1.0, generated=0.0, clean=1.0, cut=0.0, shake=0.0, hold=0.0, dark=0.0
    )
    if arguments.small:
        plain = dataclasses.replace(plain, frames=2)
    takes.restart(2**31 - 1)
    end = STARTED + arguments.minutes * 60
    # A round takes a few seconds on a GPU; two of them, and a look at the validation clips, where there is time.
    measured = calibrate(gaze, task, takes.draw(clips, plain)[0], rounds=1 if arguments.small else 2, until=end - 10)
    if _has(arguments.pack, "validation") and not arguments.small and time.monotonic() < end - 6:
        held = TakeSource(read_pack(arguments.pack, "validation", gaze.device), [], gaze.device)
        frames = held.draw(clips // 2, plain)[0]
        for loss in LOSSES:
            measured[f"validation_reached_{loss}"] = reached(gaze, task, frames, loss) or 0.0
    return measured


def save(gaze: AutoGaze, out: Path) -> None:
    state = gaze.state_dict()
    half = AutoGaze(gaze.config, gaze.processor)
    half.load_state_dict(state)
    half.to(torch.bfloat16).save_pretrained(out / "gaze")


def _has(pack: Path, split: str) -> bool:
    return any((pack / split).glob("*.mp4"))


def _passed() -> float:
    return time.monotonic() - STARTED


if __name__ == "__main__":
    sys.exit(main())
