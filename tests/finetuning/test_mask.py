"""Which tokens are learnt: the answers and what ends them, in every family's own format and under chat templates."""

from __future__ import annotations

import pytest

import autogaze_mllm as am
from autogaze_mllm.finetuning.data.conversation import IGNORED, encode_conversation
from autogaze_mllm.finetuning.data.dataset import fitted
from autogaze_mllm.finetuning.data.samples import Medium, Sample, Turn

from ..helpers.files.checkpoints import CHATML, write_nvila, write_vila
from ..helpers.files.finetune_files import wrapped

# As LLaVA-OneVision's: an earlier answer's header is written differently from the one that is to be answered.
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for part in message['content'] %}{{ '\n' + part['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = ("<video>\nwhat moves?", "and then?")
ANSWERS = ("a ball", "it stops")


def talk(*said: str, system: str | None = None, media: int = 1) -> Sample:
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(said)]
    turns = ([Turn("system", system)] if system else []) + turns
    return Sample(tuple(turns), (Medium("video", "clip.mp4"),) * media, "data.jsonl, row 1")


def both() -> Sample:
    return talk(QUESTIONS[0], ANSWERS[0], QUESTIONS[1], ANSWERS[1])


def shown(model, encoded) -> list[str]:
    """The learnt stretches of a conversation, as text."""
    stretches, now = [], []
    for token, label in [*zip(encoded.ids, encoded.labels, strict=True), (0, IGNORED)]:
        if label != IGNORED:
            assert label == token
            now.append(token)
        elif now:
            stretches.append(model.tokenizer.decode(now))
            now = []
    return stretches


def encode(model, sample, tokens=(5,)):
    return encode_conversation(sample, [[count] for count in tokens], model.preprocessing, model.family)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Every family, with the format that it has without a chat template, and what ends an answer there."""
    folder = tmp_path_factory.mktemp("families")
    write_nvila(folder / "nvila")
    write_vila(folder / "vicuna", language="llama")
    write_vila(folder / "qwen", language="qwen2", config={"chat_template": "qwen2"})
    small = {"frames": 4, "thumbnails": 0, "max_tiles": 1, "cache": False}
    made = {
        "llava": (wrapped("llava"), "<eos>"),
        "llava_onevision": (wrapped(), "<eos>"),
        "nvila": (am.wrap(folder / "nvila", "pixel-diff", **small), "<|im_end|>"),
        "vicuna": (am.wrap(folder / "vicuna", "pixel-diff", scales="28+56", **small), "</s>"),
        "qwen": (am.wrap(folder / "qwen", "pixel-diff", scales="28+56", **small), "<|im_end|>"),
    }
    for model, _ in made.values():
        model.preprocessing.chat_template = None
    return made


FAMILIES = ["llava", "llava_onevision", "nvila", "vicuna", "qwen"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_learnt_and_nothing_else(name, models):
    model, end = models[name]
    encoded = encode(model, both())
    found = shown(model, encoded)
    print(name, found)
    assert [text.strip() for text in found] == [ANSWERS[0] + end, ANSWERS[1] + end]
    whole = model.tokenizer.decode(encoded.ids)
    for text in ("what moves?", "and then?"):
        assert text in whole
    assert [stop - start for start, stop in encoded.spans] == [5]


@pytest.mark.parametrize("template", [None, CHATML, ONEVISION], ids=["own", "chatml", "onevision"])
@pytest.mark.parametrize("name", FAMILIES)
def test_up_to_the_answer_a_sample_is_the_prompt_of_the_question(name, template, models, clip, monkeypatch):
    model, _ = models[name]
    monkeypatch.setattr(model.preprocessing, "chat_template", template)
    prompt = model.prepare(QUESTIONS[0], [clip])
    tokens = prompt["media"][0][0].tokens
    encoded = encode(model, talk(QUESTIONS[0], ANSWERS[0]), [tokens])
    first = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    assert encoded.ids[:first] == prompt["input_ids"][0].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_tags_that_are_text_are_learnt_as_text(name, models, clip):
    """In questions and in answers, and in the prompt of the question as well."""
    model, end = models[name]
    question, answer = r"<video>\nIs \<image> there, or \<video>?", r"it is \<video>, not \<image>."
    prompt = model.prepare(question, [clip])
    tokens = prompt["media"][0][0].tokens
    encoded = encode(model, talk(question, answer, QUESTIONS[1], ANSWERS[1]), [tokens])
    first = next(place for place, label in enumerate(encoded.labels) if label != IGNORED)
    assert encoded.ids[:first] == prompt["input_ids"][0].tolist()
    assert [text.strip() for text in shown(model, encoded)] == [f"it is <video>, not <image>.{end}", ANSWERS[1] + end]
    assert [stop - start for start, stop in encoded.spans] == [tokens]


@pytest.mark.parametrize("template", [CHATML, ONEVISION], ids=["chatml", "onevision"])
def test_chat_templates_give_the_mask_too(template, models, monkeypatch):
    model, _ = models["nvila"]
    monkeypatch.setattr(model.preprocessing, "chat_template", template)
    encoded = encode(
        model, talk(*[text for pair in zip(QUESTIONS, ANSWERS, strict=True) for text in pair], system="Be kind.")
    )
    print(repr(model.tokenizer.decode(encoded.ids)), shown(model, encoded))
    assert shown(model, encoded) == [ANSWERS[0] + "<|im_end|>", ANSWERS[1] + "<|im_end|>"]
    assert "Be kind." in model.tokenizer.decode(encoded.ids)


def test_a_system_turn_needs_a_template(models):
    model, _ = models["llava"]
    with pytest.raises(am.InputError, match=r"data.jsonl, row 1: the model has no chat template.*system"):
        encode(model, talk("hello?", "yes", system="Be kind.", media=0), [])


def test_a_template_that_hides_the_conversation_is_refused(models, monkeypatch):
    model, _ = models["llava"]
    monkeypatch.setattr(model.preprocessing, "chat_template", "{{ messages[0]['content'] }}")
    with pytest.raises(am.InputError, match="does not show this conversation"):
        encode(model, both())


def test_a_longer_sample_is_refused_by_name_or_loses_text_but_never_media(models):
    model, _ = models["llava"]
    encoded = encode(model, talk("<video>\nwhat?", "a ball, " * 20), [30])
    (start, end), length = encoded.spans[0], len(encoded.ids)
    assert fitted(encoded, length, "error", "here") is encoded
    with pytest.raises(am.InputError, match=rf"^d.jsonl, row 7: {length} tokens, but at most 40 fit \(30 of them"):
        fitted(encoded, 40, "error", "d.jsonl, row 7")
    cut = fitted(encoded, length - 50, "truncate", "here")
    assert len(cut.ids) == len(cut.labels) == length - 50
    assert cut.ids == encoded.ids[: length - 50] and cut.spans == [(start, end)]
    for limit in (start + 1, end - 1):
        with pytest.raises(am.InputError, match="what would be cut holds media"):
            fitted(encoded, limit, "truncate", "here")
    with pytest.raises(am.InputError, match="nothing of the answers would be left"):
        fitted(encoded, end, "truncate", "here")
