"""The suite notices what goes wrong without an error: each trap is sprung here, and the property must fail.

A family that leaves out positions, types, deepstack features, order, text or a norm still answers. That its logits are
then not the base's shows that a test on everything kept, or on a third, would have caught it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.token_map import TokenMap
from autogaze_mllm.mllm.calls import splice
from autogaze_mllm.mllm.families import Family
from autogaze_mllm.mllm.families.any_size import mrope
from autogaze_mllm.mllm.media import Layout

from ...helpers.families.conformance import (
    EQUAL,
    PAIRS,
    QUESTION,
    SEEN,
    assert_close,
    distance,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    pixels_of,
    prepared,
    third,
    wrapped,
)
from ...helpers.families.reference import dense_inputs, dense_logits, greedy
from ...helpers.families.thinned import thinned_logits

TRAP = holds("traps")
GROUPED = [
    name for name in EQUAL if name not in ("llava", "llava_clip", "video_llava", "paligemma", "paligemma2")
]  # several patches make one token
DEEP = ["qwen3_vl", "qwen3_vl_moe"]
AFTER_NORM = ["smolvlm", "idefics3", "gemma3", "paligemma", "paligemma2", "internvl"]
BETWEEN = [name for name in EQUAL if name.startswith(("qwen3", "smolvlm", "idefics", "internvl", "gemma", "aya"))]
BETWEEN += ["video_llama_3"]


def sprung(model: am.GazedModel, **changes: Any) -> None:
    """The model's family goes on as one that is wrong in these."""
    family = model.family
    family.__class__ = type("Sprung", (type(family),), changes)


def off(name: str, spring: Callable[[am.GazedModel], None], variant: str = "plain") -> float:
    """How far logits of the last token are from the base's when everything is kept; first without the trap."""
    base, model = wrapped(name, variant)
    frames = frames_of(name, variant, count=4)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    expected = dense_logits(base, reference)[:, -1]
    with torch.no_grad():
        found = model(**prepared(name, model, QUESTION, [keep_all(model, frames)])).logits[:, -1]
        assert_close(name, found, expected)
        spring(model)
        return distance(model(**prepared(name, model, QUESTION, [keep_all(model, frames)])).logits[:, -1], expected)


def off_by_a_third(name: str, spring: Callable[[am.GazedModel], None]) -> float:
    """The same when a third is kept, chosen in another order than it lies."""
    base, model = wrapped(name)
    frames, kept = frames_of(name, count=4), third(name)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    expected = thinned_logits(name, base, reference, kept, model.family.group)[:, -1]

    def found() -> torch.Tensor:
        inputs = prepared(name, model, QUESTION, [keep(model, frames, kept, shuffled=model.family.raster)])
        with torch.no_grad():
            return model(**inputs).logits[:, -1]

    assert_close(name, found(), expected)
    spring(model)
    return distance(found(), expected)


def told_nothing(self: Family, *inputs: Any) -> dict[str, Any]:
    return {}


@TRAP
@each(PAIRS)
def test_missing_positions(name: str) -> None:
    """A Qwen without position_ids reads plain ones, without a word."""
    assert off(name, lambda model: sprung(model, llm_inputs=told_nothing)) > SEEN


@TRAP
@each(PAIRS)
def test_positions_from_the_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept tokens that are numbered one after the other, instead of where they lie."""

    def numbered(video: TokenMap) -> torch.Tensor:
        return torch.cat([torch.arange(count) for count in video.counts])

    assert off_by_a_third(name, lambda model: monkeypatch.setattr(mrope, "dense_cells", numbered)) > SEEN


@TRAP
@each(["gemma3", "gemma4"])
def test_missing_types(name: str) -> None:
    """Without types a Gemma reads a frame from left to right; Gemma 4's "odd" configuration does so anyhow."""
    assert off(name, lambda model: sprung(model, token_types=told_nothing)) > SEEN


@TRAP
@each(["paligemma", "paligemma2"])
def test_types_of_another_family(name: str) -> None:
    """1 on pictures is right for Gemma 3, and the opposite of what PaliGemma takes."""

    def swapped(self: Family, input_ids: torch.Tensor, answers: Any) -> dict[str, torch.Tensor]:
        return {"token_type_ids": self.is_visual(input_ids).long()}

    assert off(name, lambda model: sprung(model, token_types=swapped)) > SEEN


@TRAP
@each(DEEP)
def test_missing_deepstack(name: str) -> None:
    """Only embeddings reach the LLM, none of what is added to its first layers."""

    def flat(self: Family, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        kept = features.clone()
        kept[:, features.shape[1] // (1 + self.deepstack) :] = 0
        return kept

    assert off(name, lambda model: sprung(model, project=flat)) > SEEN


@TRAP
@each(DEEP)
def test_deepstack_of_other_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not belong to their tokens, as when a batch's are joined in another order."""
    feed = splice._Feed.__call__

    def turned(self: Any, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found = feed(self, module, args, kwargs)
        if found is None or "deepstack_visual_embeds" not in found[1]:
            return found
        layers = [layer.flip(0) for layer in found[1]["deepstack_visual_embeds"]]
        return found[0], found[1] | {"deepstack_visual_embeds": layers}

    assert off(name, lambda model: monkeypatch.setattr(splice._Feed, "__call__", turned)) > SEEN


@TRAP
@each(EQUAL)
def test_tokens_in_the_order_of_gaze(name: str) -> None:
    """The LLM reads from left to right: tokens that lie otherwise than in the base change all later text. (A SigLIP
    LLaVA takes them so, as the published gaze was tried; then raster order is the other one.)"""

    def in_order_of_gaze(model: am.GazedModel) -> None:
        model.tower.token_order = lambda gazed, raster: gazed.token_order(False)

    if name in ("llava_clip", "video_llava", "llava"):  # whose rows have class tokens among them, or are as gazed
        _, model = wrapped(name)
        frames, kept = frames_of(name, count=4), third(name)
        one, other = (keep(model, frames, kept, shuffled=shuffled) for shuffled in (False, True))
        with torch.no_grad():
            logits = [model(**prepared(name, model, QUESTION, [video])).logits[:, -1] for video in (one, other)]
        assert (distance(*logits) < 1e-3) is model.family.raster
        return
    assert off_by_a_third(name, in_order_of_gaze) > SEEN


@TRAP
@each(GROUPED)
def test_patches_of_a_group_in_another_order(name: str) -> None:
    """As when rows of a tower that wants whole groups come row by row over the picture."""

    def turned(gazed: GazedVideo, group: int) -> GazedVideo:
        patch = gazed.grid.patch // group
        cut = gazed.patches.view(len(gazed), -1, group, patch, group, patch)
        return dataclasses.replace(gazed, patches=cut.transpose(2, 4).flatten(1))

    def spring(model: am.GazedModel) -> None:
        whole = type(model.family).gazed_features
        group = model.family.group
        sprung(
            model,
            gazed_features=lambda self, tower, videos: whole(self, tower, [turned(video, group) for video in videos]),
        )

    assert off(name, spring) > SEEN


@TRAP
@each([name for name in EQUAL if name not in PAIRS and name not in ("video_llama_3", "gemma4")])
def test_attention_across_frames(name: str) -> None:
    """Block-causal attention, which the published tower was trained with, is not the base's."""

    def spring(model: am.GazedModel) -> None:
        model.tower.frame_independent = False

    assert off(name, spring) > SEEN


@TRAP
@each(AFTER_NORM)
def test_the_hidden_state_before_the_last_norm(name: str) -> None:
    """Or, where InternVL's configuration has no norm there, another layer."""

    def spring(model: am.GazedModel) -> None:
        sprung(model, feature_layers=[-2 if name == "internvl" else -1])

    assert off(name, spring) > SEEN


@TRAP
@each(["aya_vision"])
def test_the_hidden_state_after_the_last_norm(name: str) -> None:
    assert off(name, lambda model: sprung(model, feature_layers=[None])) > SEEN


@TRAP
@each(BETWEEN)
def test_missing_text_between_pictures(name: str) -> None:
    """One run of placeholders for the whole video; of Qwen3-VL, moments without their times."""

    def spring(model: am.GazedModel) -> None:
        whole = type(model.family).layout

        def bare(self: Family, video: TokenMap) -> Layout:
            if name.startswith("qwen3"):
                return [
                    piece.rpartition("seconds>")[2] if isinstance(piece, str) else piece for piece in whole(self, video)
                ]
            return [self.gazed_count(video.counts)]

        sprung(model, layout=bare)

    assert off(name, spring) > SEEN


@TRAP
@each(["llava_clip", "video_llava", "internvl"])
def test_missing_class_token(name: str) -> None:
    """It is part of what every patch of its frame sees."""

    def spring(model: am.GazedModel) -> None:
        whole = model.tower._attention

        def alone(clip_frames: list[int], counts: list[int]) -> Any:
            """The class token of a frame as a frame of its own."""
            split = [part for count in counts for part in ((1, count - 1) if count else (0, 0))]
            return whole([2 * frames for frames in clip_frames], split)

        model.tower._attention = alone

    assert off(name, spring) > SEEN


@TRAP
@each([name for name in EQUAL if name.startswith(("gemma", "paligemma"))])
def test_a_base_whose_generate_takes_no_embeddings_says_so(name: str) -> None:
    """This trap is a loud one: transformers itself refuses."""
    _, model = wrapped(name)
    sprung(model, splice="embeds")
    inputs = prepared(name, model, QUESTION, [keep_all(model, frames_of(name))])
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(**inputs, **greedy(model.preprocessing, 1))


@TRAP
@each([name for name in EQUAL if name.startswith(("qwen", "gemma4"))])
def test_native_towers_refuse_attention_across_frames(name: str) -> None:
    with pytest.raises(am.InputError, match="frame_independent must be True"):
        wrapped(name, frame_independent=False)
    wrapped(name)
