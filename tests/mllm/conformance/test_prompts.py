"""Batches, padding, and prompts of several media: every row is what it is alone, and what the base makes of it."""

from __future__ import annotations

import pytest
import torch

import autogaze_mllm as am

from ...helpers.families.conformance import (
    ALL,
    ANY_SIZE,
    EQUAL,
    QUESTION,
    OneScale,
    assert_close,
    distance,
    each,
    frames_of,
    holds,
    keep,
    keep_all,
    photo,
    pixels_of,
    prepared,
    shape_of,
    third,
    wrapped,
)
from ...helpers.families.models import NAMES
from ...helpers.families.reference import dense_inputs, dense_logits, dense_step_logits, greedy

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
@each(ANY_SIZE)
def test_videos_of_different_shapes_in_one_prompt_and_in_a_batch(name: str) -> None:
    """Each by its own ladder: a portrait and a wide one together, then apart."""
    base, model = wrapped(name, gaze=OneScale(shape_of(name)), scales=None, max_tiles=2)
    text, videos = "see <video>and <video>which?", [frames_of(name, rows=2), frames_of(name, columns=2, seed=1)]
    gazed = [model.gaze_video(am.Video(frames, fps=2)) for frames in videos]
    assert gazed[0].grid != gazed[1].grid
    shown = [pixels_of(model, frames) for frames in videos]
    texts, parts = [text, QUESTION], [gazed, gazed[:1]]
    for row, prompt in enumerate(texts):
        reference = dense_inputs(name, base, model.preprocessing, prompt, shown[: len(parts[row])])
        inputs = prepared(name, model, prompt, parts[row])
        assert torch.equal(inputs["input_ids"], reference["input_ids"])
        with torch.no_grad():
            expected = dense_logits(base, reference)
            assert_close(name, model(**inputs).logits, expected)
            batch = model(**prepared(name, model, texts, parts)).logits[row : row + 1, -expected.shape[1] :]
        assert_close(name, batch, expected, times=2)


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


@holds("media")
@each(EQUAL)
def test_a_prompt_of_text_alone_beside_one_with_a_video(name: str) -> None:
    """In a batch and by itself."""
    base, model = wrapped(name)
    frames, texts = frames_of(name), [QUESTION, "How much is two and two, and what follows from it?"]
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    plain = dense_inputs(name, base, model.preprocessing, texts[1])
    expected = [dense_logits(base, inputs) for inputs in (reference, plain)]
    alone = prepared(name, model, texts[1], None)
    assert torch.equal(alone["input_ids"], plain["input_ids"])
    with torch.no_grad():
        assert_close(name, model(**alone).logits, expected[1])
        for side, first in (("left", -1), ("right", 0)):
            batch = prepared(name, model, texts, [[keep_all(model, frames)], []], padding_side=side)
            for row, logits in zip(model(**batch).logits, expected, strict=True):
                length = logits.shape[1]
                assert_close(name, row[None, -length:] if first else row[None, :length], logits, times=2)


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


@holds("counts")
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"max_tiles": 2}, {"thumbnails": 2}, {"max_tiles": 2, "thumbnails": 1}])
@each(ALL)
def test_tiles_and_thumbnails_are_counted_or_refused(name: str, options: dict[str, int]) -> None:
    _, model = wrapped(name, gaze="random", frames=4, ratio=0.4, **options)
    video = am.Video(frames_of(name, count=4, columns=2), fps=2)
    if "max_tiles" in options and name == "video_llava":  # with a class token of each
        with pytest.raises(am.InputError, match="use max_tiles=1"):
            model.prepare(QUESTION, [video])
        return
    inputs = prepared(name, model, QUESTION, [video])
    (item,) = inputs["media"][0]
    token_map = item.token_map
    assert item.tokens == int(model.family.is_visual(inputs["input_ids"]).sum())
    assert item.tokens == model.family.gazed_count(token_map.counts)
    apart = 0 if name in ANY_SIZE else options.get("thumbnails", 0)  # there a thumbnail is a scale of its own frame
    assert token_map.thumbnails == apart or name == "nvila"  # whose own settings have more
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**prepared(name, model, QUESTION, [am.Video(frames_of(name, count=4, columns=2, seed=1), fps=2)]))
    assert torch.isfinite(logits).all()
    assert distance(logits[:, -1], other.logits[:, -1]) > 1e-4
