"""Typed configuration of the gaze model, in the layout of the published `config.json`.

Notable design decisions:
- plain frozen dataclasses: no transformers config class stands in between, so a new transformers release cannot
  break loading, and no caller's dictionary is ever written to;
- a key that is absent takes the value of the released architecture (3,258,240 parameters);
- derived keys (vocabulary, end token, number of connector tokens) are computed, never stored twice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...common.errors import InputError
from ...common.storage.json_text import Fields, fits, shown
from ..grid import PatchGrid, parse_scales

RatioStrategy = Literal["fixed", "uniform", "exponential"]
FrameStrategy = Literal["uniform", "dirichlet", "self"]
RequirementStrategy = Literal["fixed", "uniform"]
PUBLISHED_TASK = "videomae"
MOSAIC_TASK = "mosaic"
WHERE = "gaze model configuration"
LARGEST = 1 << 20  # of any size or count: refused before memory is taken for it
LARGEST_SIDE = 1 << 14  # pixels of a picture


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"{WHERE}: {message}")


def _check_sizes(config: GazeEncoderConfig | GazeDecoderConfig) -> None:
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        least = 0 if one.name == "depth" else 1
        if isinstance(value, int) and not isinstance(value, bool):
            _require(least <= value <= LARGEST, f"{one.name} must lie in [{least}, {LARGEST}], got {value}")


@dataclass(frozen=True)
class GazeEncoderConfig:
    """Convolutional encoder (`vision_model_config`)."""

    hidden_dim: int = 192
    out_dim: int = 192
    depth: int = 1
    kernel_size: int = 16
    temporal_patch_size: int = 1
    trunk_temporal_kernel_size: int = 3
    trunk_spatial_kernel_size: int = 3

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(
            self.trunk_spatial_kernel_size % 2 == 1,
            f"trunk_spatial_kernel_size must be odd, got {self.trunk_spatial_kernel_size}",
        )


ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _released_rope() -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


@dataclass(frozen=True)
class GazeDecoderConfig:
    """Llama decoder with multi-token heads (`gaze_decoder_config`)."""

    hidden_size: int = 192
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict[str, Any] | None = field(default_factory=_released_rope)
    max_position_embeddings: int = 131072
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    num_multi_token_pred: int = 10
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(self.hidden_act == "silu", f"hidden_act {self.hidden_act!r} is not supported, only 'silu'")
        _require(not self.tie_word_embeddings, "tied embeddings are impossible with several heads per step")
        _require(
            self.num_attention_heads % self.kv_heads == 0,
            f"num_key_value_heads {self.kv_heads} must divide num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.head_dim is not None or self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
        )
        _require(self.head_size % 2 == 0, f"head_dim {self.head_size} must be even for rotary embeddings")
        if self.rope_scaling is not None:
            kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type", "default"))
            _require(kind in ("default", "llama3"), f"rope_type {kind!r} is not supported (default, llama3)")
            for name in ROPE_NUMBERS if kind == "llama3" else ():
                value: Any = self.rope_scaling.get(name)
                _require(
                    fits(value, float) and value > 0, f"rope_scaling: {name} must be a number above 0, got {value}"
                )
        _require(self.rope_theta > 0, f"rope_theta must be above 0, got {self.rope_theta}")

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class BudgetConfig:
    """Budgets used when a call gives neither ratio nor requirement (one object for the three published ones)."""

    ratio_training: RatioStrategy = "fixed"
    ratio_inference: RatioStrategy = "fixed"
    ratio: float = 0.5
    ratio_range: tuple[float, float] = (0.0, 1.0)
    exponential_range: tuple[float, float] = (0.0, 1.0)
    ratio_lambda: float = 10.0
    frame_training: FrameStrategy = "uniform"
    frame_inference: FrameStrategy = "uniform"
    dirichlet_alpha: float | str = 0.5
    use_requirement_training: bool = False
    use_requirement_inference: bool = False
    requirement_training: RequirementStrategy = "fixed"
    requirement_inference: RequirementStrategy = "fixed"
    requirement: float = 0.7
    requirement_range: tuple[float, float] = (0.6, 0.9)

    def __post_init__(self) -> None:
        for name, allowed in (("ratio", RatioStrategy), ("frame", FrameStrategy), ("requirement", RequirementStrategy)):
            for phase in ("training", "inference"):
                value = getattr(self, f"{name}_{phase}")
                _require(
                    value in get_args(allowed), f"unknown strategy {value!r}; known: {', '.join(get_args(allowed))}"
                )
        _require(0 <= self.ratio <= 1, f"gazing_ratio {self.ratio} is outside [0, 1]")
        for low, high in (self.ratio_range, self.exponential_range):
            _require(0 <= low <= high <= 1, f"gazing ratios from {low} to {high} are not a range inside [0, 1]")
        low, high = self.exponential_range
        _require(
            low < high or "exponential" not in (self.ratio_training, self.ratio_inference),
            f"exponential gazing ratios need a range to be drawn from, got {low} to {high}",
        )
        _require(self.ratio_lambda > 0, f"lambda must be above 0, got {self.ratio_lambda}")

    @classmethod
    def from_fields(cls, source: Fields) -> BudgetConfig:
        ratio = source.object("gazing_ratio_config")
        frame = source.object("gazing_ratio_each_frame_config")
        requirement = source.object("task_loss_requirement_config")
        default = cls()

        def span(node: Fields, stem: str, fallback: tuple[float, float]) -> tuple[float, float]:
            low, high = node.get(f"{stem}_min", float, fallback[0]), node.get(f"{stem}_max", float, fallback[1])
            return float(low), float(high)

        exponential, part = ratio.object("exponential"), "sample_strategy_during"
        return cls(
            ratio_training=ratio.get(f"{part}_training", Any, default.ratio_training),
            ratio_inference=ratio.get(f"{part}_inference", Any, default.ratio_inference),
            ratio=float(ratio.object("fixed").get("gazing_ratio", float, default.ratio)),
            ratio_range=span(ratio.object("uniform"), "gazing_ratio", default.ratio_range),
            exponential_range=span(exponential, "gazing_ratio", default.exponential_range),
            ratio_lambda=float(exponential.get("lambda", float, default.ratio_lambda)),
            frame_training=frame.get(f"{part}_training", Any, default.frame_training),
            frame_inference=frame.get(f"{part}_inference", Any, default.frame_inference),
            dirichlet_alpha=frame.object("dirichlet").get("alpha", float | str, default.dirichlet_alpha),
            use_requirement_training=source.get("has_task_loss_requirement_during_training", bool, False),
            use_requirement_inference=source.get("has_task_loss_requirement_during_inference", bool, False),
            requirement_training=requirement.get(f"{part}_training", Any, default.requirement_training),
            requirement_inference=requirement.get(f"{part}_inference", Any, default.requirement_inference),
            requirement=float(requirement.object("fixed").get("task_loss_requirement", float, default.requirement)),
            requirement_range=span(requirement.object("uniform"), "task_loss_requirement", default.requirement_range),
        )

    def to_dict(self) -> dict[str, Any]:

        def span(stem: str, limits: tuple[float, float]) -> dict[str, float]:
            return {f"{stem}_min": limits[0], f"{stem}_max": limits[1]}

        return {
            "gazing_ratio_config": {
                "sample_strategy_during_training": self.ratio_training,
                "sample_strategy_during_inference": self.ratio_inference,
                "fixed": {"gazing_ratio": self.ratio},
                "uniform": span("gazing_ratio", self.ratio_range),
                "exponential": {"lambda": self.ratio_lambda, **span("gazing_ratio", self.exponential_range)},
            },
            "gazing_ratio_each_frame_config": {
                "sample_strategy_during_training": self.frame_training,
                "sample_strategy_during_inference": self.frame_inference,
                "uniform": {},
                "dirichlet": {"alpha": self.dirichlet_alpha},
                "self": {},
            },
            "has_task_loss_requirement_during_training": self.use_requirement_training,
            "has_task_loss_requirement_during_inference": self.use_requirement_inference,
            "task_loss_requirement_config": {
                "sample_strategy_during_training": self.requirement_training,
                "sample_strategy_during_inference": self.requirement_inference,
                "fixed": {"task_loss_requirement": self.requirement},
                "uniform": span("task_loss_requirement", self.requirement_range),
            },
        }


@dataclass(frozen=True)
class AutoGazeConfig:
    """Everything that `config.json` of a gaze model says.

    Four keys are ours. `repeat_step_positions`: True (the default, what the released weights were post-trained with)
    feeds every decoding step of a frame at the positions of the last prompt slots; False counts positions on.
    `reconstruction_task`: whose loss the model predicts, `videomae` (the default, as published) or `mosaic`; the losses
    of one say nothing about the other. `reward_guidance`: weight of what a patch would really bring to the mosaic,
    beside the model's own probability (see `decoding/guidance.py`); 0 (the default, as published) leaves it to the
    model. `least_gain`: of a guided model, what a patch must bring that can be seen; a frame ends once none does.
    """

    scales: tuple[int, ...] = (32, 64, 112, 224)
    num_vision_tokens_each_frame: int = 265
    input_img_size: int = 224
    max_num_frames: int | None = None
    encoder: GazeEncoderConfig = field(default_factory=GazeEncoderConfig)
    decoder: GazeDecoderConfig = field(default_factory=GazeDecoderConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    repeat_step_positions: bool = True
    reconstruction_task: str = PUBLISHED_TASK
    reward_guidance: float = 0.0
    least_gain: float | None = None

    def __post_init__(self) -> None:
        sides = (self.input_img_size, *self.scales)
        _require(
            min(sides) > 0 and max(sides) <= LARGEST_SIDE and len(self.scales) <= 64,
            f"sides of {shown(sides)} pixels are not possible",
        )
        _require(self.encoder.out_dim == self.decoder.hidden_size, "encoder out_dim must equal decoder hidden_size")
        _require(
            self.heads_per_step <= self.num_prompt_tokens,
            f"num_multi_token_pred {self.heads_per_step} exceeds the {self.num_prompt_tokens} vision tokens of a frame",
        )
        for name in ("reward_guidance", "least_gain"):
            value = getattr(self, name) or 0.0
            _require(0 <= value < math.inf, f"{name} must be 0 or more and finite, got {value}")
        _require(self.least_gain is None or self.reward_guidance > 0, "least_gain needs reward_guidance above 0")
        _require(
            not self.reward_guidance or self.encoder.temporal_patch_size == 1,
            "reward_guidance needs a model that looks at every frame (temporal_patch_size 1)",
        )
        _ = self.grid  # refuses a token count that no patch size explains

    @property
    def num_prompt_tokens(self) -> int:
        """Vision tokens per frame fed to the decoder (P)."""
        return (self.input_img_size // self.encoder.kernel_size) ** 2

    @property
    def heads_per_step(self) -> int:
        """Tokens predicted per decoder evaluation (K)."""
        return self.decoder.num_multi_token_pred

    @property
    def end_id(self) -> int:
        return self.num_vision_tokens_each_frame

    @property
    def grid(self) -> PatchGrid:
        """The selectable patches of a frame. The patch size is the one that explains the stored token count."""
        for patch in (self.encoder.kernel_size, *range(self.scales[-1], 0, -1)):
            if self.scales[0] >= patch:
                grid = PatchGrid.of(self.scales, patch)
                if grid.size == self.num_vision_tokens_each_frame:
                    return grid
        raise InputError(
            f"gaze model configuration: no patch size gives {self.num_vision_tokens_each_frame} patches over scales "
            f"{'+'.join(map(str, self.scales))}"
        )

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], where: object = WHERE) -> AutoGazeConfig:
        """Reads the published nested layout. Raises InputError for values that cannot work together. where: what errors
        name, the file."""
        stored = Fields(source, where)
        inner = stored.object("gaze_model_config")
        sizes = stored if "num_vision_tokens_each_frame" in source else inner
        encoder, decoder = inner.object("vision_model_config"), inner.object("gaze_decoder_config")
        return cls(
            scales=parse_scales(stored.get("scales", str | int | list[int], cls.scales)),
            num_vision_tokens_each_frame=sizes.get("num_vision_tokens_each_frame", int, 265),
            input_img_size=inner.get("input_img_size", int, 224),
            max_num_frames=stored.get("max_num_frames", int | None, None),
            encoder=GazeEncoderConfig(**encoder.known(GazeEncoderConfig)),
            decoder=GazeDecoderConfig(**decoder.known(GazeDecoderConfig)),
            budget=BudgetConfig.from_fields(stored),
            repeat_step_positions=stored.get("repeat_step_positions", bool, True),
            reconstruction_task=stored.get("reconstruction_task", str, PUBLISHED_TASK),
            reward_guidance=float(stored.get("reward_guidance", float, 0.0)),
            least_gain=stored.get("least_gain", float | None, None),
        )

    def to_dict(self) -> dict[str, Any]:
        """The published layout, derived keys included, so that other readers of `config.json` understand it."""
        size = self.num_vision_tokens_each_frame
        result: dict[str, Any] = {
            "model_type": "autogaze",
            "architectures": ["AutoGaze"],
            "scales": "+".join(map(str, self.scales)),
            "num_vision_tokens_each_frame": size,
            "use_flash_attn": False,
            "attn_mode": "sdpa",
            **self.budget.to_dict(),
            "repeat_step_positions": self.repeat_step_positions,
            "reconstruction_task": self.reconstruction_task,
            "gaze_model_config": {
                "input_img_size": self.input_img_size,
                "num_vision_tokens_each_frame": size,
                "vision_model_config": dataclasses.asdict(self.encoder),
                "connector_config": {"hidden_dim": self.decoder.hidden_size, "num_tokens": self.num_prompt_tokens},
                "gaze_decoder_config": {
                    **dataclasses.asdict(self.decoder),
                    "vocab_size": size + 1,
                    "eos_token_id": size,
                },
            },
        }
        if self.reward_guidance:  # 0 is as published
            result["reward_guidance"] = self.reward_guidance
        if self.least_gain is not None:
            result["least_gain"] = self.least_gain
        if self.max_num_frames is not None:
            result["max_num_frames"] = self.max_num_frames
        return result


def rope_frequencies(config: GazeDecoderConfig) -> list[float]:
    """Angular frequency of each rotary pair, length head_size / 2.

    Plain RoPE (Su et al. 2021): theta^(-2i/d). With `llama3` scaling (Llama 3.1) long wavelengths are divided by
    `factor` and those between the two bounds are blended.
    """
    half = config.head_size // 2
    frequencies = [config.rope_theta ** (-i / half) for i in range(half)]
    scaling = config.rope_scaling
    if scaling is None or scaling.get("rope_type", scaling.get("type", "default")) == "default":
        return frequencies
    factor = scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    old_length = scaling["original_max_position_embeddings"]
    scaled = []
    for frequency in frequencies:
        wavelength = 2 * math.pi / frequency
        if wavelength > old_length / low:
            scaled.append(frequency / factor)
        elif wavelength < old_length / high:
            scaled.append(frequency)
        else:
            blend = (old_length / wavelength - low) / (high - low)
            scaled.append((1 - blend) * frequency / factor + blend * frequency)
    return scaled
