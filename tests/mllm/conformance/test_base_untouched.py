"""`disabled()` and `unwrap()` give the base back bit for bit, and two models in one process do not meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import autogaze_mllm as am

from ...helpers.families.conformance import (
    ALL,
    NATIVE,
    QUESTION,
    SEEN,
    assert_close,
    copy_of,
    distance,
    each,
    frames_of,
    holds,
    keep,
    photo,
    prepared,
    third,
    wrapped,
)
from ...helpers.families.models import NAMES
from ...helpers.families.reference import dense_inputs, greedy


def dense_frames(model: am.GazedModel, frames: np.ndarray) -> torch.Tensor:
    """As the base is shown them: families of any size choose one of their own."""
    return model.family.frame_pixels(frames)


def answers(model: Any, inputs: dict[str, Any], preprocessing: Any) -> Any:
    """With options that look at the prompt's ids."""
    options = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
    return model.generate(**inputs, **greedy(preprocessing, 4), **options)


def assert_same_answers(found: Any, expected: Any) -> None:
    assert torch.equal(found.sequences[:, -4:], expected.sequences[:, -4:])
    assert all(torch.equal(one, other) for one, other in zip(found.logits, expected.logits, strict=True))


@holds("off")
@each(NAMES)
def test_disabled_and_unwrapped_it_is_the_base_bit_for_bit(name: str) -> None:
    base, model = wrapped(name)
    frames = frames_of(name)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [dense_frames(model, frames)])
    with torch.no_grad():
        expected = base(**reference).logits
    answer = answers(base, reference, model.preprocessing)
    gazed = prepared(name, model, QUESTION, [keep(model, frames, third(name, frames=len(frames)))])
    with torch.no_grad():
        seen = model(**gazed).logits[:, -1]
    model.generate(**gazed, **greedy(model.preprocessing, 2))
    with model.disabled(), torch.no_grad():
        dense = prepared(name, model, QUESTION, [am.Video(frames, fps=2)])
        assert torch.equal(dense["input_ids"], reference["input_ids"])
        assert torch.equal(model(**dense).logits, expected)
        assert_same_answers(answers(model, dense, model.preprocessing), answer)
        assert torch.equal(model(**reference).logits, expected)  # what a user prepares for the base
    assert distance(seen, expected[:, -1]) > SEEN
    preprocessing, returned = model.preprocessing, model.unwrap()
    assert returned is base
    with torch.no_grad():
        assert torch.equal(base(**reference).logits, expected)
    assert_same_answers(answers(base, reference, preprocessing), answer)
    with pytest.raises(am.InputError, match="unwrapped"):
        model(**gazed)


@holds("off")
@pytest.mark.slow
@each(NAMES)
def test_disabled_every_row_of_a_mixed_batch_is_the_base(name: str) -> None:
    """Videos of different lengths, an image, text alone: more than some bases take in one call."""
    base, model = wrapped(name)
    videos = [frames_of(name, count=count, seed=count) for count in (2, 3)]
    texts = [QUESTION, "<video>or <image>which?", "How much is two and two?", "<image>what?"]
    films, images = [[videos[0]], [videos[1]], [], []], [[], [photo()], [], [photo(1, (60, 80))]]
    with model.disabled(), torch.no_grad():
        given = [[am.Video(frames, fps=2) for frames in row] for row in films]
        batch = model(**prepared(name, model, texts, given, images)).logits
    for row, text in enumerate(texts):
        shown = [dense_frames(model, frames) for frames in films[row]]
        reference = dense_inputs(name, base, model.preprocessing, text, shown, images[row])
        with torch.no_grad():
            expected = base(**reference).logits
        assert_close(name, batch[row : row + 1, -expected.shape[1] :], expected, times=2)


@holds("off")
@each(list(NATIVE))
def test_a_native_base_is_what_it_was(name: str) -> None:
    """It takes embeddings alone: those of its own dense way, which has tests of its own."""
    base, model = wrapped(name)
    frames = frames_of(name)
    gazed = prepared(name, model, QUESTION, [keep(model, frames, third(name, frames=len(frames)))])
    with model.disabled(), torch.no_grad():
        dense = prepared(name, model, QUESTION, [am.Video(frames, fps=2)])
        embedded = model.embed(dense["input_ids"], dense["media"])
        expected = base(inputs_embeds=embedded, attention_mask=dense["attention_mask"]).logits
        assert torch.equal(model(**dense).logits, expected)
    with torch.no_grad():
        assert distance(model(**gazed).logits[:, -1], expected[:, -1]) > 1e-4
    assert model.unwrap() is base
    with torch.no_grad():
        assert torch.equal(base(inputs_embeds=embedded, attention_mask=dense["attention_mask"]).logits, expected)


@holds("ids")
@each([name for name in NAMES if name != "llava_onevision"])
def test_options_that_look_at_the_prompt_see_the_same(name: str) -> None:
    """Everything kept: repetition_penalty and no_repeat_ngram_size count placeholders and text as the base does."""
    from ...helpers.families.conformance import keep_all, pixels_of

    base, model = wrapped(name)
    frames = frames_of(name, count=2)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    expected = answers(base, reference, model.preprocessing)
    found = answers(model, prepared(name, model, QUESTION, [keep_all(model, frames)]), model.preprocessing)
    assert torch.equal(found.sequences, expected.sequences[:, -4:])


@holds("off")
@pytest.mark.slow
@each(NAMES)
def test_images_and_videos_disabled(name: str) -> None:
    base, model = wrapped(name)
    text, frames = "see <video>, <image> and <video>which?", [frames_of(name, seed=seed) for seed in (1, 2)]
    shown = [dense_frames(model, video) for video in frames]
    reference = dense_inputs(name, base, model.preprocessing, text, shown, [photo()])
    with model.disabled(), torch.no_grad():
        dense = prepared(name, model, text, [am.Video(video, fps=2) for video in frames], [photo()])
        assert torch.equal(dense["input_ids"], reference["input_ids"])
        assert torch.equal(model(**dense).logits, base(**reference).logits)


@holds("two")
@pytest.mark.slow
@each(ALL)
def test_two_models_do_not_meet(name: str) -> None:
    """The second is gazed while the first one is in the middle of an answer."""
    frames, kept = frames_of(name, count=4), third(name)
    pair = []
    for seed in (0, 1):
        base, preprocessing = copy_of(name, seed=seed)
        scales = str(frames.shape[1])
        model = am.wrap(base, "all", processor=preprocessing, scales=scales, frame_independent=True, cache=False)
        inputs = prepared(name, model, QUESTION, [keep(model, frames, kept)])
        pair.append((model, inputs, answers(model, inputs, preprocessing)))
    (first, inputs, expected), (second, others, other) = pair
    assert distance(expected.logits[0], other.logits[0]) > SEEN
    between = []

    def interrupt(module: Any, args: Any, output: Any) -> None:
        if not between:
            between.append(None)
            between[0] = answers(second, others, second.preprocessing)

    handle = first.family.language_model.register_forward_hook(interrupt)
    try:
        found = answers(first, inputs, first.preprocessing)
    finally:
        handle.remove()
    assert_same_answers(found, expected)
    assert_same_answers(between[0], other)
