"""Every way of generating that transformers has: gazed as the base would, and dense by the base itself.

A gazed model that keeps everything at the tower's own scale is its base, so the base's own `generate` is the reference
for both; LLaVA shows it exactly.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteria,
)

import autogaze_mllm as am

from ...helpers.families import conformance
from ...helpers.families.models import build, variant_of
from ...helpers.families.reference import dense_inputs
from ...helpers.tiny_models import make

QUESTION = "<video>\nWhat moves?"
NEW = 10


class Forbid(LogitsProcessor):
    """No token that the prompt holds: sees ids of placeholders as well."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter(1, input_ids.clamp(max=scores.shape[1] - 1), float("-inf"))


class Short(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids[:, -3] == input_ids[:, -1]


def drafter(vocabulary: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, num_key_value_heads=2, **sizes)).eval()


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition penalty": {"repetition_penalty": 1.7},
    "no repeated pairs": {"no_repeat_ngram_size": 2},
    "no single token twice": {"no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 3, "num_return_sequences": 2, "repetition_penalty": 1.3},
    "guidance": {"guidance_scale": 1.7},
    "guidance by a negative prompt": {"guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[20, 30, 40]])},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assistant": {"assistant_model": "drafter"},
    "forbidden": {"bad_words_ids": [[63], [50, 51]], "min_new_tokens": 4},
    "own processor": {"logits_processor": LogitsProcessorList([Forbid()])},
    "own stop": {"stopping_criteria": [Short()]},
    "length of all": {"max_new_tokens": None, "max_length": "prompt + 5"},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "several samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
    "sampled with penalty": {"do_sample": True, "top_k": 5, "repetition_penalty": 1.5},
}


def options_of(name: str, prompt: int, vocabulary: int) -> dict[str, Any]:
    options = {"do_sample": False, "max_new_tokens": NEW, **OPTIONS[name]}
    if options.get("assistant_model"):
        options["assistant_model"] = drafter(vocabulary)
    if isinstance(options.get("max_length"), str):
        options["max_length"] = prompt + 5
    return options


@pytest.fixture(scope="module")
def kept_whole() -> tuple[Any, am.GazedModel]:
    """A LLaVA of large random weights that keeps everything."""
    base, processor = build("llava")
    options: dict[str, Any] = {"scales": str(variant_of("llava", "plain").shape.side), "frame_independent": True}
    return base, am.wrap(base, "all", processor=processor, frames=3, cache=False, **options)


def of_the_base(base: Any, model: am.GazedModel, clip: Path, **options: Any) -> torch.Tensor:
    """What transformers itself answers, given ids and pixels: new ids."""
    with model.disabled():
        inputs = model.prepare(QUESTION, [clip])
    pixels = inputs["media"][0][0].dense
    torch.manual_seed(7)
    ids = base.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **pixels, **options)
    return ids[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("name", OPTIONS)
def test_gazed_and_dense_answer_as_the_base_in_every_option(name, kept_whole, clip):
    base, model = kept_whole
    inputs = model.prepare(QUESTION, [clip])
    options = options_of(name, inputs["input_ids"].shape[1], base.config.text_config.vocab_size)
    # What is guessed decides nothing; LLaVA itself stumbles over guessed placeholders.
    guessed = name in ("prompt lookup", "assistant")
    expected = of_the_base(base, model, clip, **options_of("greedy", 0, 0) if guessed else options)
    torch.manual_seed(7)
    assert model.generate(**inputs, **options).tolist() == expected.tolist()
    if name == "prompt lookup":
        return
    with model.disabled():
        dense = model.prepare(QUESTION, [clip])
        torch.manual_seed(7)
        assert model.generate(**dense, **options).tolist() == expected.tolist()


def test_the_options_make_a_difference(kept_whole, clip):
    """Otherwise the test above would pass with options that are dropped."""
    base, model = kept_whole
    plain = of_the_base(base, model, clip, **options_of("greedy", 0, 0)).tolist()
    for name in ("repetition penalty", "no single token twice", "guidance", "forbidden", "own processor", "own stop"):
        assert of_the_base(base, model, clip, **options_of(name, 0, 0)).tolist() != plain, name


@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "gemma3", "smolvlm"])
@pytest.mark.parametrize("options", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"num_beams": 2}])
def test_disabled_is_the_base_in_other_families_too(family, options, clip):
    base, processor = build(family)
    model = am.wrap(base, "pixel-diff", processor=processor, frames=2, cache=False)
    with model.disabled():
        inputs = model.prepare(QUESTION, [clip])
        found = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, **options)
    own = {**model.family.token_types(inputs["input_ids"], None), **(model.family.dense_inputs(inputs["media"]) or {})}
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], **own}
    expected = base.generate(**given, do_sample=False, max_new_tokens=NEW, **options)
    assert found.tolist() == expected[:, inputs["input_ids"].shape[1] :].tolist()


HELPED = ["internvl", "gemma3", "gemma4", "qwen2_5_vl", "qwen3_vl", "smolvlm", "vila"]


@pytest.mark.parametrize("name", HELPED)
def test_assistants_change_no_answer_in_other_families(name):
    """Whatever the family takes beside embeddings: guessed tokens are read together with the prompt."""
    base, model = conformance.wrapped(name)
    question = "<video>\nWhat moves?"
    inputs = conformance.prepared(name, model, question, [conformance.keep_all(model, conformance.frames_of(name))])
    steps = {"do_sample": False, "max_new_tokens": NEW}
    expected = model.generate(**inputs, **steps).tolist()
    assert model.generate(**inputs, **steps, prompt_lookup_num_tokens=3).tolist() == expected
    assistant = drafter(base.get_input_embeddings().weight.shape[0])
    if name in ("internvl", "smolvlm", "vila"):
        assert model.generate(**inputs, **steps, assistant_model=assistant).tolist() == expected
    else:
        with pytest.raises(am.InputError, match=r"hands on to an assistant_model.*prompt_lookup_num_tokens"):
            model.generate(**inputs, **steps, assistant_model=assistant)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_guidance_is_refused_where_transformers_has_none(name):
    """Its own generate fails there: it gives the other prompt the positions of the first."""
    _, model = conformance.wrapped(name)
    inputs = conformance.prepared(name, model, QUESTION, [conformance.keep_all(model, conformance.frames_of(name))])
    with pytest.raises(am.InputError, match="positions of its own, which transformers' guidance_scale"):
        model.generate(**inputs, guidance_scale=1.6, max_new_tokens=2)
    assert model.generate(**inputs, guidance_scale=1.0, do_sample=False, max_new_tokens=2).shape == (1, 2)


GUIDED: dict[str, dict[str, Any]] = {
    "no words": {},
    "words": {"negative_prompt_ids": torch.tensor([[20, 30, 40]])},
    "more words than the prompt has": {"negative_prompt_ids": torch.arange(20, 50).repeat(1, 20)},
    "words that grow": {"negative_prompt_ids": torch.arange(20, 50).repeat(1, 20), "use_cache": False},
    "words that grow until they are as many": {"negative_prompt_ids": "prompt - 2", "use_cache": False},
}


@pytest.mark.parametrize("by", GUIDED)
@pytest.mark.parametrize("name", ["internvl", "gemma3", "gemma4", "smolvlm"])
def test_guidance_is_that_of_the_base_in_other_families(name, by):
    """However long the other prompt is: what is seen is put into the first one alone."""
    base, model = conformance.wrapped(name)
    frames = conformance.frames_of(name)
    inputs = conformance.prepared(name, model, QUESTION, [conformance.keep_all(model, frames)])
    options = {"do_sample": False, "max_new_tokens": 5, "guidance_scale": 1.6, **GUIDED[by]}
    if isinstance(options.get("negative_prompt_ids"), str):
        options["negative_prompt_ids"] = torch.arange(20, 50).repeat(1, 20)[:, : inputs["input_ids"].shape[1] - 2]
    pixels = [conformance.pixels_of(model, frames)]
    given = dense_inputs(name, base, model.preprocessing, QUESTION, pixels)
    expected = base.generate(**given, **options)[:, given["input_ids"].shape[1] :]
    assert model.generate(**inputs, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("gazing", [True, False])
@pytest.mark.parametrize("where", ["of the model", "given"])
def test_generation_configs_count(where, gazing, kept_whole, clip):
    base, model = kept_whole
    config = GenerationConfig(repetition_penalty=1.7, no_repeat_ngram_size=2, max_new_tokens=NEW)
    config.eos_token_id, config.pad_token_id = base.generation_config.eos_token_id, base.generation_config.pad_token_id
    own = base.generation_config
    expected = of_the_base(base, model, clip, generation_config=config)
    plain = of_the_base(base, model, clip, do_sample=False, max_new_tokens=NEW)
    assert expected.tolist() != plain.tolist()
    options = {"generation_config": config} if where == "given" else {"max_new_tokens": NEW}
    try:
        if where == "of the model":
            base.generation_config = config
        if gazing:
            answer = model.ask(clip, "What moves?", **options)
        else:
            with model.disabled():
                answer = model.ask(clip, "What moves?", **options)
    finally:
        base.generation_config = own
    assert answer == model.tokenizer.decode(expected[0], skip_special_tokens=True).strip()


def test_a_shared_prompt_leaves_beams_and_helpers_their_own_cache(kept_whole, clip):
    base, model = kept_whole
    shared = model.encode_video(clip, share_prompt=True)
    model.ask(shared, "What moves?")
    for name in ("beams", "several beams", "prompt lookup", "assistant", "no cache", "several samples", "guidance"):
        options = options_of(name, 0, base.config.text_config.vocab_size)
        inputs = model.prepare(QUESTION, [shared])
        torch.manual_seed(7)
        found = model.generate(**inputs, **options)
        expected = of_the_base(base, model, clip, **options_of("greedy", 0, 0) if "lookup" in name else options)
        assert found.tolist() == expected.tolist(), name
    own = base.generation_config
    base.generation_config = GenerationConfig(num_beams=3, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    try:
        expected = of_the_base(base, model, clip, max_new_tokens=NEW)
        found = model.generate(**model.prepare(QUESTION, [shared]), max_new_tokens=NEW)
    finally:
        base.generation_config = own
    assert found.tolist() == expected.tolist()


# -- ask ---------------------------------------------------------------------------------------------------------


def test_several_answers_come_as_a_list(clip):
    _, model = make("llava_onevision", frames=3)
    one = model.ask(clip, "What?", max_new_tokens=6)
    assert isinstance(one, am.Answer) and one.stats["new_tokens"] <= 6
    torch.manual_seed(0)
    several = model.ask(clip, "What?", max_new_tokens=6, num_return_sequences=3, do_sample=True)
    assert len(several) == 3 == len(set(several)) and all(isinstance(answer, am.Answer) for answer in several)
    assert all(answer.stats["visual_tokens"] == one.stats["visual_tokens"] for answer in several)
    beams = model.ask(clip, "What?", max_new_tokens=6, num_return_sequences=2, num_beams=4)
    assert beams[0] == model.ask(clip, "What?", max_new_tokens=6, num_beams=4)
    config = GenerationConfig(num_beams=2, num_return_sequences=2, max_new_tokens=3, pad_token_id=0)
    assert len(model.ask(clip, "What?", generation_config=config)) == 2
    assert len(model.ask(clip, "What?", max_new_tokens=2, num_return_sequences=1)) == 1


def test_an_answer_is_a_string_that_knows_its_stats(clip):
    _, model = make("llava_onevision", frames=2)
    answer = model.ask(clip, "What?", max_new_tokens=3)
    assert answer.stats == model.stats and answer == str(answer) and {answer: 1}[str(answer)] == 1
    assert json.loads(json.dumps({"reply": answer})) == {"reply": str(answer)}
    for other in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert type(other) is am.Answer and other == answer and other.stats == answer.stats
    assert am.Answer("x").stats == {} and type(answer.upper()) is str


def test_answers_that_end_early_are_counted_without_padding(kept_whole, clip):
    _, model = kept_whole
    whole = model.ask(clip, "What moves?", max_new_tokens=NEW)
    ids = model.generate(**model.prepare(QUESTION, [clip]), max_new_tokens=NEW, do_sample=False)[0]
    assert whole.stats["new_tokens"] == len(ids) == NEW
    torch.manual_seed(1)
    end = {"eos_token_id": list(range(20, 60)), "pad_token_id": 0}
    several = model.ask(clip, "What moves?", max_new_tokens=NEW, num_return_sequences=6, do_sample=True, **end)
    lengths = [answer.stats["new_tokens"] for answer in several]
    assert len(set(lengths)) > 1 and max(lengths) <= NEW
    for answer, length in zip(several, lengths, strict=True):  # one token is one character
        assert len(answer) <= length


def test_what_is_no_option_gets_one_line(clip):
    _, model = make("llava", frames=3)
    for options, message in (
        ({"temprature": 0.5}, "no generation option is called temprature; did you mean temperature"),
        ({"nframes": 1, "zzz": 2}, "no generation option is called nframes, zzz"),
        ({"chunk_frames": 4}, r"chunk_frames is no option of an answer but a setting of the video.*wrap\(\)"),
        ({"ratio": 0.1}, "ratio is no option of an answer"),
        ({"return_dict_in_generate": True}, r"ask\(\) returns text"),
    ):
        for use in (model.ask, model.stream):
            with pytest.raises(am.InputError, match=message):
                use(clip, "What?", **options)
        with pytest.raises(am.InputError, match=message):
            model.chat([{"role": "user", "content": "What?"}], **options)
    for options in ({"num_beams": 2}, {"num_return_sequences": 2}, {"streamer": object()}):
        with pytest.raises(am.InputError, match="stream"):
            model.stream(clip, "What?", **options)
    for known in ({"top_k": 3}, {"tokenizer": model.tokenizer, "stop_strings": "x"}, {"output_attentions": False}):
        assert isinstance(model.ask(clip, "What?", max_new_tokens=2, **known), str)


def test_everything_of_a_dict_of_outputs_is_there(kept_whole, clip):
    _, model = kept_whole
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True}
    model.base.set_attn_implementation("eager")
    try:
        found = model.generate(**model.prepare(QUESTION, [clip]), do_sample=False, max_new_tokens=4, **options)
    finally:
        model.base.set_attn_implementation("sdpa")
    assert found.sequences.shape == (1, 4) and len(found.scores) == len(found.logits) == len(found.attentions) == 4
    assert [int(step.argmax()) for step in found.logits] == found.sequences[0].tolist()
