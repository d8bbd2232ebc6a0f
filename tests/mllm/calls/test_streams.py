"""Answers that are read while they are written."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
)

import autogaze_mllm as am

from ...helpers.families.models import build
from ...helpers.tiny_models import FAMILIES, make


class Words(LogitsProcessor):
    """A new line after every third character."""

    def __init__(self, line: int) -> None:
        self.line = line

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.line] = float("1e9" if input_ids.shape[1] % 4 == 0 else "-inf")
        return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_the_answer_in_pieces(family, clip):
    base, processor = build(family)
    model = am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=False)
    words = LogitsProcessorList([Words(model.tokenizer.convert_tokens_to_ids("\n"))])
    options = {"do_sample": True, "max_new_tokens": 30, "logits_processor": words}
    torch.manual_seed(0)
    answer = model.ask(clip, "What?", **options)
    torch.manual_seed(0)
    stream = model.stream(clip, "What?", **options)
    pieces = list(stream)
    assert "".join(pieces).strip() == answer and stream.text == "".join(pieces)
    assert len(pieces) > 2
    assert {**stream.stats, "seconds": 0} == {**answer.stats, "seconds": 0}
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    torch.manual_seed(0)
    assert model.ask(clip, "What?", streamer=streamer, **options) == "".join(streamer).strip() == answer


def test_a_stream_keeps_what_is_set_around_it(clip):
    base, processor = build("llava_onevision")
    model = am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=False)
    dtypes = []
    hook = base.model.language_model.layers[0].mlp.register_forward_hook(lambda *given: dtypes.append(given[2].dtype))
    try:
        with model.disabled(), torch.autocast("cpu", torch.bfloat16):
            expected = model.ask(clip, "What?", max_new_tokens=4)
            dtypes.clear()
            stream = model.stream(clip, "What?", max_new_tokens=4)
        assert "".join(stream).strip() == expected  # also where it is read outside
        assert set(dtypes) == {torch.bfloat16}
        assert stream.stats["visual_tokens"] == model.family.dense_count(3)
    finally:
        hook.remove()


def test_a_stream_that_is_closed_or_forgotten_stops(clip):
    _, model = make("llava", frames=3)
    steps = []
    handle = model.base.lm_head.register_forward_hook(lambda *_: (steps.append(1), time.sleep(0.01)))
    endless = {"max_new_tokens": 5000, "min_new_tokens": 5000}
    try:
        stream = model.stream(clip, "What?", **endless)
        stream.close()
        assert list(stream) == []
        del stream
        model.stream(clip, "What?", **endless)  # which nobody keeps
        time.sleep(0.3)
        before = len(steps)
        time.sleep(0.3)
        assert len(steps) == before < 100
    finally:
        handle.remove()


def test_errors_of_a_stream_are_raised_where_it_is_read(clip):
    _, model = make("llava", frames=3)
    with pytest.raises(am.InputError, match="no such file"):
        model.stream("nowhere.mp4", "What?")
    handle = model.base.lm_head.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of luck")))
    try:
        stream = model.stream(clip, "What?")
        with pytest.raises(RuntimeError, match="out of luck"):
            list(stream)
        assert list(stream) == []
    finally:
        handle.remove()
