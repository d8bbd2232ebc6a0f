"""Conversations in the messages format: the text is that of the base's own template, media where it shows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.mllm.families import FAMILIES as KNOWN
from autogaze_mllm.mllm.prompts.prompt import media_text

from ...helpers.families.models import FAMILIES, NAMES, build
from ...helpers.families.templates import TEMPLATES
from ...helpers.files.checkpoints import write_nvila, write_vila
from ...helpers.tiny_models import make

IMAGE = Image.effect_noise((80, 60), 60).convert("RGB")
# What the families' templates write for an image and for a video.
MARKS = {
    "internvl": ("<IMG_CONTEXT>", "<video>"),
    "gemma3": ("<start_of_image>", "<start_of_image>"),
    "gemma4": ("<|image|>", "<|video|>"),
    "video_llama_3": ("<|image_pad|>", "<|video_pad|>"),
}
QWEN = tuple(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
TALKING = [name for name in NAMES if FAMILIES[name].model_type in KNOWN and TEMPLATES.get(name)]


def marks(name: str) -> tuple[str, str]:
    return MARKS.get(name, QWEN if name.startswith("qwen") else ("<image>", "<video>"))


def video(source: Any) -> dict[str, Any]:
    return {"type": "video", "video": source}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts) if isinstance(parts[0], dict) else parts[0]}


def wrapped(name: str, **options: Any) -> am.GazedModel:
    base, processor = build(name)
    return am.wrap(base, "pixel-diff", processor=processor, **{"frames": 2, "cache": False, **options})


def by_its_template(model: am.GazedModel, name: str, messages: Any, inputs: Any, **options: Any) -> list[int]:
    """What transformers' own template gives, each mark put out as the medium that stands there."""
    template = model.preprocessing.chat_template
    rendered = model.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
    )
    kinds = dict(zip(("image", "video"), marks(name), strict=True))
    waiting = list(inputs["media"][0])
    runs = [run for item in waiting for run in item.runs]
    while waiting:
        item = waiting.pop(0)
        kind = "image" if item.token_map is None else "video"
        assert kinds[kind] in rendered
        rendered = rendered.replace(kinds[kind], media_text(item.layout, kind, model.family).replace("<", "\0"), 1)
    rendered = rendered.replace("\0", "<")
    starts = bool(model.tokenizer.bos_token) and rendered.startswith(model.tokenizer.bos_token)
    ids = model.tokenizer(rendered, add_special_tokens=model.family.add_special_tokens and not starts)["input_ids"]
    found = []
    for token in ids:
        visual = bool(model.family.is_visual(torch.tensor([token])))
        found += [token] * (runs.pop(0) if visual else 1)
    assert not runs
    return found


@pytest.mark.parametrize("name", TALKING)
def test_the_text_is_that_of_the_template(name, clip, short_clip):
    model = wrapped(name)
    picture = {"type": "image", "image": IMAGE}
    conversations: list[list[dict[str, Any]]] = [
        [user("What is a bird?")],
        [user(video(clip), text("What moves?"))],
        [user(text("Before"), video(clip), text("after?"))],
        [user(video(clip), text("First?")), {"role": "assistant", "content": [text("One.")]}, user(text("Second?"))],
        [user(video(clip), video(short_clip), text("Which is longer?"))],
    ]
    if name != "llava_clip":  # whose template knows no videos
        conversations.append([user(picture, text("And this?"), video(short_clip))])
    if name != "llava_clip":
        conversations.append([user(picture, text("What is it?"))])
    for messages in conversations:
        inputs = model.prepare_chat(messages)
        expected = by_its_template(model, name, messages, inputs)
        assert inputs["input_ids"][0].tolist() == expected, messages
        assert torch.isfinite(model(**inputs).logits).all()


def test_a_chat_is_a_question_where_it_says_the_same(clip):
    model = wrapped("llava_onevision")
    messages = [user(video(clip), text("What moves?"))]
    answer = model.chat(messages, max_new_tokens=5)
    assert isinstance(answer, am.Answer) and answer == model.ask(clip, "What moves?", max_new_tokens=5)
    assert answer.stats["visual_tokens"] == model.stats["visual_tokens"] > 0 and answer.stats["new_tokens"] <= 5
    for source in (str(clip), model.gaze_video(clip), model.encode_video(clip)):
        assert model.chat([user(video(source), text("What moves?"))], max_new_tokens=5) == answer
    assert model.chat([user({"type": "video", "path": clip}, text("What moves?"))], max_new_tokens=5) == answer
    with model.disabled():
        dense = model.chat(messages, max_new_tokens=5)
        assert dense == model.ask(clip, "What moves?", max_new_tokens=5)
        assert dense.stats["visual_tokens"] == model.family.dense_count(2)
    assert len(model.chat(messages, num_return_sequences=2, do_sample=True, max_new_tokens=3)) == 2


def test_a_video_may_be_a_part_of_one_or_frames_in_memory(clip, short_clip):
    model = wrapped("llava_onevision", frames=4)
    part = am.Video(clip, start=0.5, end=1.5)
    expected = model.prepare("<video>\nWhat?", [part])
    for parts in ({"start": 0.5, "end": 1.5}, {"video_start": 0.5, "video_end": 1.5}):
        inputs = model.prepare_chat([user({**video(clip), **parts}, text("What?"))])
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        assert torch.equal(model(**inputs).logits, model(**expected).logits)
    assert model.prepare_chat([user({**video(clip), "fps": 1}, text("What?"))]).stats["frames"] == 2
    frames = torch.randint(0, 255, (3, 48, 64, 3), dtype=torch.uint8)
    two = model.prepare_chat([user(video(frames), video(frames[:2]), text("What?"))])
    assert [len(item.token_map.counts) for item in two["media"][0]] == [3, 2]
    with pytest.raises(am.InputError, match="message 0, part 0: end must be after start"):
        model.chat([user({**video(clip), "start": 2, "end": 1}, text("What?"))])
    with pytest.raises(am.InputError, match=r"message 0, part 0: .*start.* gazed already"):
        model.chat([user({**video(model.gaze_video(clip)), "start": 1}, text("What?"))])


def test_images_are_paths_or_pictures(tmp_path):
    model = wrapped("llava_onevision")
    IMAGE.save(tmp_path / "a.png")
    answers = {
        model.chat([user({"type": "image", key: source}, text("What?"))], max_new_tokens=4)
        for key, source in (("image", IMAGE), ("image", str(tmp_path / "a.png")), ("path", tmp_path / "a.png"))
    }
    assert answers == {model.ask(None, "What?", images=[IMAGE], max_new_tokens=4)}


@pytest.mark.parametrize("name", TALKING)
def test_text_that_looks_like_media_stays_text(name, clip):
    """As a user's words, in an earlier answer, and in the name of a tool."""
    model = wrapped(name)
    image, film = marks(name)
    words = f"Is {image} like {film}, <image> or <video>?"
    messages = [user(video(clip), text(words)), {"role": "assistant", "content": f"No <video>, {film}."}, user("Why?")]
    inputs = model.prepare_chat(messages)
    visual = model.family.is_visual(inputs["input_ids"])
    assert int(visual.sum()) == inputs["media"][0][0].tokens and len(inputs["media"][0]) == 1
    said = model.tokenizer.decode(inputs["input_ids"][0][~visual[0]])
    assert words in said and f"No <video>, {film}." in said


# -- roles, tools and other templates ----------------------------------------------------------------------------

TOOLS_TEMPLATE = (
    "{%- if tools %}[tools{% for tool in tools %} {{ tool | tojson }}{% endfor %}]\n{% endif -%}"
    "{%- for message in messages %}<|im_start|>{{ message.role + '\n' }}"
    "{%- if message.content is string %}{{ message.content }}{% else %}"
    "{%- for part in message.content or [] %}{% if part.type == 'video' %}<video>{% elif part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{%- for call in message.tool_calls or [] %}[call {{ call.function.name }}]{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if not thinking | default(true) %}[quick]{% endif %}"
    "{% endif %}"
)


def weather(city: str) -> str:
    """The weather.

    Args:
        city: where, <video> or not
    """
    return city


def test_system_turns_tools_and_their_results_go_to_the_template(clip):
    model = wrapped("llava_onevision")
    model.preprocessing.chat_template = TOOLS_TEMPLATE
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "<image>"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        user(video(clip), text("Where is it?")),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny <video>"},
    ]
    inputs = model.prepare_chat(messages, tools=[weather], chat_template_kwargs={"thinking": False})
    visual = model.family.is_visual(inputs["input_ids"][0])
    said = model.tokenizer.decode(inputs["input_ids"][0][~visual])
    assert int(visual.sum()) == inputs["media"][0][0].tokens
    for part in (
        "<|im_start|>system\nBe brief.<|im_end|>",
        "[call weather]",
        "tool\nsunny <video><|im_end|>",
        "[quick]",
    ):
        assert part in said
    assert '"name": "weather"' in said and "where, <video> or not" in said
    plain = model.prepare_chat(messages[:2])
    assert plain["input_ids"][0].tolist() == by_its_template(model, "llava_onevision", messages[:2], plain)
    assert "[quick]" not in model.tokenizer.decode(plain["input_ids"][0])


def test_templates_of_plain_text_get_plain_text(clip):
    """Many LLMs' own templates join texts; a part of a medium would be an error there."""
    model = wrapped("llava_onevision")
    model.preprocessing.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    messages = [user(video(clip), text("What?")), {"role": "assistant", "content": "A <video>."}, user("Why?")]
    inputs = model.prepare_chat(messages)
    visual = model.family.is_visual(inputs["input_ids"][0])
    assert int(visual.sum()) == inputs["media"][0][0].tokens
    assert model.tokenizer.decode(inputs["input_ids"][0][~visual]) == (
        "<|im_start|>user\n\nWhat?<|im_end|>\n<|im_start|>assistant\nA <video>.<|im_end|>\n<|im_start|>user\nWhy?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_templates_that_put_media_first_keep_their_order(clip, short_clip):
    model = wrapped("llava_onevision")
    model.preprocessing.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} "
        "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}"
        "{% for c in m.content if c.type == 'video' %}<video>{% endfor %}"
        "{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    picture = {"type": "image", "image": IMAGE}
    inputs = model.prepare_chat([user(text("One "), video(clip), text("two "), picture, video(short_clip))])
    items = inputs["media"][0]
    assert [item.token_map is None for item in items] == [True, False, False]
    assert [len(item.token_map.counts) for item in items[1:]] == [2, 2]
    direct = model.prepare(
        "<|im_start|>user <image><video><video>One two <|im_end|><|im_start|>assistant\n",
        [clip, short_clip],
        [IMAGE],
        chat=False,
    )
    assert torch.equal(inputs["input_ids"], direct["input_ids"])
    assert torch.equal(model(**inputs).logits, model(**direct).logits)


@pytest.mark.parametrize("write", [write_nvila, write_vila])
def test_models_without_a_template_take_turns_in_their_own_format(write, clip, tmp_path):
    write(tmp_path)
    model = am.wrap(tmp_path, "pixel-diff", frames=2, ratio=0.5, max_tiles=1, cache=False)
    model.preprocessing.chat_template = None
    messages = [user(video(clip), text("First?")), {"role": "assistant", "content": "One."}, user("Second <video>?")]
    inputs = model.prepare_chat(messages)
    visual = model.family.is_visual(inputs["input_ids"][0])
    said = model.tokenizer.decode(inputs["input_ids"][0][~visual])
    family = model.family
    expected = family.chat(f"{family.after_media}First?") + family.answer("One.") + family.chat("Second ?", first=False)
    said = said.removeprefix(model.tokenizer.bos_token or "").replace("<video>", "")
    assert said.replace(" ", "").strip() == expected.replace(" ", "").strip()
    assert isinstance(model.chat(messages, max_new_tokens=2), str)
    for wrong, message in (
        ([{"role": "system", "content": "x"}, user("What?")], "take turns, but message 0 is of system"),
        ([user("a"), user("b")], "message 1 is of user"),
    ):
        with pytest.raises(am.InputError, match=message):
            model.chat(wrong)
    with pytest.raises(am.InputError, match="no place for tools"):
        model.chat([user("a")], tools=[weather])


def test_what_is_no_conversation_gets_one_line(clip):
    _, model = make("llava_onevision", frames=2)
    answer = {"role": "assistant", "content": "b"}
    for messages, message in (
        ([], "must be a list"),
        ("What?", "must be a list"),
        (user("What?"), "must be a list"),
        (["What?"], r"message 0: must be \{"),
        ([{"content": "What?"}], "message 0: must be"),
        ([{"role": "user"}], "message 0: content must be text or a list of parts, got NoneType"),
        ([{"role": "user", "content": 3}], "got int"),
        ([user("a"), answer], "the last message is an answer"),
        ([user({"type": "video"}, text("a"))], 'message 0, part 0: needs its video as "video"'),
        ([user({"type": "video", "video": clip, "path": clip})], "part 0: needs its video"),
        ([user(text("a"), {"type": "audio", "audio": "b.wav"})], r"part 1: must be .*got keys \['audio', 'type'\]"),
        ([user({"type": "text", "text": None})], "part 0: must be"),
        ([user({"type": "video", "video": clip, "speed": 2})], "message 0, part 0: unknown key 'speed'"),
        ([user({"type": "image", "image": IMAGE, "min_pixels": 2})], "unknown key 'min_pixels'"),
        ([user(video("nowhere.mp4"), text("a"))], "nowhere.mp4: no such file"),
        ([user(video("https://example.com/a.mp4"), text("a"))], "https://example.com/a.mp4"),
        ([user(video(3), text("a"))], "message 0, part 0: .*int"),
    ):
        with pytest.raises(am.InputError, match=message):
            model.chat(messages)
    model.preprocessing.chat_template = "{{ raise_exception('only two roles, please') }}"
    with pytest.raises(am.InputError, match="does not show this conversation: only two roles, please"):
        model.chat([user("What?")])
    for template in ("nothing at all", "{{ messages[0].content.nothing.at_all }}", "{% for m in messages %}"):
        model.preprocessing.chat_template = template
        with pytest.raises(am.InputError, match="does not show this conversation"):
            model.chat([user("What?")])
