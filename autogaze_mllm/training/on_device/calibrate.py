"""The stop rule says what it means: frames that it ends have, on average, the loss that was asked for.

The predicted losses are the output of one linear map without a bias, so a factor on them is a factor on its weights:
nothing is added to the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from ...gaze.autogaze.model import AutoGaze
from ..tasks.mosaic_task import MosaicTask

LOSSES = (0.2, 0.4)
RATIO = 0.5  # of the patches of a frame at most; frames that need more do not count


@torch.no_grad()
def reached(gaze: AutoGaze, task: MosaicTask, frames: torch.Tensor, loss: float, batch: int = 128) -> float | None:
    """frames: (B, T, 3, S, S) uint8 -> the loss of the frames that the stop rule ended, over the one asked for."""
    ended: list[float] = []
    for part in frames.split(batch):
        pixels = part.to(gaze.device).float() / 255
        info = gaze.generate(
            gaze.processor.prepare(pixels), RATIO, loss, do_sample=False, capture="off", reward_guidance=0
        )
        result = task(task.normalize(pixels), info)
        stopped = (result.kept > 1) & (result.kept < int(RATIO * task.grid.size))
        ended += result.frame_losses[stopped].tolist()
    return float(np.mean(ended)) / loss if ended else None


def calibrate(
    gaze: AutoGaze,
    task: MosaicTask,
    frames: torch.Tensor,
    losses: Sequence[float] = LOSSES,
    rounds: int = 2,
    until: float = float("inf"),
) -> dict[str, float]:
    """Scales the weights of the loss-prediction head of `gaze`, in evaluation mode. -> what was measured. until: no
    further round is begun after this `time.monotonic()`."""
    values: dict[str, float] = {}
    for number in range(rounds):
        if time.monotonic() > until:
            break
        ratios = [reached(gaze, task, frames, loss) for loss in losses]
        known = [ratio for ratio in ratios if ratio]
        if not known:
            break
        factor = float(np.exp(np.mean(np.log(known))))
        with torch.no_grad():
            gaze.gazing_model.gaze_decoder.task_loss_prediction_head.weight.mul_(factor)
        values |= {f"reached_{loss}_round_{number}": ratio for loss, ratio in zip(losses, ratios, strict=True) if ratio}
        values["factor"] = values.get("factor", 1.0) * factor
    return values
