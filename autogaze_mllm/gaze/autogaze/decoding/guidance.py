"""Reward-guided decoding: the decoder's scores, and beside them what each patch would really bring.

The decoder has to keep in mind what earlier patches have shown. The picture that they give can be painted instead, and
what every patch would add to it is known in closed form (`pictures.gains`). So a patch is scored by

    ln p(patch) + weight * ln gain(patch),

the maximum of a product of two experts (Hinton 2002). The loss of the picture is known as well: where the model
predicts just that loss, the stop rule goes by what is measured. Where a gain ends frames, it counts what can be seen.

Shapes: B rows, T frames, K heads per step, V ids (the last one means "end"), S the side of the grid's largest scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ....common.errors import InputError
from ....common.pixels import resize_bicubic
from ...grid import PatchGrid
from ...pictures.gains import ALL, LOSS, TIE, Counted, MosaicFrame, Rows, mosaic_tables
from ...pictures.mosaic import BLANK
from ..config import MOSAIC_TASK, AutoGazeConfig
from ..processor import AutoGazeImageProcessor
from .state import GazeState


@dataclass(frozen=True)
class Guidance:
    """How a call is guided. weight: of the gains, above 0; measure: what they count; measures_loss: whether the stop
    rule asks for the picture's own loss; loss_besides: whether that has to be kept beside what gains count; least_gain:
    a frame ends once no patch brings more (None: that ends none)."""

    grid: PatchGrid
    weight: float
    measure: Counted
    measures_loss: bool
    loss_besides: bool
    least_gain: float | None


@dataclass(frozen=True)
class Watched:
    """What a guided call looks at. video: (B, T, 3, S, S), float32, preprocessed; canvas: (B, 3, S, S) the picture of
    the frames before."""

    guidance: Guidance
    video: torch.Tensor
    canvas: torch.Tensor


def guidance_of(config: AutoGazeConfig, weight: float | None, state: GazeState | None, asks: bool) -> Guidance | None:
    """weight: None for the configuration's; state: what the call goes on from; asks: whether a loss may end frames.
    InputError for what does not fit."""
    weight = config.reward_guidance if weight is None else weight
    if not 0 <= weight < math.inf:
        raise InputError(f"reward_guidance must be 0 or more and finite, got {weight}")
    if not weight:
        return None
    if config.encoder.temporal_patch_size != 1:
        raise InputError("this gaze model selects for several frames at once, which cannot be guided")
    if state is not None and state.canvas is None:
        raise InputError("the streaming state comes from a call that was not guided: give reward_guidance=0, as there")
    measures_loss = config.reconstruction_task == MOSAIC_TASK
    if config.least_gain is not None:
        return Guidance(
            config.grid, weight, "visible", measures_loss, measures_loss and asks, max(config.least_gain, TIE)
        )
    return Guidance(config.grid, weight, LOSS, measures_loss, False, TIE if measures_loss else None)


def watch(
    guidance: Guidance, processor: AutoGazeImageProcessor, video: torch.Tensor, past: GazeState | None
) -> Watched:
    """video: (B, T, 3, H, W), preprocessed, of any size. past: the state that the call goes on from."""
    frames = resize_bicubic(video.float(), *guidance.grid.scales[-1])
    if past is not None and past.canvas is not None:
        return Watched(guidance, frames, past.canvas)
    return Watched(guidance, frames, processor.normalize(torch.full_like(frames[:, 0], BLANK)))


class Guide:
    """The pictures of the rows of one call while patches are chosen. rows: room for so many, the first ones are used.

    Only `choose` runs while something may be recorded, and it changes `buffers` alone.
    """

    def __init__(self, guidance: Guidance, rows: int, device: torch.device) -> None:
        self.guidance = guidance
        self.tables = mosaic_tables(guidance.grid, device)
        scales, atoms = len(guidance.grid.scales), self.tables.covers.shape[1]
        # The picture as gains count it, and as the loss does where that may end a frame.
        measures = (guidance.measure, LOSS) if guidance.loss_besides else (guidance.measure,)
        self.frames = {
            measure: MosaicFrame(
                self.tables, torch.zeros(rows, atoms, device=device), torch.zeros(rows, scales, atoms, device=device)
            )
            for measure in measures
        }
        self.end()

    def buffers(self) -> list[torch.Tensor]:
        frames = self.frames.values()
        return [part for frame in frames for part in (frame.error, frame.after, frame.painted, frame.chosen)]

    def begin(self, watched: Watched) -> None:
        self.video, self.canvas, self.number = watched.video, watched.canvas, 0

    def end(self) -> None:
        """Forgets what the call looked at, whose memory others may want."""
        self.video = self.canvas = torch.empty(0)
        self.pictures: list[torch.Tensor] = []
        self.number = 0

    def next_frame(self) -> None:
        shown = self.video[:, self.number]
        self.pictures = self.tables.painter.pictures(shown)
        for measure, frame in self.frames.items():
            frame.restart(*self.tables.errors(shown, self.canvas, self.pictures, measure))

    def finish(self) -> None:
        """Paints what was chosen of the frame."""
        self.canvas = self.frames[self.guidance.measure].painted_on(self.canvas, self.pictures)
        self.number += 1

    def choose(
        self,
        scores: torch.Tensor,
        used: torch.Tensor,
        allowed: torch.Tensor,
        loss_threshold: torch.Tensor | None,
        started: torch.Tensor | bool,
        rows: Rows = ALL,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the heads of scores (B, K, V) choose one after the other, none of them in `used` (B, V), which gains it.

        allowed: (B, K) heads whose choice is painted; loss_threshold: (B,) the loss that is enough, where it is the
        measured one; started: (B,) whether the frame has a patch already. -> picks (B, K), and (B, K) whether the frame
        was done before: by its loss, or because no patch brings enough.
        """
        picks, met = [], []
        going = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        for head in range(scores.shape[1]):
            gains, useless = self.frames[self.guidance.measure].gains(rows), used[:, :-1]
            done = ~going
            if self.guidance.least_gain is not None:
                poor = gains <= self.guidance.least_gain
                nothing_left = poor.all(dim=1)
                useless = useless | (poor & ~nothing_left[:, None])
                done = done | nothing_left
            if loss_threshold is not None and LOSS in self.frames:
                done = done | (self.frames[LOSS].loss_of(rows) <= loss_threshold)
            going = ~(done & started)
            started = True
            worth = scores[:, head, :-1] + self.guidance.weight * gains.clamp(min=TIE).log()
            pick = worth.masked_fill(useless, -torch.inf).argmax(dim=1)
            used.scatter_(1, pick[:, None], True)
            for frame in self.frames.values():
                frame.paint(pick, going & allowed[:, head], rows)
            picks.append(pick)
            met.append(~going)
        return torch.stack(picks, dim=1), torch.stack(met, dim=1)
