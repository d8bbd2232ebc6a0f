"""Questions about one encoded video share what the LLM read of it, and are answered as if they did not."""

from __future__ import annotations

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.tiny import tiny_model

QUESTIONS = ("What moves?", "What moves to the left?", "Which colour is it?", "What moves?")


@pytest.fixture(scope="module")
def wrapped(short_clip):
    base, processor = tiny_model()
    return am.wrap(base, "all", processor=processor, settings=VideoSettings(frames=4), cache=False), short_clip


def fed(model, ask):
    """Tokens that the LLM reads while `ask` is called, the answer's own apart."""
    lengths = []

    def note(module, args, kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1] if kwargs.get("inputs_embeds") is not None else 0)

    handle = model.base.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        ask()
    finally:
        handle.remove()
    return lengths[0]


def test_answers_are_the_same_and_the_video_is_read_once(wrapped):
    model, clip = wrapped
    plain, shared = model.encode_video(clip), model.encode_video(clip, share_prompt=True)
    read = []
    for question in QUESTIONS:
        expected = model.ask(plain, question, max_new_tokens=6)
        got = []
        read.append(fed(model, lambda q=question, got=got: got.append(model.ask(shared, q, max_new_tokens=6))))
        assert got == [expected]
    assert read[0] > shared.tokens
    assert all(0 < later < shared.tokens for later in read[1:])


def test_scores_equal_those_of_a_prompt_read_whole(wrapped):
    model, clip = wrapped
    plain, shared = model.encode_video(clip), model.encode_video(clip, share_prompt=True)
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for question in QUESTIONS:
        whole = model.generate(**model.prepare(f"<video>\n{question}", [plain]), **options)
        begun = model.generate(**model.prepare(f"<video>\n{question}", [shared]), **options)
        for one, other in zip(whole.logits, begun.logits, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_two_videos_beams_and_broken_calls_never_go_on_from_what_is_kept(wrapped):
    model, clip = wrapped
    plain, shared = model.encode_video(clip), model.encode_video(clip, share_prompt=True)
    expected = model.ask(plain, QUESTIONS[0], max_new_tokens=4)
    model.ask(shared, QUESTIONS[0], max_new_tokens=4)
    for video, options in (([shared, shared], {}), (shared, {"num_beams": 2})):
        other = [plain, plain] if isinstance(video, list) else plain
        assert model.ask(video, "What?", max_new_tokens=4, **options) == model.ask(
            other, "What?", max_new_tokens=4, **options
        )
    layers = model.base.model.language_model.layers
    handle = layers[-1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        model.ask(shared, "Something else entirely, and longer?", max_new_tokens=4)
    handle.remove()
    assert model.ask(shared, QUESTIONS[0], max_new_tokens=4) == expected
