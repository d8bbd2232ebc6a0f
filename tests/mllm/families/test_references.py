"""The tiny models and their references (tests/helpers) are what the conformance tests take them for.

A reference that ignored its pictures would prove nothing about the gazed path beside it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from autogaze_mllm.mllm.preprocessing import Preprocessing

from ...helpers.families.models import NAMES, VARIANTS, build, variant_of, write_folder
from ...helpers.families.reference import (
    continued,
    dense_inputs,
    dense_logits,
    dense_step_logits,
)
from ...helpers.families.thinned import thinned_logits

CASES = [
    pytest.param(name, variant, marks=[pytest.mark.slow] if variant != "plain" else [], id=f"{name}-{variant}")
    for name in NAMES
    for variant in VARIANTS
]
SEEN = 1e-2  # what another picture must change in a logit

built = functools.lru_cache(maxsize=1)(build)


def frames(name: str, variant: str, seed: int, count: int = 3) -> torch.Tensor:
    side = variant_of(name, variant).shape.side
    generator = torch.Generator().manual_seed(seed)
    if name == "gemma4":  # whose pixels are 0 to 1
        return torch.rand(count, 3, side, side, generator=generator)
    return torch.randn(count, 3, side, side, generator=generator)


def photo(seed: int, size: tuple[int, int] = (130, 90)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("name, variant", CASES)
def test_every_frame_reaches_the_answer(name, variant):
    model, preprocessing = built(name, variant)
    video = frames(name, variant, 1)

    def last(pixels: torch.Tensor) -> torch.Tensor:
        return dense_logits(model, dense_inputs(name, model, preprocessing, "<video>what?", [pixels]))[:, -1]

    before = last(video)
    for number in range(len(video)):
        changed = video.clone()
        changed[number] = frames(name, variant, 2)[number]
        assert distance(last(changed), before) > SEEN
        pixel = video.clone()
        pixel[number, 1, 5, 7] += 1
        assert distance(last(pixel), before) > 1e-5


@pytest.mark.parametrize("name, variant", CASES)
def test_every_medium_of_a_prompt_reaches_the_answer(name, variant):
    model, preprocessing = built(name, variant)
    videos, images = [frames(name, variant, seed) for seed in (1, 2, 3)], [photo(seed) for seed in (1, 2)]

    def last(first: int, image: int, second: int) -> torch.Tensor:
        text = "see <video>, <image> and <video>which?"
        media = ([videos[first], videos[second]], [images[image]])
        return dense_logits(model, dense_inputs(name, model, preprocessing, text, *media))[:, -1]

    before = last(0, 0, 1)
    for other in ((2, 0, 1), (0, 1, 1), (0, 0, 2), (1, 0, 0)):
        assert distance(last(*other), before) > SEEN


# In fp32. Where a recurrent layer cuts its chunks depends on the padding; Gemma 4 does not scale its attention down.
LOOSE = {"qwen3_5": 1e-3, "qwen3_5_moe": 1e-3, "gemma4": 2e-4}


@pytest.mark.parametrize("name, variant", CASES)
def test_a_padded_prompt_is_that_prompt(name, variant):
    model, preprocessing = built(name, variant)
    videos = [frames(name, variant, seed) for seed in (1, 2, 3)]
    texts = ["<video>what?", "first <video>then <video>or rather <image>which of the two?"]
    alone = dense_inputs(name, model, preprocessing, texts[0], videos[:1])
    length, expected = alone["input_ids"].shape[1], dense_logits(model, alone)
    for side, place in (("left", slice(-length, None)), ("right", slice(0, length))):
        batch = dense_inputs(name, model, preprocessing, texts, videos, [photo(1)], padding_side=side)
        assert batch["attention_mask"][0].sum() == length < batch["input_ids"].shape[1]
        assert distance(dense_logits(model, batch)[:1, place], expected) < LOOSE.get(name, 5e-5)


@pytest.mark.parametrize("name, variant", CASES)
def test_the_steps_of_an_answer_are_those_of_one_forward(name, variant):
    model, preprocessing = built(name, variant)
    texts, videos = ["<video>what?", "<video>and the <image>?"], [frames(name, variant, seed) for seed in (1, 2)]
    inputs = dense_inputs(name, model, preprocessing, texts, videos, [photo(1, (60, 80))])
    answer, steps = dense_step_logits(model, inputs, preprocessing, 4)
    whole = dense_logits(model, continued(name, inputs, answer))
    assert distance(steps, whole[:, -5:-1]) < 5e-5
    assert all(len(token) == 1 for token in preprocessing.tokenizer.convert_ids_to_tokens(answer.flatten().tolist()))


@pytest.mark.parametrize("name, variant", CASES)
def test_a_written_folder_is_the_model(name, variant, tmp_path):
    model, preprocessing = built(name, variant)
    write_folder(name, tmp_path, variant)
    read, parts = AutoModelForImageTextToText.from_pretrained(tmp_path).eval(), Preprocessing.from_pretrained(tmp_path)
    assert type(read) is type(model)
    given = ("one <video>\nand  <image>?", [frames(name, variant, 1)], [photo(1)])
    inputs, again = dense_inputs(name, model, preprocessing, *given), dense_inputs(name, read, parts, *given)
    assert torch.equal(inputs["input_ids"], again["input_ids"])
    weights, stored = model.state_dict(), read.state_dict()
    assert weights.keys() == stored.keys() and all(torch.equal(weights[key], stored[key]) for key in weights)
    # What a file's weights lie beside in memory decides which kernel multiplies them, and so the last bits.
    assert distance(dense_logits(model, inputs), dense_logits(read, again)) < 1e-5
    assert parts.chat_template == preprocessing.chat_template


NATIVE = [name for name in NAMES if name.startswith("qwen")] + ["video_llama_3", "gemma4"]  # pictures of any size
THINNED = [case for case in CASES if case.values[0] != "llava_onevision"]  # whose frames are pooled after the projector


@pytest.mark.parametrize("name, variant", THINNED)
def test_what_is_left_out_is_seen_nowhere(name, variant):
    model, preprocessing = built(name, variant)
    shape = variant_of(name, variant).shape
    side, pair = shape.patch * shape.merge, 2 if name.startswith("qwen") else 1
    video = frames(name, variant, 1, count=4)
    if name in NATIVE:
        video = video[..., : 2 * side, :]  # wide
    size = (4 // pair, video.shape[-2] // side, shape.tokens)
    kept = torch.rand(size, generator=torch.Generator().manual_seed(2)) < 1 / 3
    kept[:, 0, :2] = torch.tensor([True, False])

    def thinned(pixels: torch.Tensor, kept: torch.Tensor = kept) -> torch.Tensor:
        inputs = dense_inputs(name, model, preprocessing, "<video>what?", [pixels])
        return thinned_logits(name, model, inputs, kept, shape.merge)

    before = thinned(video)
    whole = dense_logits(model, dense_inputs(name, model, preprocessing, "<video>what?", [video]))
    assert before.shape[1] == whole.shape[1] - int((~kept).sum())
    assert distance(before[:, -1], whole[:, -1]) > SEEN
    for token, matters in ((0, True), (1, False)):
        changed = video.clone()
        changed[pair:, :, :side, token * side : (token + 1) * side] += 1
        assert (distance(thinned(changed), before) > SEEN) == matters
        assert matters or torch.equal(thinned(changed), before)
    assert torch.equal(thinned(video, torch.ones_like(kept)), whole)


@pytest.mark.parametrize("count, rows, columns", [(1, 2, 3), (2, 4, 2), (5, 2, 4)])
@pytest.mark.parametrize("name", NATIVE)
def test_a_video_has_any_shape(name, count, rows, columns):
    """One frame and odd numbers, portrait and twice as wide as high; the last frame is seen, and the first one."""
    model, preprocessing = built(name)
    shape = variant_of(name).shape
    token = shape.patch * shape.merge
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(count, 3, rows * token, columns * token, generator=generator)
    inputs = dense_inputs(name, model, preprocessing, "<video>what?", [video])
    pictures = -(-count // 2) if name.startswith("qwen") else count
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == pictures * rows * columns
    expected = dense_logits(model, inputs)
    for number in (0, count - 1):
        changed = video.clone()
        changed[number, :, -token:, -token:] += 1
        again = dense_inputs(name, model, preprocessing, "<video>what?", [changed])
        assert distance(dense_logits(model, again)[:, -1], expected[:, -1]) > 1e-3


@pytest.mark.parametrize("name", [name for name in NATIVE if name.startswith("qwen")])
def test_without_its_positions_a_qwen_answers_otherwise(name):
    """So that a test on logits notices them missing."""
    model, preprocessing = built(name)
    inputs = dense_inputs(name, model, preprocessing, "<video>what?", [frames(name, "plain", 1)])
    plain = torch.arange(inputs["input_ids"].shape[1]).expand(4, 1, -1)
    assert distance(dense_logits(model, inputs), dense_logits(model, inputs | {"position_ids": plain})) > SEEN


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl_moe"])
def test_without_its_deepstack_features_a_qwen_answers_otherwise(name):
    model, preprocessing = built(name)
    inputs = dense_inputs(name, model, preprocessing, "<video>what?", [frames(name, "plain", 1)])

    def drop(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert len(kwargs["deepstack_visual_embeds"]) == 2
        return args, kwargs | {"deepstack_visual_embeds": None, "visual_pos_masks": None}

    expected = dense_logits(model, inputs)
    hook = model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)
    try:
        assert distance(dense_logits(model, inputs)[:, -1], expected[:, -1]) > SEEN
    finally:
        hook.remove()


@pytest.mark.parametrize("name, types", [("gemma3", "token_type_ids"), ("gemma4", "mm_token_type_ids")])
def test_without_its_types_a_gemma_answers_otherwise(name, types):
    model, preprocessing = built(name)
    inputs = dense_inputs(name, model, preprocessing, "<video>what?", [frames(name, "plain", 1)])
    blind = inputs | {types: torch.zeros_like(inputs[types])}
    assert distance(dense_logits(model, inputs)[:, -1], dense_logits(model, blind)[:, -1]) > SEEN


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_with_the_types_of_a_gemma_a_paligemma_answers_otherwise(name):
    model, preprocessing = built(name)
    inputs = dense_inputs(name, model, preprocessing, "<video>what?", [frames(name, "plain", 1)])
    swapped = inputs | {"token_type_ids": (inputs["input_ids"] == model.config.image_token_id).long()}
    assert distance(dense_logits(model, inputs)[:, -1], dense_logits(model, swapped)[:, -1]) > SEEN


def test_a_prompt_and_its_media_must_match():
    model, preprocessing = built("llava")
    with pytest.raises(AssertionError, match="a video without a tag"):
        dense_inputs("llava", model, preprocessing, "what?", [frames("llava", "plain", 1)])
    with pytest.raises(StopIteration):
        dense_inputs("llava", model, preprocessing, "<video>what?")
