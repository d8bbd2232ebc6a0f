"""Batches, padding, and prompts of several media: every row is what it is alone, and what the base makes of it."""

from __future__ import annotations

import pytest
import torch

import autogaze_mllm as am

from ...helpers.conformance import (
    ALL,
    EQUAL,
    QUESTION,
    assert_close,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    photo,
    pixels_of,
    prepared,
    third,
    wrapped,
)
from ...helpers.family_models import NAMES
from ...helpers.family_reference import dense_inputs, dense_logits, dense_step_logits, greedy

TEXTS = (QUESTION, "first <video>then <video>or rather <image>which of the two?")


@holds("batch")
@each(ALL)
def test_a_row_is_what_it_is_alone(name: str) -> None:
    _, model = wrapped(name)
    videos = [keep(model, frames_of(name, count=4, seed=seed), third(name, seed=seed)) for seed in (1, 2, 3)]
    alone = prepared(name, model, TEXTS[0], videos[:1])
    length = alone["input_ids"].shape[1]
    with torch.no_grad():
        expected = model(**alone).logits
    for side, place in (("left", slice(-length, None)), ("right", slice(0, length))):
        batch = prepared(name, model, TEXTS, [videos[:1], videos[1:]], [[], [photo()]], padding_side=side)
        assert batch["attention_mask"][0].sum() == length < batch["input_ids"].shape[1]
        with torch.no_grad():
            assert_close(name, model(**batch).logits[:1, place], expected, times=2)


@holds("batch")
@pytest.mark.slow
@each(ALL)
def test_answers_of_a_batch_are_those_of_its_rows(name: str) -> None:
    _, model = wrapped(name)
    videos = [keep(model, frames_of(name, count=4, seed=seed), third(name, seed=seed)) for seed in (1, 2, 3)]
    options = greedy(model.preprocessing, 4)
    parts = [(TEXTS[0], videos[:1], []), (TEXTS[1], videos[1:], [photo()])]
    batch = model.generate(**prepared(name, model, *map(list, zip(*parts, strict=True))), **options)
    for row, part in enumerate(parts):
        one = model.generate(**prepared(name, model, *part), **options)
        assert torch.equal(batch.sequences[row], one.sequences[0])
        for step, expected in zip(batch.logits, one.logits, strict=True):
            assert_close(name, step[row : row + 1], expected, times=2)


@holds("media")
@each(EQUAL)
def test_several_media_are_those_of_the_base(name: str) -> None:
    base, model = wrapped(name)
    text, videos = "see <video>, <image> and <video>which?", [frames_of(name, seed=seed) for seed in (1, 2)]
    shown = [pixels_of(model, frames) for frames in videos]
    reference = dense_inputs(name, base, model.preprocessing, text, shown, [photo()])
    inputs = prepared(name, model, text, [keep_all(model, frames) for frames in videos], [photo()])
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    with torch.no_grad():
        assert_close(name, model(**inputs).logits, dense_logits(base, reference))
    steps = torch.stack(model.generate(**inputs, **greedy(model.preprocessing, 3)).logits, dim=1)
    assert_close(name, steps, dense_step_logits(base, reference, model.preprocessing, 3)[1])


@holds("media")
@pytest.mark.slow
@pytest.mark.parametrize("text, sizes", [("<image>what?", [(130, 90)]), ("<image>or <image>?", [(60, 80), (200, 50)])])
@each(NAMES)
def test_images_alone_take_the_path_of_the_base(name: str, text: str, sizes: list[tuple[int, int]]) -> None:
    base, model = wrapped(name)
    images = [photo(number, size) for number, size in enumerate(sizes)]
    reference = dense_inputs(name, base, model.preprocessing, text, [], images)
    inputs = prepared(name, model, text, None, images)
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    with torch.no_grad():
        assert_close(name, model(**inputs).logits, dense_logits(base, reference))


@holds("counts")
@each(ALL)
def test_a_wrong_count_is_an_error(name: str) -> None:
    _, model = wrapped(name)
    inputs = prepared(name, model, QUESTION, [keep(model, frames_of(name, count=4), third(name))])
    ids, (item,) = inputs["input_ids"], inputs["media"][0]
    visual = model.family.is_visual(ids[0])
    assert int(visual.sum()) == item.tokens == sum(item.runs)
    with torch.no_grad():
        embedded = model.embed(ids, inputs["media"])
    table = model.base.get_input_embeddings()
    assert torch.equal(embedded[0, ~visual][:, : table.weight.shape[1]], table(ids[0, ~visual]))
    last = int(visual.nonzero().max())
    fewer = {key: torch.cat([inputs[key][:, :last], inputs[key][:, last + 1 :]], dim=1) for key in ("input_ids",)}
    with pytest.raises(am.InputError, match=rf"{item.tokens - 1} visual placeholders.* {item.tokens} features"):
        model(media=inputs["media"], **fewer)
    more = torch.cat([ids[:, : last + 1], ids[:, last:]], dim=1)
    with pytest.raises(am.InputError, match=rf"{item.tokens + 1} visual placeholders.* {item.tokens} features"):
        model.generate(input_ids=more, media=inputs["media"])
