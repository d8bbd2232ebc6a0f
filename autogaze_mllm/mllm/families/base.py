"""What a family adapter tells: where a base model keeps its parts, how it lays pictures out in text, and what its LLM
wants to know beside embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...common.compute.offloading import execution_device
from ...common.errors import InputError, listed
from ...common.pixels import PixelFormat, resize_frames
from ...gaze.gazed_video import GazedVideo
from ...gaze.grid import PatchGrid, Side, sides_of
from ...gaze.settings import VideoSettings
from ...gaze.token_map import TokenMap
from ...vision.adapters import adapter_of, square, tower_kinds
from ...vision.tower import GazedVisionModel
from ..media import Layout, Media
from ..preprocessing import Preprocessing
from .weights_identity import weights_fingerprint


class Family(ABC):
    """Adapter around one loaded base model. It reads the base and calls it; it never changes it."""

    model_type: ClassVar[str]
    title: ClassVar[str]
    example: ClassVar[str]  # a published checkpoint
    after_media: ClassVar[str] = "\n"  # between a video or image and the question
    # What the names of each part's parameters begin with, in the base.
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "projector": ("model.multi_modal_projector.", "model.image_newline"),
        "tower": ("model.vision_tower.",),
        "llm": ("model.language_model.", "lm_head."),
    }
    raster: bool = True  # the tokens of a picture stand scale after scale, row by row; else in gaze order
    block_causal: bool = False  # the tower was trained so; else a patch sees its own frame alone, as the base
    # How visual tokens come into the LLM: as embeddings of the whole prompt, or, where the base's `generate` refuses
    # these, put in by a hook for the length of the call.
    splice: ClassVar[Literal["embeds", "hook"]] = "embeds"
    add_special_tokens: ClassVar[bool] = True  # the tokenizer's own at a prompt's start, unless it begins with one
    share_prefix: ClassVar[bool] = True  # what the LLM makes of a video does not depend on the question after it
    trained_gazed: ClassVar[bool] = False  # its published weights were trained on gazed videos
    deepstack: int = 0  # vectors of each visual token that are added to the LLM's first layers

    def __init__(self, base: Any, preprocessing: Preprocessing) -> None:
        self.base = base  # a transformers model; Any, because every family names its parts differently
        self.image_processor = preprocessing.image_processor
        self.tokenizer = preprocessing.tokenizer

    @classmethod
    def load_preprocessing(cls, source: str | Path, **hub: Any) -> Preprocessing:
        """Tokenizer and image processor from where the base model comes from."""
        return Preprocessing.from_pretrained(source, **hub)

    @classmethod
    def default_settings(cls) -> VideoSettings:
        """How videos are gazed when the user does not say."""
        return VideoSettings()

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where prompts are read. Weights may lie elsewhere: accelerate brings them along when they are used."""
        return execution_device(self.base.get_input_embeddings())

    @property
    def tower(self) -> nn.Module:
        """The vision model that sees videos."""
        return self.base.model.vision_tower

    @property
    def projector(self) -> Any:
        return self.base.model.multi_modal_projector

    @property
    def language_model(self) -> nn.Module:
        """The LLM, with or without its head."""
        return self.base.model.language_model

    @classmethod
    def part_of(cls, name: str) -> str:
        """Of which part ("tower", "projector" or "llm") a parameter of the base is, by its name there."""
        return next(part for part, starts in cls.PREFIXES.items() if name.startswith(starts))

    def vision_state(self) -> str | None:
        """Fingerprint of what decides the visual tokens of a video: all weights but the LLM's, and which adapters
        (peft) are switched on. None where the weights cannot be told."""

        def decides(name: str) -> bool:
            return not any(f".{start}" in f".{name}." for start in self.PREFIXES["llm"])  # peft may stand before them

        adapters = [
            (name, module.disable_adapters, module.active_adapters, sorted(getattr(module, "scaling", {}).items()))
            for name, module in self.base.named_modules()
            if isinstance(getattr(module, "disable_adapters", None), bool) and decides(name)  # a layer of peft's
        ]
        weights = weights_fingerprint(self.base, decides)
        return weights and weights + (str(adapters) if adapters else "")

    # -- the gazed tower -----------------------------------------------------------------------------------------

    @classmethod
    def check_tower(cls, config: Any) -> None:
        """Raises InputError when a base of this configuration has a tower that cannot be gazed."""
        kind = config.vision_config.model_type
        known = tower_kinds(in_models=True)
        if kind not in known:
            raise InputError(
                f"{cls.title} with a {kind} tower cannot be gazed; towers that can: {listed(known, 12)}, as in "
                f"{cls.example}"
            )

    def check_settings(self, settings: VideoSettings) -> None:
        """Raises InputError for settings that this base cannot take."""
        if settings.max_tiles > 1 and self.keep_prefix:
            raise InputError(
                f"{self.title} passes the class token of every frame on to its LLM, and tiles would each have one: use "
                "max_tiles=1"
            )

    @property
    def group(self) -> int:
        """Patches per side of what becomes one visual token."""
        return 1

    @property
    def keep_prefix(self) -> bool:
        """Whether the tower's class token is passed on, as the first token of its frame."""
        return False

    @property
    def patch(self) -> int:
        """Pixels along one side of what becomes one visual token."""
        return adapter_of(self.tower).patch_size * self.group

    @property
    def image_size(self) -> int:
        """Pixels along one side of the pictures that the tower was made for."""
        return adapter_of(self.tower).image_size

    def tower_defaults(self) -> dict[str, Any]:
        """scales, attn_type and frame_independent of the gazed tower: what the base's configuration says, else what its
        tower was trained with."""
        vision = self.config.vision_config
        names = {"scales": "scales", "attn_type": "attn_type", "frame_independent": "frame_independent_encoding"}
        found = {name: getattr(vision, stored, None) for name, stored in names.items()}
        default = {"attn_type": "block_causal", "frame_independent": not self.block_causal}
        return default | {name: value for name, value in found.items() if value is not None}

    def default_scales(self, grid: PatchGrid) -> list[Side] | None:
        """The gaze model's cells at each scale, repeated n times per axis, n chosen to come closest to the size of the
        tower's pictures. grid: the gaze model's.

        Whole multiples keep the gaze model's cells and the tower's patches aligned: 384 at patch 14 gives
        56+112+196+392. None: every video has its own.
        """
        rows, columns = grid.cells[-1]
        times = max(1, round(self.image_size / (max(rows, columns) * self.patch)))
        return sides_of(
            PatchGrid(tuple((r * times * self.patch, c * times * self.patch) for r, c in grid.cells), self.patch)
        )

    def make_tower(self, grid: PatchGrid, **options: Any) -> Any:
        """grid: the gaze model's. options: scales, attn_type, frame_independent, backend and compile, as those of a
        GazedVisionModel; coarse_positions, as that of an AnySizeTower."""
        if options.pop("coarse_positions", None) is not None:
            raise InputError(f"{self.title}: its tower has no rotary positions, so coarse_positions means nothing")
        return GazedVisionModel(self.tower, **options, group=self.group, keep_prefix=self.keep_prefix)

    @property
    def feature_layers(self) -> Sequence[int | None]:
        """hidden_states of the tower that the projector takes, joined on channels; None: after the final norm."""
        layers = self.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    def gazed_features(self, tower: Any, videos: Sequence[GazedVideo]) -> list[torch.Tensor]:
        """Tower features of what was kept, (n, C of all feature layers) or of groups (n, group^2, C), of each video in
        the order of its tokens.

        The tower runs once for all of them: clips never see each other, and many short videos cost as one long one.
        """
        joined = videos[0] if len(videos) == 1 else GazedVideo.concatenate(videos)
        packed = torch.cat([tower.encode(joined, layer) for layer in self.feature_layers], dim=-1)
        parts = packed.split([int(tower.rows(video).sum()) for video in videos])
        orders = [tower.token_order(video, self.raster) for video in videos]
        return [part[order.to(part.device)] for part, order in zip(parts, orders, strict=True)]

    def token_map(self, gazed: GazedVideo) -> TokenMap:
        """Where its visual tokens lie, in the order in which `gazed_features` gives them."""
        return TokenMap.of(gazed, self.raster)

    @property
    def pixels(self) -> PixelFormat:
        """Normalisation of the tower's pixels."""
        mean = getattr(self.image_processor, "image_mean", None)
        std = getattr(self.image_processor, "image_std", None)
        return PixelFormat(tuple(mean), tuple(std)) if mean is not None and std is not None else PixelFormat()

    # -- from features to the prompt -----------------------------------------------------------------------------

    def gazed_count(self, counts: list[int]) -> int:
        """Visual tokens of a gazed video whose pictures (frames, then thumbnails) keep this many patches each."""
        return sum(counts) + (sum(count > 0 for count in counts) if self.keep_prefix else 0)

    @abstractmethod
    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Features of one gazed video, as `gazed_features` gives them, counts of them for each picture -> what
        stands in the prompt (gazed_count(counts), (1 + deepstack) * D)."""

    def layout(self, video: TokenMap) -> Layout:
        """What a gazed video becomes in the prompt; its runs sum to gazed_count(video.counts)."""
        return [self.gazed_count(video.counts)]

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What the base is told of each id (B, L). answers: which of them are to be learnt; None: none is."""
        return {}

    def llm_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        media: Sequence[Sequence[Media]],
        answers: torch.Tensor | None,
    ) -> dict[str, Any]:
        """What the base takes beside embeddings of prompts (B, L) whose visual tokens are put in by us: token types,
        position_ids, ..."""
        return self.token_types(input_ids, answers)

    @property
    def packing(self) -> bool:
        """Whether several samples may stand in one row, told apart by positions that begin anew: where the LLM is told
        nothing else of what it reads."""
        own = type(self)
        return own.llm_inputs is Family.llm_inputs and own.token_types is Family.token_types

    @property
    def image_token_id(self) -> int:
        """The id that stands for an image's tokens in a prompt."""
        return self.config.image_token_id

    @property
    def video_token_id(self) -> int:
        """The id that stands for a video's tokens; families without one use the image's."""
        own = getattr(self.config, "video_token_id", None)
        return self.image_token_id if own is None else own

    def is_visual(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Which ids are placeholders of visual tokens."""
        return (input_ids == self.image_token_id) | (input_ids == self.video_token_id)

    def check_placeholders(self) -> None:
        """Raises InputError where the tokenizer does not have what stands for pictures in a prompt."""
        for kind, number in (("an image", self.image_token_id), ("a video", self.video_token_id)):
            known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 31
            token = self.tokenizer.convert_ids_to_tokens(number) if known else None
            if not isinstance(token, str) or self.tokenizer.convert_tokens_to_ids(token) != number:
                raise InputError(f"the tokenizer has no token {number!r}, which stands for {kind} in config.json")

    @property
    def context_length(self) -> int | None:
        """Tokens that the LLM was made for, if its configuration says."""
        return getattr(getattr(self.config, "text_config", None), "max_position_embeddings", None)

    # -- the base model's own way --------------------------------------------------------------------------------

    @property
    def dense_side(self) -> int:
        """Pixels along one side of a dense picture."""
        return square(self.config.vision_config.image_size, "pictures")

    def frame_pixels(self, frames: np.ndarray) -> torch.Tensor:
        """(T, H, W, 3) uint8 -> (T, 3, S, S) as a dense tower takes them, by the same resize that gaze uses."""
        side = self.dense_side
        return self.pixels.normalize(resize_frames(frames, side, side, torch.device("cpu")).float() / 255)

    @abstractmethod
    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        """The base model's own treatment of an image. alone: it is the only image of its prompt."""

    @abstractmethod
    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        """The base model's own treatment of video frames, given as `frame_pixels` makes them (T, 3, S, S), shown at
        these times."""

    @abstractmethod
    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        """Visual tokens that the base model spends on a video of this many frames. size: their height and width, for
        bases that take pictures of any size."""

    @abstractmethod
    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        """Features of dense_image / dense_video as they stand in the prompt (tokens, (1 + deepstack) * D)."""

    def dense_inputs(self, media: Sequence[Sequence[Media]]) -> dict[str, Any] | None:
        """What the base's own forward and generate take for prompts whose media are all dense; None where it cannot
        take them together, or knows no pictures."""
        joined: dict[str, list[torch.Tensor]] = {}
        for items in media:
            for item in items:
                for name, value in item.dense.items():
                    joined.setdefault(name, []).append(value)
        if any(len({part.shape[1:] for part in parts}) > 1 for parts in joined.values()):
            return None
        return {name: torch.cat(parts).to(self.device) for name, parts in joined.items()}

    # -- conversations -------------------------------------------------------------------------------------------

    @abstractmethod
    def chat(self, text: str, first: bool = True) -> str:
        """A question in the family's conversation format, for processors without a chat template. first: it begins the
        conversation; otherwise it follows an answer."""

    def answer(self, text: str) -> str:
        """An answer as it stands after `chat`, with what ends it."""
        return f"{text}{self.tokenizer.eos_token}"
