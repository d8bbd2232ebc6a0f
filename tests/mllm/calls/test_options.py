"""What is asked for but cannot be had: one line, in our words, and where it can be told before a video is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

import autogaze_mllm as am

from ...helpers.tiny_models import QUESTION, make

GREEDY = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def model() -> am.GazedModel:
    return make("llava", frames=2)[1]


def refused(action: Any) -> str:
    with pytest.raises(am.InputError) as error:
        action()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


BEFORE: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
    ({"max_new_tokens": -3}, "max_new_tokens must be a whole number of at least 1, got -3"),
    ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
    ({"num_beams": 0}, "num_beams must be a whole number of at least 1, got 0"),
    ({"num_beams": True}, "num_beams must be a whole number"),
    ({"num_return_sequences": 0}, "num_return_sequences must be"),
    ({"generation_config": {"top_p": 0.5}}, "generation_config must be a GenerationConfig of transformers, got dict"),
    ({"custom_generate": "somebody/code"}, "code from a folder or from the Hub is never run"),
    ({"custom_generate": "."}, "code from a folder or from the Hub is never run"),
    ({"trust_remote_code": True}, "no generation option is called trust_remote_code"),
    ({"assistant_model": "somebody/model"}, "assistant_model must be a loaded model, got str"),
    ({"assistant_early_exit": 1}, "assistant_early_exit is for models of text alone"),
    ({"prefill_chunk_size": 8}, "prefill_chunk_size=8 works on ids alone"),
    ({"token_healing": True}, "token_healing=True works on ids alone"),
    ({"cache_implementation": "paged"}, "cache_implementation='paged' works on ids alone"),
    ({"generation_config": GenerationConfig(token_healing=True)}, "token_healing=True works on ids alone"),
    ({"input_ids": torch.ones(1, 1)}, "input_ids is made of the question and its video"),
    ({"inputs": torch.ones(1, 1)}, "inputs is made of the question and its video"),
    ({"attention_mask": torch.ones(1, 1)}, "attention_mask is made of"),
    ({"inputs_embeds": torch.ones(1, 1, 8)}, "inputs_embeds is made of"),
    ({"pixel_values": torch.ones(1)}, "pixel_values is made of"),
    ({"labels": torch.ones(1, 1)}, "labels is made of"),
    ({"media": []}, "media is made of"),
]


@pytest.mark.parametrize(("options", "told"), BEFORE)
def test_what_is_no_option_is_told_before_the_video_is_looked_at(model, options, told):
    messages = [{"role": "user", "content": [{"type": "video", "video": "nowhere.mp4"}]}]
    assert told in refused(lambda: model.ask("nowhere.mp4", "What?", **options))
    assert told in refused(lambda: model.stream("nowhere.mp4", "What?", **options))
    assert told in refused(lambda: model.chat(messages, **options))


TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"do_sample": True, "temperature": 0}, "transformers' generate: `temperature`"),
    ({"do_sample": True, "temperature": "warm"}, "transformers' generate: `temperature`"),
    ({"num_return_sequences": 2}, "transformers' generate: Greedy methods"),
    ({"num_beams": 2, "num_return_sequences": 3}, "`num_return_sequences` (3) has to be smaller"),
    ({"cache_implementation": "odd"}, "Invalid `cache_implementation` (odd)"),
    ({"cache_implementation": "quantized"}, "optimum-quanto"),
    ({"max_new_tokens": None, "max_length": 5}, "`max_length` is set to 5"),
    ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "Group Beam Search is code on the Hub by now"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search is code on the Hub by now, which is never run"),
    ({"dola_layers": "low"}, "Dola Generation is code on the Hub by now"),
    ({"force_words_ids": [[5]], "num_beams": 2}, "Constrained Beam Search is code on the Hub by now"),
]


@pytest.mark.parametrize(("options", "told"), TOGETHER)
def test_what_does_not_go_together_is_one_line(model, clip, options, told):
    gazed = model.encode_video(clip)
    assert told in refused(lambda: model.ask(gazed, "What?", **{**GREEDY, **options}))
    if not options.keys() & {"num_beams", "num_return_sequences"}:  # which a stream refuses by itself
        assert told in refused(lambda: list(model.stream(gazed, "What?", **{**GREEDY, **options})))
    with model.disabled():
        assert told in refused(lambda: model.ask(clip, "What?", **{**GREEDY, **options}))


def test_code_is_not_run_for_generate_either(model, clip, tmp_path):
    (tmp_path / "custom_generate").mkdir()
    code = f"open({str(tmp_path / 'mark')!r}, 'w').close()\ndef generate(*_, **__): return 0\n"
    (tmp_path / "custom_generate/generate.py").write_text(code)
    inputs = model.prepare(QUESTION, [clip])
    for options in ({"custom_generate": str(tmp_path)}, {"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}):
        for more in ({}, {"trust_remote_code": True}):
            assert "never run" in refused(lambda given={**options, **more}: model.generate(**inputs, **given))
    assert not (tmp_path / "mark").exists()
    own = model.generate(**inputs, custom_generate=lambda model, input_ids, **_: input_ids)  # of the caller's own
    assert own.shape == (1, 0)


def test_an_error_of_a_model_is_not_taken_for_one_of_options(model, clip):
    def fail(*_: Any) -> None:
        raise ValueError("out of luck")

    handle = model.base.lm_head.register_forward_hook(fail)
    try:
        with pytest.raises(ValueError, match=r"^out of luck$"):
            model.ask(clip, "What?")
    finally:
        handle.remove()


def test_a_wrapped_model_drafts_for_none(model, clip):
    assert "in place of a wrapped one" in refused(lambda: model.ask(clip, "What?", assistant_model=model))
    assert "prepare() several prompts" in refused(lambda: model.generate_batch([[5, 6]]))


def test_words_that_end_an_answer_need_no_tokenizer(model, clip):
    whole = model.ask(clip, "What?", max_new_tokens=12)
    end = whole[2]
    cut = model.ask(clip, "What?", max_new_tokens=12, stop_strings=[end])
    assert cut == whole[: whole.index(end) + 1] != whole
    config = GenerationConfig(max_new_tokens=12, stop_strings=[end])
    config.eos_token_id = model.generation_config.eos_token_id
    assert model.ask(clip, "What?", generation_config=config) == cut
    inputs = model.prepare(QUESTION, [clip])
    assert model.generate(**inputs, max_new_tokens=3, stop_strings=["never"], tokenizer=model.tokenizer).shape == (1, 3)


HALF = "What \udcff?"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "must be text, got NoneType"),
        (5, "must be text, got int"),
        (b"What?", "must be text, got bytes"),
        (HALF, "is not UTF-8 text"),
    ],
)
def test_a_question_that_is_no_text_is_one_line(model, clip, given, told):
    assert refused(lambda: model.ask(clip, given)) == refused(lambda: model.stream(clip, given))
    assert "the question " + told in refused(lambda: model.ask(clip, given))
    assert "prompt 0 " + told in refused(lambda: model.prepare(given))
    assert "prompt 1 " + told in refused(lambda: model.prepare(["What?", given]))


def test_half_a_character_is_told_wherever_it_stands_in_a_conversation(model):
    for messages in (
        [{"role": "user", "content": HALF}],
        [{"role": "user", "content": [{"type": "text", "text": HALF}]}],
        [{"role": "user", "content": "A"}, {"role": "assistant", "content": HALF}, {"role": "user", "content": "B"}],
    ):
        assert "is not UTF-8 text" in refused(lambda given=messages: model.chat(given))


@pytest.mark.parametrize("media", [5, "clip.mp4", ["clip.mp4"], [["clip.mp4"]], [[None]], {"video": 1}])
def test_media_that_are_none_are_one_line(model, media):
    ids = torch.tensor([[20, 21]])
    for use in (model, model.generate):
        assert "media must be what prepare() gave" in refused(lambda use=use: use(input_ids=ids, media=media))


def test_an_empty_list_is_not_a_question_about_nothing(model):
    for nothing in ([], ()):
        assert "an empty list of videos or frames" in refused(lambda given=nothing: model.ask(given, "What?"))
        assert "an empty list of videos or frames" in refused(lambda given=nothing: model.stream(given, "What?"))
    assert isinstance(model.ask(None, "What?", **GREEDY), str)
    rows = model.prepare(["<video>\nWhat?", "What?"], [[np.zeros((2, 8, 8, 3), np.uint8)], []])
    assert [len(row) for row in rows["media"]] == [1, 0]


def test_pictures_may_be_arrays_and_tensors(model, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    expected = model.ask(None, "What?", images=Image.fromarray(pixels), **GREEDY)
    assert expected != model.ask(None, "What?", images=Image.fromarray(pixels[::-1].copy()), **GREEDY)
    moved = pixels.transpose(2, 0, 1)
    shown = model.prepare("<image>\nWhat?", images=[Image.fromarray(pixels)])["media"][0][0].content
    for given in (pixels, pixels / 255, moved, torch.from_numpy(pixels), torch.from_numpy(moved / 255).bfloat16()):
        assert model.ask(None, "What?", images=given, **GREEDY) == expected
        parts = [{"type": "image", "image": given}, {"type": "text", "text": "What?"}]
        assert isinstance(model.chat([{"role": "user", "content": parts}], **GREEDY), str)
        if not (isinstance(given, torch.Tensor) and given.dtype == torch.bfloat16):  # of fewer bits
            found = model.prepare("<image>\nWhat?", images=[given])["media"][0][0].content
            assert all(torch.equal(found[name], value) for name, value in shown.items() if torch.is_tensor(value))
    for given, told in (
        (pixels[None], "picture has the shape (1, 48, 64, 3), expected (H, W, 3) or (3, H, W)"),
        (pixels[..., 0], "picture has the shape (48, 64)"),
        (pixels.astype(np.int32), "picture is of type int32"),
        (pixels.astype(np.float32), "floats must lie in [0, 1]"),
        (torch.zeros(3, 8, 8, device="meta"), "gives no pixels"),
        (pixels[:0], "picture has the shape (0, 64, 3)"),
    ):
        assert told in refused(lambda given=given: model.ask(None, "What?", images=given))
