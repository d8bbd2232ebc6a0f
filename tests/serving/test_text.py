"""From ids to text, piece by piece."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

import autogaze_mllm as am
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER
from autogaze_mllm.serving.text import TextWriter

TEXT = "  Was heißt das? 日本語 … 👍🏽 ok.\n\nEnd  of it \n"


@pytest.fixture(scope="module")
def tokenizer():
    """Of bytes: a character may be several ids."""
    return AutoTokenizer.from_pretrained(BUNDLED_FOLDER / "llm")


def written(tokenizer, text: str, stops=()) -> tuple[list[str], TextWriter]:
    writer = TextWriter(tokenizer, stops)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        pieces.append(writer.add(token))
        if writer.stopped:
            break
    return [*pieces, writer.close()], writer


def test_pieces_are_the_whole_text_without_blanks_around_it(tokenizer):
    pieces, writer = written(tokenizer, TEXT)
    assert "".join(pieces) == writer.text == TEXT.strip()
    assert sum(map(bool, pieces)) > 20 and not any("\ufffd" in piece for piece in pieces)
    assert writer.tokens == len(pieces) - 1 and not writer.stopped


def test_special_tokens_are_not_part_of_it(tokenizer):
    assert "".join(written(tokenizer, "up 4<|im_end|>")[0]) == "up 4"


def test_an_unfinished_character_at_the_end_is_shown_as_such(tokenizer):
    writer = TextWriter(tokenizer)
    first = tokenizer("日", add_special_tokens=False)["input_ids"][0]
    assert writer.add(first) == "" and writer.close() == "\ufffd"


@pytest.mark.parametrize(
    ("stops", "left"),
    [
        (["das"], "Was heißt"),
        (["\n\n"], TEXT[: TEXT.index("\n\n")].strip()),
        (["语", "語 …"], "Was heißt das? 日本"),
        (["End of", "xyz"], TEXT.strip()),
        (["  of", "End"], TEXT[: TEXT.index("End")].strip()),
    ],
)
def test_a_stop_ends_it_and_no_part_of_it_is_given(tokenizer, stops, left):
    pieces, writer = written(tokenizer, TEXT, stops)
    assert "".join(pieces) == left and writer.stopped == (left != TEXT.strip())


def test_a_beginning_that_does_not_become_a_stop_is_given_late(tokenizer):
    pieces, _ = written(tokenizer, "one two", ["onyx"])
    assert pieces[:2] == ["", "one"] and "".join(pieces) == "one two"


def test_an_answer_of_the_bundled_model_is_given_word_by_word(clip):
    model = am.load(cache=False, gaze="pixel-diff", loss=None, frames=4)
    whole = model.ask(clip, "What do the signs say, in order?", max_new_tokens=12)
    writer = TextWriter(model.tokenizer)
    inputs = model.prepare("<video>\nWhat do the signs say, in order?", videos=[clip])
    for token in model.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist():
        writer.add(token)
    writer.close()
    assert writer.text == whole
