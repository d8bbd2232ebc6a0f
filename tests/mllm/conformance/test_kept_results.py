"""What is kept for later gives the same: saved models, cached tokens, and what an LLM read of a video; and every way to
generate is the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import autogaze_mllm as am

from ...helpers.families.conformance import (
    ALL,
    EQUAL,
    QUESTION,
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
from ...helpers.families.models import NAMES
from ...helpers.families.reference import continued, dense_inputs, greedy

# A prefix LM reads a video in the light of the question; windows and recurrent states cannot go back.
REFUSED = [name for name in NAMES if name.startswith("paligemma")]
NO_PREFIX = ("gemma3", "gemma4", "qwen3_5", "qwen3_5_moe", "aya_vision")


@holds("saved")
@each(ALL, quick=["llava_clip", "qwen3_vl", "gemma4"])
def test_a_saved_model_is_the_same(name: str, tmp_path: Path) -> None:
    _, model = wrapped(name)
    gazed = keep(model, frames_of(name, count=4), third(name))
    inputs = prepared(name, model, QUESTION, [gazed])
    model.save_pretrained(tmp_path)
    loaded = am.load(tmp_path, cache=False)
    assert type(loaded.family) is type(model.family)
    assert loaded.settings == model.settings
    assert loaded.tower.grid == model.tower.grid
    assert loaded.tower.frame_independent
    with torch.no_grad():
        expected = model(**inputs).logits
        # The same ids: of some families transformers reads another tokenizer than the one that was stored.
        assert torch.equal(loaded(**{**inputs, "media": [[loaded.gazed_media(gazed)]]}).logits, expected)


@holds("cache")
@each(ALL)
def test_tokens_from_the_cache_are_those_that_went_in(name: str, short_clip: Path, tmp_path: Path) -> None:
    """Deepstack features, the map of the tokens and the text around them, too."""
    _, model = wrapped(name, gaze="random", cache=tmp_path, frames=4, ratio=0.5)
    answers, media = [], []
    for hit in (0, 1):
        inputs = prepared(name, model, QUESTION, [short_clip], reuse=True)
        assert model.stats["from_cache"] == hit
        media.append(inputs["media"][0][0])
        answers.append(model.generate(**inputs, **greedy(model.preprocessing, 3)))
        with torch.no_grad():
            answers[-1].forward = model(**inputs).logits
    made, found = media
    assert isinstance(found.content, torch.Tensor)
    with torch.no_grad():
        assert torch.equal(found.content, model.embed(*tokens_alone(model, made))[0])
    assert found.layout == made.layout
    assert found.token_map.facts() == made.token_map.facts()
    assert torch.equal(found.token_map.positions, made.token_map.positions)
    assert torch.equal(answers[0].forward, answers[1].forward)
    assert all(torch.equal(one, other) for one, other in zip(answers[0].logits, answers[1].logits, strict=True))


def tokens_alone(model: am.GazedModel, item: Any) -> tuple[torch.Tensor, Any]:
    """A prompt of nothing but the visual tokens of a medium."""
    return torch.full((1, item.tokens), model.family.video_token_id), [[item]]


@holds("prefix")
@each(ALL)
def test_a_shared_prompt_changes_no_answer(name: str, short_clip: Path) -> None:
    _, model = wrapped(name, gaze="random", frames=4, ratio=0.5)
    if name in REFUSED:
        with pytest.raises(am.InputError, match=r"in the light of the question.*leave share_prompt out"):
            model.encode_video(short_clip, share_prompt=True)
        return
    plain, shared = model.encode_video(short_clip), model.encode_video(short_clip, share_prompt=True)
    read: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found = kwargs.get("inputs_embeds")
        read.append((kwargs["input_ids"] if found is None else found).shape[1])

    handle = model.family.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for question in ("What moves?", "What moves to the left?", "Which?"):
            del read[:]
            inputs = prepared(name, model, f"<video>\n{question}", [shared])
            found = model.generate(**inputs, **greedy(model.preprocessing, 3))
            first = read[0]
            whole = model.generate(
                **prepared(name, model, f"<video>\n{question}", [plain]), **greedy(model.preprocessing, 3)
            )
            assert_close(name, torch.stack(found.logits), torch.stack(whole.logits))
    finally:
        handle.remove()
    goes_on = first < inputs["input_ids"].shape[1]
    assert goes_on is (name not in NO_PREFIX)


def scored(name: str, base: Any, reference: dict[str, Any], answers: torch.Tensor) -> torch.Tensor:
    """(n,) what the base's own forward says of each answer (n, steps): the sum of its log probabilities."""
    found = []
    for answer in answers:
        with torch.no_grad():
            logits = base(**continued(name, reference, answer[None])).logits[0, -len(answer) - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(1, answer[:, None]).sum())
    return torch.stack(found)


@holds("beams")
@each(EQUAL, quick=["llava", "qwen3_vl", "gemma3", "paligemma"])
def test_beams_are_those_of_the_base(name: str) -> None:
    """The scores are checked against one forward of the base over each answer, because the base's own beams go astray
    where a version of it repeats several pictures of a prompt wrongly."""
    base, model = wrapped(name)
    frames = frames_of(name)
    reference = dense_inputs(name, base, model.preprocessing, QUESTION, [pixels_of(model, frames)])
    inputs = prepared(name, model, QUESTION, [keep_all(model, frames)])
    options = {key: value for key, value in greedy(model.preprocessing, 4).items() if key != "output_logits"}
    options |= {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, "length_penalty": 0.0}
    options["eos_token_id"] = -1  # no answer ends early
    found = model.generate(**inputs, **options)
    assert found.sequences.shape == (2, 4)
    assert not torch.equal(found.sequences[0], found.sequences[1])
    assert distance(found.sequences_scores, scored(name, base, reference, found.sequences)) < 1e-3
    own = base.generate(**reference, **options)
    if distance(own.sequences_scores, scored(name, base, reference, own.sequences[:, -4:])) < 1e-3:
        assert torch.equal(found.sequences, own.sequences[:, -4:])
    else:
        assert "pixel_values" in reference, "the base does not agree with itself"  # 5.17, where frames are images


@holds("beams")
@pytest.mark.slow
@each(ALL)
def test_several_drawn_answers_to_each_prompt(name: str) -> None:
    """Each drawn answer has the logits that one forward over it has."""
    _, model = wrapped(name)
    videos = [keep(model, frames_of(name, count=4, seed=seed), third(name, seed=seed)) for seed in (1, 2)]
    prompts = [QUESTION, "<video>\nAnd what is left of it?"]
    batch = prepared(name, model, prompts, [[video] for video in videos])
    options = greedy(model.preprocessing, 3) | {"do_sample": True, "num_return_sequences": 2, "temperature": 2.0}
    torch.manual_seed(0)
    found = model.generate(**batch, **options)
    assert found.sequences.shape == (4, 3)
    for number, answer in enumerate(found.sequences):
        row = number // 2
        inputs = prepared(name, model, prompts[row], [videos[row]])
        longer = continued(name, inputs, answer[None])
        labels = torch.full_like(longer["input_ids"], -100)
        labels[:, -3:] = longer["input_ids"][:, -3:]  # a prefix LM is told what is an answer
        with torch.no_grad():
            logits = model(**longer, labels=labels).logits[0, -4:-1]
        assert_close(name, torch.stack([step[number] for step in found.logits]), logits, times=2)


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.parts.append(value.flatten())

    def end(self) -> None:
        self.ended = True


@holds("stream")
@each(ALL)
def test_a_streamer_gets_the_answer(name: str) -> None:
    """The prompt first, as of the base, then one token after the other."""
    _, model = wrapped(name)
    inputs = prepared(name, model, QUESTION, [keep(model, frames_of(name, count=4), third(name))])
    streamer = Collected()
    found = model.generate(**inputs, **greedy(model.preprocessing, 3), streamer=streamer)
    prompt, *tokens = streamer.parts
    assert streamer.ended
    assert len(prompt) == inputs["input_ids"].shape[1]
    assert torch.cat(tokens).tolist() == found.sequences[0].tolist()
