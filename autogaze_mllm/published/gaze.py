"""The published `AutoGaze`, its configuration and its image processor: ours, called as there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from ..common.errors import InputError
from ..gaze.autogaze import config as configs
from ..gaze.autogaze import model as models
from ..gaze.autogaze import processor as processors
from ..gaze.autogaze.decoding.state import GazeState
from ..gaze.grid import Side, positions_to_masks, sides_of
from ..gaze.selection import read_selection

TOP_K = 50  # of the published sampling, by transformers' default
Frames = Iterable[np.ndarray | Image.Image]


class Scales(tuple[int, ...]):
    """Sides in pixels, which also answer as the published text "32+64+112+224"."""

    def __str__(self) -> str:
        return "+".join(map(str, tuple(self)))

    def split(self, separator: str) -> list[str]:
        return str(self).split(separator)


class AutoGazeConfig(configs.AutoGazeConfig):
    """Read with the published names. Of keys and values as config.json has them: `AutoGazeConfig.from_dict`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", Scales(self.scales))
        super().__post_init__()

    @property
    def gaze_model_config(self) -> SimpleNamespace:
        stored = self.to_dict()["gaze_model_config"]
        connector = SimpleNamespace(**stored["connector_config"])
        parts = {
            "vision_model_config": self.encoder,
            "gaze_decoder_config": self.decoder,
            "connector_config": connector,
        }
        return SimpleNamespace(**stored | parts)

    @property
    def gazing_ratio_config(self) -> dict[str, Any]:
        return self.budget.to_dict()["gazing_ratio_config"]

    @property
    def gazing_ratio_each_frame_config(self) -> dict[str, Any]:
        return self.budget.to_dict()["gazing_ratio_each_frame_config"]

    @property
    def task_loss_requirement_config(self) -> dict[str, Any]:
        return self.budget.to_dict()["task_loss_requirement_config"]

    @property
    def has_task_loss_requirement_during_training(self) -> bool:
        return self.budget.use_requirement_training

    @property
    def has_task_loss_requirement_during_inference(self) -> bool:
        return self.budget.use_requirement_inference


class AutoGazeImageProcessor(processors.AutoGazeImageProcessor):
    """Called on frames of a video, it answers with `.pixel_values`."""

    def __call__(  # type: ignore[override]
        self, images: Frames | Iterable[Frames], return_tensors: str | None = None, **changes: Any
    ) -> BatchFeature:
        """images: frames (H, W, 3) uint8 of one video, or a list of such videos. -> pixel_values: a list of videos,
        each a list of float32 arrays (3, h, w); with return_tensors "pt" or "np" one tensor (videos, T, 3, h, w).

        changes: fields that are to be others in this call, such as size=(392, 392).
        """
        fields = {one.name for one in dataclasses.fields(self)}
        if unknown := sorted(changes.keys() - fields):
            raise InputError(
                f"image processor: unknown argument {', '.join(unknown)} (known: {', '.join(sorted(fields))})"
            )
        process = dataclasses.replace(self, **changes) if changes else self
        given = list(images)
        nested = bool(given) and isinstance(given[0], (list, tuple))
        if not given or not all(len(video) for video in (given if nested else [given])):  # type: ignore[arg-type]
            raise InputError("image processor: there are no frames")
        videos: Any = given if nested else [given]
        pixels = [
            [frame.numpy() for frame in super(AutoGazeImageProcessor, process).__call__(video)] for video in videos
        ]
        if return_tensors is None:
            return BatchFeature({"pixel_values": pixels})
        if return_tensors not in ("pt", "np"):
            raise InputError(f"image processor: return_tensors {return_tensors!r} is not 'pt' or 'np'")
        whole = np.stack([np.stack(video) for video in pixels])
        return BatchFeature({"pixel_values": torch.from_numpy(whole) if return_tensors == "pt" else whole})

    preprocess = __call__


@dataclass(frozen=True)
class PastKeyValues:
    """What a streaming call hands to the next, as `past_key_values`: the state itself, and the other three parts that
    were handed out with it, so that parts of different calls are never mixed."""

    state: GazeState
    parts: tuple[Any, ...]


class AutoGaze(models.AutoGaze):
    """Called as the published model: `model({"video": video}, gazing_ratio=0.75, task_loss_requirement=0.7)`."""

    config: AutoGazeConfig
    thread_safe = True
    identity = models.AutoGaze.identity

    def __init__(
        self,
        config: configs.AutoGazeConfig | None = None,
        processor: processors.AutoGazeImageProcessor | None = None,
    ) -> None:
        config, kind = config or AutoGazeConfig(), configs.AutoGazeConfig
        named = AutoGazeConfig(**{one.name: getattr(config, one.name) for one in dataclasses.fields(kind)})
        super().__init__(named, processor)
        self.processor = AutoGazeImageProcessor(**vars(self.processor))

    @property
    def scales(self) -> list[Side]:
        return sides_of(self.grid)

    @property
    def num_vision_tokens_each_frame(self) -> int:
        return self.grid.size

    @property
    def num_vision_tokens_each_scale_each_frame(self) -> list[int]:
        return list(self.grid.counts)

    @property
    def frame_sampling_rate(self) -> int:
        """Frames of a video that one step of gazing looks at."""
        return self.config.encoder.temporal_patch_size

    def forward(
        self,
        inputs: Mapping[str, Any],
        target_scales: Any = None,
        target_patch_size: int | None = None,
        gazing_info: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        gazing_ratio: Any = None,
        task_loss_requirement: Any = None,
        generate_only: bool = False,
        use_cache: bool = False,
        past_key_values: PastKeyValues | None = None,
        past_inputs_embeds: Any = None,
        past_attention_mask: Any = None,
        past_conv_values: Any = None,
    ) -> dict[str, Any]:
        """Selects patches, and scores them unless generate_only.

        inputs: {"video": (B, T, 3, H, W)}, preprocessed. gazing_info: score these positions instead of choosing any.
        Others as in `am.AutoGaze.generate`; in training mode choices are drawn from the 50 best at `temperature`.
        -> the published keys, None where there is nothing, and those of `am.GazingInfo`. With use_cache four past_*
        come back (past_input_embeds without an s), to be given together to the call on the frames that follow.
        """
        video = inputs.get("video") if isinstance(inputs, Mapping) else None
        if not isinstance(video, torch.Tensor):
            raise InputError('the gaze model is called with {"video": tensor (B, T, 3, H, W)}')
        past = _joined(past_key_values, past_inputs_embeds, past_attention_mask, past_conv_values)
        if past is not None and not generate_only:
            raise InputError("past_* need generate_only=True: probabilities are those of a whole clip")
        if gazing_info:
            found: dict[str, Any] = self._labels(gazing_info)
        else:
            top_k = max(TOP_K, self.config.heads_per_step) if self.training else None
            found = self.generate(
                video,
                gazing_ratio,
                task_loss_requirement,
                target_scales=target_scales,
                target_patch_size=target_patch_size,
                temperature=float(temperature),
                top_k=top_k,
                state=past,
                return_state=use_cache,
            )
        log_probs, losses = (None, None) if generate_only else self.score(video, found)
        chosen = {name: value for name, value in found.items() if name != "state"}
        scored = {"log_action_probs": log_probs, "task_loss_prediction": losses}
        return {**_PUBLISHED, **chosen, **scored, **self._past(found.get("state"))}

    def _labels(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Positions that the caller gives, with the masks that belong to them."""
        selection = read_selection(given, given.get("grid") or self.grid, "the gaze model")
        grid = given.get("grid") or self.grid
        mask = positions_to_masks(selection.index, selection.keep, selection.frame, len(selection.counts), grid)
        about = {
            "scales": sides_of(grid),
            "num_vision_tokens_each_frame": grid.size,
            "frame_sampling_rate": self.frame_sampling_rate,
            "has_task_loss_requirement": given.get("task_loss_requirement") is not None,
        }
        return {**given, "if_padded_gazing": given["if_padded_gazing"].bool(), "gazing_mask": mask, **about}

    def _past(self, state: GazeState | None) -> dict[str, Any]:
        if state is None:
            return {}
        waiting = torch.arange(state.unfed.shape[1], device=state.unfed.device)[None] < state.unfed_counts[:, None]
        slots = torch.arange(state.keys[0].shape[2], device=state.lengths.device)[None] < state.lengths[:, None]
        embeds = self.gazing_model.gaze_decoder.embed(state.unfed.clamp(0, self.config.end_id)).detach()
        parts = (embeds, torch.cat([slots, waiting], dim=1), state.conv)
        names = ("past_input_embeds", "past_attention_mask", "past_conv_values")
        return {"past_key_values": PastKeyValues(state, parts), **dict(zip(names, parts, strict=True))}


_PUBLISHED: dict[str, Any] = dict.fromkeys(
    (
        "gazing_pos",
        "log_action_probs",
        "gazing_mask",
        "scales",
        "frame_sampling_rate",
        "num_vision_tokens_each_frame",
        "num_gazing_each_frame",
        "if_padded_gazing",
        "task_loss_prediction",
        "has_task_loss_requirement",
        "task_loss_requirement",
        "past_key_values",
        "past_input_embeds",
        "past_attention_mask",
        "past_conv_values",
    )
)


def _joined(past: PastKeyValues | None, *parts: Any) -> GazeState | None:
    """The state that the four past_* arguments hold. Raises InputError where they are not those of one call."""
    if past is None and all(part is None for part in parts):
        return None
    if not isinstance(past, PastKeyValues) or any(
        mine is not given for mine, given in zip(past.parts, parts, strict=True)
    ):
        raise InputError(
            "past_key_values, past_inputs_embeds, past_attention_mask and past_conv_values go together: give all four "
            "of one earlier result, or none"
        )
    return past.state
