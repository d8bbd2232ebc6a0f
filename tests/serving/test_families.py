"""Every family is served in this process: positions, types and prefixes of its own notwithstanding."""

from __future__ import annotations

import pytest

from ..helpers.families.conformance import wrapped
from ..helpers.families.models import NAMES
from ..helpers.serving.servers import asked, data_url, served

# One with mRoPE, one with deepstack and times in the text, one with recurrent layers, one that is told types, one that
# reads a video in the light of the question.
QUICK = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "paligemma")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_answers_of_every_family_are_those_of_the_model(name, clip):
    _, model = wrapped(name, gaze="random", frames=4, ratio=0.4)
    plain = [
        {"role": "user", "content": [{"type": "video", "video": str(clip)}, {"type": "text", "text": "What moves?"}]}
    ]
    expected = str(model.chat(plain, max_new_tokens=6))
    with served(model, max_tokens=6) as server:
        for _ in range(2):  # the second time what was seen is there
            reply = server.client.chat.completions.create(model="tiny", messages=asked(data_url(clip), "What moves?"))
            assert reply.choices[0].message.content == expected
        assert reply.gaze["seen_before"]
        assert reply.usage.prompt_tokens == model.stats["prompt_tokens"]
