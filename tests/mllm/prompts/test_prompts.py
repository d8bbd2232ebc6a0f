"""Prompts: media keep their places, counts are checked, batches give what single prompts give."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model

IMAGE = Image.effect_noise((80, 60), 60).convert("RGB")


@pytest.fixture(scope="module", params=["llava", "llava_onevision"])
def model(request):
    base, processor = tiny_model(request.param, image_size=64)
    return am.wrap(base, "pixel-diff", processor=processor, frames=6, cache=False)


def runs(ids: torch.Tensor, wanted: set[int]) -> list[int]:
    """Lengths of the runs of placeholders."""
    lengths, inside = [], False
    for token in ids.tolist():
        if token in wanted:
            lengths[-1:] = [lengths[-1] + 1] if inside else [*lengths[-1:], 1]
            inside = True
        else:
            inside = False
    return lengths


def test_media_keep_their_places(model, clip, short_clip):
    inputs = model.prepare("a <video> b <image> c <video> d", [clip, short_clip], [IMAGE], chat=False)
    family = model.family
    items = inputs["media"][0]
    assert runs(inputs["input_ids"][0], {family.image_token_id, family.video_token_id}) == [i.tokens for i in items]
    assert [isinstance(item.content, am.GazedVideo) for item in items] == [True, False, True]
    assert len(items[0].content.frame_counts) == 6 and len(items[2].content.frame_counts) == 5
    embedded = model.embed(inputs["input_ids"], inputs["media"])[0]
    start = 2
    for item in items:
        alone = model.prepare(
            "<video>" if isinstance(item.content, am.GazedVideo) else "<image>",
            [item.content] if isinstance(item.content, am.GazedVideo) else None,
            None if isinstance(item.content, am.GazedVideo) else [IMAGE],
            chat=False,
        )
        expected = model.embed(alone["input_ids"], alone["media"])[0]
        assert torch.allclose(embedded[start : start + item.tokens], expected, atol=1e-6)
        start += item.tokens + 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_each_prompt_gives(model, clip, short_clip, side):
    prompts = ["<video>\nwhat moves in here?", "short", "<image> and <video>?"]
    videos, images = [[clip], [], [short_clip]], [[], [], [IMAGE]]
    batch = model.prepare(prompts, videos, images, padding_side=side)
    logits = model(**batch).logits
    for row, (prompt, films, pictures) in enumerate(zip(prompts, videos, images, strict=True)):
        alone = model(**model.prepare(prompt, films, pictures)).logits[0]
        real = batch["attention_mask"][row].bool()
        assert torch.allclose(logits[row][real], alone, atol=2e-5)


def test_batched_generation_equals_single(model, clip, short_clip):
    prompts, videos = ["<video>what?", "<video> and what is this one?"], [[clip], [short_clip]]
    together = model.generate(**model.prepare(prompts, videos), max_new_tokens=6, do_sample=False)
    for row, (prompt, films) in enumerate(zip(prompts, videos, strict=True)):
        alone = model.generate(**model.prepare(prompt, films), max_new_tokens=6, do_sample=False)
        assert together[row, : alone.shape[1]].tolist() == alone[0].tolist()


def test_a_gazed_video_serves_many_questions(model, clip):
    gazed = model.gaze_video(clip)
    assert model.ask(gazed, "what?", max_new_tokens=4) == model.ask(clip, "what?", max_new_tokens=4)
    model.ask(gazed, "and then?", max_new_tokens=2)
    assert "decode" not in model.stats["seconds"] and model.stats["patches"] == len(gazed)


def test_visual_tokens_must_match_the_features(model, clip):
    inputs = model.prepare("<video>what?", [clip])
    tokens = inputs["media"][0][0].tokens
    short = torch.cat([inputs["input_ids"][:, :3], inputs["input_ids"][:, -3:]], dim=1)
    place = int((short == model.family.video_token_id).sum())
    with pytest.raises(am.InputError, match=f"{place} visual placeholders, but its media give {tokens} features"):
        model(input_ids=short, media=inputs["media"])
    with pytest.raises(am.InputError, match="need the input_ids"):
        model(media=inputs["media"])


def test_tags_and_media_must_match(model, clip):
    for prompt, videos, images, message in [
        ("<video> <video>", [clip], [], "2 <video> tags, but 1 videos"),
        ("what?", [clip], [], "0 <video> tags, but 1 videos"),
        ("<image>", [], [], "1 <image> tags, but 0 images"),
    ]:
        with pytest.raises(am.InputError, match=message):
            model.prepare(prompt, videos, images)
    with pytest.raises(am.InputError, match="videos must be a list for each of 2 prompts, got PosixPath"):
        model.prepare(["<video>", "<video>"], clip)
    with pytest.raises(am.InputError, match="2 prompts need videos as 2 lists"):
        model.prepare(["<video>", "<video>"], [clip, clip])
    with pytest.raises(am.InputError, match="has no text"):
        model.ask(clip, "  ")
    with pytest.raises(am.InputError, match="not a readable image"):
        model.prepare("<image>", images=[clip])


def test_gazed_video_of_another_grid_is_refused(model, clip):
    other = am.gaze_video(clip, "pixel-diff", am.VideoSettings(frames=3), grid=am.PatchGrid.of("28+56", 14))
    with pytest.raises(am.InputError, match=r"grid mismatch.*28\+56 at patch 14"):
        model.ask(other, "what?")


def test_chat_templates_are_used_and_keep_the_tags_in_place(clip):
    base, processor = tiny_model("llava_onevision", image_size=64)
    # As published templates do: media first, whatever the order of the parts.
    processor.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] if c['type'] != 'text' %}<video>"
        "{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}<|im_end|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = am.wrap(base, "pixel-diff", processor=processor, frames=4)
    inputs = model.prepare("before <video> after", [clip])
    text = model.tokenizer.decode([i for i in inputs["input_ids"][0].tolist() if i != model.family.video_token_id])
    assert text == "<|im_start|>user before  after<|im_end|><|im_start|>assistant\n"


def test_inputs_prepared_with_gaze_do_not_run_disabled(model, clip):
    inputs = model.prepare("<video>what?", [clip])
    with model.disabled(), pytest.raises(am.InputError, match="prepare them anew"):
        model(**inputs)
    with model.disabled(), pytest.raises(am.InputError, match="no dense frames left"):
        model.ask(model.prepare("<video>", [clip])["media"] and am.gaze_video(clip, grid=model.tower.grid), "what?")


def test_disabled_asks_the_dense_model(model, clip):
    with model.disabled():
        model.ask(clip, "what?", max_new_tokens=2)
        assert model.stats["visual_tokens"] == model.stats["dense_tokens"] == model.family.dense_count(6)
    model.ask(clip, "what?", max_new_tokens=2)
    assert model.stats["visual_tokens"] == model.family.gazed_count([model.stats["patches"]])
