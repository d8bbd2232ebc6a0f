"""What `prepare` gives belongs together, and a tag in the text of a question can be text."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BatchFeature

import autogaze_mllm as am

from ...helpers.families.models import NAMES, build
from ...helpers.files.checkpoints import write_vila
from ...helpers.tiny_models import FAMILIES, make

IMAGE = Image.effect_noise((80, 60), 60).convert("RGB")
PREPARED = [name for name in NAMES if name in ("llava", "llava_onevision", "internvl", "gemma3", "smolvlm")]


@pytest.mark.parametrize("family", FAMILIES)
def test_media_that_were_lost_are_missed(family, clip):
    """Their placeholders would be read as words."""
    _, model = make(family, frames=3)
    inputs = model.prepare("<video>\nWhat?", [clip])
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
    message = rf"hold {inputs.stats['visual_tokens']} placeholders.*no media came with them.*prepare\(\)"
    for use in (model, model.generate):
        with pytest.raises(am.InputError, match=message):
            use(**tensors)
        with pytest.raises(am.InputError, match=message):
            use(tensors["input_ids"])
    with pytest.raises(am.InputError, match=message):
        model.generate(inputs=tensors["input_ids"])
    with model.disabled(), pytest.raises(am.InputError, match="no media came"):
        model.generate(**{k: v for k, v in model.prepare("<video>What?", [clip]).items() if k != "media"})
    with pytest.raises(am.InputError, match="1 prompts, but media for 0"):
        model(**tensors, media=[])
    with pytest.raises(am.InputError, match="but its media give 0 features"):
        model.generate(**tensors, media=[[]])
    picture = model.prepare("<image>\nWhat?", images=[IMAGE])
    with pytest.raises(am.InputError, match="no media came"):
        model(picture["input_ids"])


def test_calls_that_need_no_media_are_let_through(clip):
    base, model = make("llava", frames=3)
    words = model.prepare("What?")
    assert torch.equal(model(words["input_ids"]).logits, base(words["input_ids"]).logits)
    assert torch.equal(
        model.generate(words["input_ids"], max_new_tokens=3, do_sample=False),
        base.generate(words["input_ids"], max_new_tokens=3, do_sample=False),
    )
    # A prompt that was read before is not read again: its keys and values are there.
    inputs = model.prepare("<video>\nWhat?", [clip])
    options = {"do_sample": False, "return_dict_in_generate": True}
    whole = model.generate(**inputs, max_new_tokens=6, **options).sequences
    begun = model.generate(**inputs, max_new_tokens=3, **options)
    ids = torch.cat([inputs["input_ids"], begun.sequences], dim=1)
    more = model.generate(
        ids, past_key_values=begun.past_key_values, attention_mask=torch.ones_like(ids), max_new_tokens=3, **options
    )
    assert more.sequences[:, ids.shape[1] - 3 :].tolist() == whole.tolist()
    embedded = model.embed(inputs["input_ids"], inputs["media"])
    assert torch.equal(model(inputs_embeds=embedded).logits, model(inputs["input_ids"], inputs["media"]).logits)


def test_inputs_move_and_travel_as_those_of_processors_do(clip):
    _, model = make("llava_onevision", frames=3)
    inputs = model.prepare("<video> and <image>?", [clip], [IMAGE])
    expected = model(**inputs).logits
    assert isinstance(inputs, BatchFeature) and inputs.input_ids is inputs["input_ids"]
    assert set(inputs) == {"input_ids", "attention_mask", "media"}
    media = inputs["media"]
    assert inputs.to("cpu") is inputs and inputs["media"] is media
    inputs.to("cpu", torch.bfloat16).to(dtype=torch.float16).to(device="cpu", non_blocking=True)
    assert inputs["input_ids"].dtype == torch.long and inputs["media"] is media
    assert inputs.stats == media.stats and inputs.stats["visual_tokens"] == sum(item.tokens for item in media[0])
    assert inputs.to("meta").input_ids.is_meta
    for other in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert type(other) is type(inputs) and other.stats == inputs.stats
    inputs = model.prepare("<video> and <image>?", [clip], [IMAGE])
    for other in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs)), {**inputs}):
        assert torch.equal(model(**other).logits, expected)


def test_inputs_come_out_of_a_data_loader(clip):
    """From another process, too."""
    _, model = make("llava_onevision", frames=3)

    def collate(rows: list[str]) -> BatchFeature:
        return model.prepare([f"<video>\n{row}" for row in rows], [[gazed]] * len(rows), padding_side="right")

    gazed = model.gaze_video(clip)
    rows = ["What?", "Who is that?", "Why?", "Where?"]
    expected = model(**collate(rows[:2])).logits
    for workers in (0, 1):
        batches = list(DataLoader(rows, batch_size=2, collate_fn=collate, num_workers=workers))
        assert len(batches) == 2
        assert torch.allclose(model(**batches[0]).logits, expected, atol=1e-6)


# -- tags that are text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREPARED)
def test_a_tag_after_a_backslash_is_text(name, clip):
    base, processor = build(name)
    model = am.wrap(base, "pixel-diff", processor=processor, frames=2, cache=False)
    question = r"Is \<image> a tag, and what is \<video>\<video>?"
    inputs = model.prepare(f"<video>\n{question}", [clip])
    plain = model.prepare("<video>\nWhat?", [clip])
    visual = model.family.is_visual(inputs["input_ids"])
    assert visual.sum() == model.family.is_visual(plain["input_ids"]).sum() == inputs["media"][0][0].tokens
    text = model.tokenizer.decode(inputs["input_ids"][0][~visual[0]])
    assert "Is <image> a tag, and what is <video><video>?" in text
    # Character by character: what is read is the text, not a special token of that name.
    ids = inputs["input_ids"][0].tolist()
    written = [model.tokenizer.convert_tokens_to_ids(character) for character in "s <image> a"]
    assert any(ids[place : place + len(written)] == written for place in range(len(ids)))
    assert isinstance(model.ask(clip, question, max_new_tokens=2), str)
    assert isinstance(model.ask(None, r"What does \<image> mean?", max_new_tokens=2), str)


def test_text_around_a_literal_tag_is_read_as_ever(tmp_path):
    """Also by a tokenizer that puts a blank before the first word of every text."""
    write_vila(tmp_path)
    model = am.wrap(tmp_path, "pixel-diff", frames=2, cache=False)
    ids = model.prepare(r"a \<video> b", chat=False)["input_ids"][0]
    assert not model.family.is_visual(ids[None]).any()
    assert model.tokenizer.decode(ids, skip_special_tokens=True).strip() == "a <video> b"


def test_tags_without_media_say_how_to_write_them(clip):
    _, model = make("llava_onevision", frames=2)
    for prompt, videos, message in (
        ("What is an <image> tag?", [clip], r"0 <video> tags, but 1 videos were given.*written \\<image>"),
        ("What is a <video> tag?", None, r"1 <video> tags, but 0 videos.*written \\<video>"),
    ):
        with pytest.raises(am.InputError, match=message):
            model.ask(videos and clip, prompt)
    base, processor = build("internvl")
    other = am.wrap(base, "pixel-diff", processor=processor, frames=2, cache=False)
    with pytest.raises(
        am.InputError, match=r"prompt 0: .*must not hold <IMG_CONTEXT>, which the model reads as a pict"
    ):
        other.ask(clip, "What does <IMG_CONTEXT> mean?")
