"""What the conformance tests share: a base and the same gazed at one scale, videos of which all or some is kept, and
how near logits are to be.

Always on logits: random models often answer one repeated token, whatever they see.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selectors.baselines import AllSelector
from autogaze_mllm.mllm.families import FAMILIES as KNOWN
from autogaze_mllm.mllm.native import native_class
from autogaze_mllm.mllm.preprocessing import Preprocessing
from autogaze_mllm.mllm.registry import wrapper_of

from ..files.checkpoints import VISION, write_nvila, write_vila
from .configs import Shape
from .models import FAMILIES, NAMES, build, variant_of, write_folder
from .reference import SECONDS_PER_FRAME

QUESTION = "<video>\nWhat moves?"
SEEN = 1e-2  # what must change in a logit where something else is seen
# LLaVA-OneVision pools dense videos, which needs whole grids; gazed ones are not pooled, so that it has no equal base.
EQUAL = [name for name in NAMES if name != "llava_onevision"]
# Loaded natively, gazed in an order and with an attention of their own: they have no equal base, either.
NATIVE = {"nvila": write_nvila, "vila": write_vila}
ALL = [*NAMES, *NATIVE]
ANY_SIZE = [name for name in NAMES if name.startswith("qwen")] + ["video_llama_3", "gemma4"]
PAIRS = [name for name in NAMES if name.startswith("qwen")]  # two frames are one picture of the tower
# In fp32. Where a recurrent layer cuts its chunks depends on the padding; Gemma 4 does not scale its attention down.
LOOSE = {"qwen3_5": 1e-3, "qwen3_5_moe": 1e-3, "gemma4": 5e-4}

# What the conformance table has a column for.
PROPERTIES = {
    "all": "everything kept at one scale is the base: forward and every step of `generate`, for one frame, two and odd "
    "numbers, other sizes in the configuration, tied and untied heads; where videos keep their shape, portrait and 2:1",
    "part": "a third kept, one patch of a picture, or nothing, is the base whose tower cannot see the rest",
    "scales": "of several scales, the finest is the base; where videos keep their shape, a coarse one is a small "
    "picture to the tower, and tiles stand where they lie",
    "differs": "a gazed video is not answered as a dense one",
    "off": "`disabled()` and `unwrap()` give the base bit for bit, also by `repetition_penalty` and "
    "`no_repeat_ngram_size`",
    "two": "two models in one process do not meet, not even in the middle of an answer",
    "batch": "a prompt alone is that prompt in a batch, padded left or right",
    "media": "several videos and images in a prompt are those of the base",
    "counts": "there are as many placeholders as features, also with tiles and thumbnails, and a wrong count "
    "is an error",
    "ids": "options of `generate` that look at the prompt's ids see those of the base",
    "beams": "beams and several answers to each prompt are the base's",
    "stream": "a streamer gets the prompt and each token of the answer",
    "loss": "loss and gradients of all parameters that the base's loss reaches are the base's, also by the module that "
    "fine-tuning trains",
    "causal": "in training no token of an answer sees a later one",
    "LoRA": "LoRA in tower and LLM trains, is saved, and makes another copy of the base answer alike",
    "finetune": "a fine-tuning on samples of all kinds runs from end to end, and is found again in its folder",
    "packing": "samples packed into one row are what they are apart, or packing is refused",
    "saved": "a model that was saved and loaded is the same",
    "cache": "visual tokens from the cache are those that went in, with deepstack features, map and text",
    "prefix": "questions that share what the LLM read of a video are answered as if they did not, or it is refused",
    "far": "placeholders may lie beyond the embedding table",
    "ask": "`autogaze-mllm ask` answers from a folder in the published layout, by the family's own settings",
    "traps": "what goes wrong without an error (positions, types, deepstack, order, text, norms, class tokens, "
    "attention across frames) is sprung, and noticed",
}


def written(name: str, folder: Path) -> None:
    """A model of the family in its published layout."""
    if name in NATIVE:
        NATIVE[name](folder)
    else:
        write_folder(name, folder)


def copy_of(name: str, variant: str = "plain", seed: int = 0) -> tuple[Any, Preprocessing]:
    """A base of one's own, and what prepares its inputs."""
    if name not in NATIVE:
        return build(name, variant, seed)
    with tempfile.TemporaryDirectory() as folder:
        NATIVE[name](Path(folder), seed=seed)
        native = native_class(folder)
        assert native is not None
        return native.from_pretrained(folder).eval(), KNOWN[name].load_preprocessing(folder)


built = functools.lru_cache(maxsize=None)(copy_of)


def model_type_of(name: str) -> str:
    return name if name in NATIVE else FAMILIES[name].model_type


def shape_of(name: str, variant: str = "plain") -> Shape:
    return Shape(VISION["image_size"], VISION["patch_size"]) if name in NATIVE else variant_of(name, variant).shape


def holds(name: str) -> Any:
    """Mark: this one of PROPERTIES is tested here. The test has the family as its parameter `name`."""
    assert name in PROPERTIES
    return pytest.mark.conformance(name)


def each(names: Sequence[str], quick: Sequence[str] | None = None) -> Any:
    """Parametrises by family. quick: those that are not left to the slow tests; default: all."""
    chosen = names if quick is None else quick
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in chosen else [pytest.mark.slow]) for name in names]
    )


def wrapped(name: str, variant: str = "plain", **options: Any) -> tuple[Any, am.GazedModel]:
    """A base that all tests of this process share, and the same wrapped anew, at one scale that keeps everything. What
    it was wrapped in before can no longer be used."""
    base, preprocessing = built(name, variant)
    before = wrapper_of(base)
    if before is not None:
        before.unwrap()
    own = {"scales": str(side_of(name, variant)), "gaze": "all", "cache": False, "frame_independent": True}
    return base, am.wrap(base, processor=preprocessing, **{**own, **options})


class OneScale(AllSelector):
    """Keeps all of one scale, so that the ladder of a video that keeps its shape has one."""

    def __init__(self, shape: Shape) -> None:
        self.grid = PatchGrid.of(str(shape.side), shape.patch * shape.merge)


def side_of(name: str, variant: str = "plain") -> int:
    """Pixels along a picture at the one scale."""
    return shape_of(name, variant).side


def frames_of(
    name: str, variant: str = "plain", count: int = 3, seed: int = 0, rows: int = 1, columns: int = 1
) -> np.ndarray:
    """(count, rows * side, columns * side, 3) uint8 noise."""
    side = side_of(name, variant)
    return np.random.default_rng(seed).integers(0, 256, (count, rows * side, columns * side, 3), dtype=np.uint8)


def photo(seed: int = 0, size: tuple[int, int] = (130, 90)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels_of(model: am.GazedModel, frames: np.ndarray) -> torch.Tensor:
    """(T, 3, H, W) as the tower takes them: no frame is resized here."""
    return model.family.pixels.normalize(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)


def keep_all(model: am.GazedModel, frames: np.ndarray) -> GazedVideo:
    pixels = pixels_of(model, frames)
    info = AllSelector().select(pixels[None], model.tower.grid, 1.0, None)
    times = torch.arange(len(frames)) * SECONDS_PER_FRAME
    gazed = GazedVideo.from_info(pixels[None], info, model.tower.grid, times, tubelet=model.tower.tubelet)
    return dataclasses.replace(gazed, interval=SECONDS_PER_FRAME)


def keep(model: am.GazedModel, frames: np.ndarray, kept: torch.Tensor, shuffled: bool = False) -> GazedVideo:
    """kept: (pictures, rows, columns) bool, at the one scale. shuffled: within a picture in another order than row by
    row."""
    whole = keep_all(model, frames)
    picture = torch.repeat_interleave(torch.arange(len(whole.frame_counts)), whole.frame_counts)
    rows = kept.flatten(1)[picture, whole.positions].nonzero().flatten()
    if shuffled:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))]
        rows = rows[picture[rows].argsort(stable=True)]
    counts = torch.bincount(picture[rows], minlength=len(whole.frame_counts))
    return dataclasses.replace(whole, patches=whole.patches[rows], positions=whole.positions[rows], frame_counts=counts)


def third(name: str, variant: str = "plain", frames: int = 4, seed: int = 2) -> torch.Tensor:
    """(pictures, rows, columns) bool: about a third of each picture, one patch at least, and never all of it."""
    tokens = shape_of(name, variant).tokens
    size = (-(-frames // 2) if name in PAIRS else frames, tokens, tokens)
    kept = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < 1 / 3
    kept[:, -1, :2] = torch.tensor([True, False])
    return kept


def prepared(name: str, model: am.GazedModel, text: Any, videos: Any, images: Any = None, **options: Any) -> Any:
    """Inputs without a chat template, as the references have none."""
    chat = name.startswith("paligemma")  # whose prompts have a form of their own
    return model.prepare(text, videos, images, chat=chat, **options)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).detach().abs().max())


def assert_close(name: str, found: torch.Tensor, expected: torch.Tensor, times: float = 1.0) -> None:
    """times: how much looser than usual."""
    allowed = LOOSE.get(name, 3e-5) * times * max(1.0, float(expected.detach().abs().max()) / 10)
    assert torch.isfinite(found).all()
    assert distance(found, expected) <= allowed, f"{distance(found, expected)} apart, {allowed} are allowed"
