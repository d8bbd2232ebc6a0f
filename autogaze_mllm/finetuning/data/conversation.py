"""Conversations in the base model's own chat format, with the answers marked: they alone are learnt.

A training prompt is, up to its answer, exactly what `GazedModel.prepare` makes of the same question. The answer is
followed by what the model's format ends a turn with, which is learnt too: it is how the model stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from ...common.errors import InputError
from ...mllm.families import Family
from ...mllm.preprocessing import Preprocessing
from ...mllm.prompt import TAG, placeholder_counts
from .samples import Sample, Turn

IGNORED = -100  # label of what is not learnt
MARK = "Q7wAnswer{}Zx4"  # stands for an answer while a chat template is asked for what surrounds it


@dataclass(frozen=True)
class Piece:
    """Text of a rendered conversation, and whether it is learnt."""

    text: str
    learnt: bool


@dataclass
class Encoded:
    """A conversation as tokens. spans: [start, end) of each medium's placeholders, in order."""

    ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]


def render_conversation(turns: Sequence[Turn], preprocessing: Preprocessing, family: Family) -> list[Piece]:
    """Pieces that joined give the conversation. Raises InputError where the model's format cannot show it."""
    if preprocessing.chat_template is None:
        return _by_family(turns, family)
    return _by_template(turns, preprocessing)


def _by_family(turns: Sequence[Turn], family: Family) -> list[Piece]:
    pieces = []
    if turns[0].role == "system":
        raise InputError("the model has no chat template, and its format no place for a system turn")
    for number, turn in enumerate(turns):
        text = family.chat(turn.text, first=number == 0) if turn.role == "user" else family.answer(turn.text)
        pieces.append(Piece(text, turn.role == "assistant"))
    return pieces


def _by_template(turns: Sequence[Turn], preprocessing: Preprocessing) -> list[Piece]:
    """Some templates write an earlier answer's header in another way than the one that is to be answered. What is asked
    of the template is therefore the prompt of every answer, of which what follows the answer before is new."""
    for structured in (True, False):
        try:
            return _asked(turns, preprocessing, structured)
        except (TypeError, jinja2.TemplateError, LookupError):  # made for the other form of content
            continue
    raise InputError("the model's chat template does not show this conversation")


def _asked(turns: Sequence[Turn], preprocessing: Preprocessing, structured: bool) -> list[Piece]:
    """Raises LookupError when the template leaves something out. structured: content as a list of parts."""
    shown, answers = [], 0
    for turn in turns:
        text = turn.text
        if turn.role == "assistant":
            text, answers = MARK.format(answers), answers + 1
        shown.append({"role": turn.role, "content": [{"type": "text", "text": text}] if structured else text})

    def render(messages: list[dict[str, Any]], prompt: bool) -> str:
        return preprocessing.tokenizer.apply_chat_template(
            messages, chat_template=preprocessing.chat_template, tokenize=False, add_generation_prompt=prompt
        )

    end = _after(render(shown, prompt=False), MARK.format(answers - 1)).rstrip()
    pieces: list[Piece] = []
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        told = render(shown[:number], prompt=True)
        if turns[number - 1].text not in told:
            raise LookupError("a question is missing")
        if pieces:
            told = _after(told, MARK.format(len(pieces) // 2 - 1))
            if not told.startswith(end):
                raise InputError("the model's chat template ends earlier answers in another way than the last")
            told = told[len(end) :]
        pieces += [Piece(told, False), Piece(turn.text + end, True)]
    return pieces


def _after(text: str, mark: str) -> str:
    _, found, rest = text.partition(mark)
    if not found:
        raise LookupError("an answer is missing")
    return rest


def encode_conversation(sample: Sample, tokens: Sequence[int], preprocessing: Preprocessing, family: Family) -> Encoded:
    """tokens: visual tokens of each medium. Raises InputError naming the sample."""
    try:
        pieces = render_conversation(sample.turns, preprocessing, family)
        return _encode(pieces, tokens, preprocessing, family)
    except InputError as error:
        raise InputError(f"{sample.place}: {error}") from error


def _encode(pieces: Sequence[Piece], tokens: Sequence[int], preprocessing: Preprocessing, family: Family) -> Encoded:
    tokenizer = preprocessing.tokenizer
    ids_of = {"image": family.image_token_id, "video": family.video_token_id}

    def placeholder(match: Any) -> str:
        return tokenizer.convert_ids_to_tokens(ids_of[match[1]])

    text, learnt = "", []
    for piece in pieces:
        start = len(text)
        text += piece.text if piece.learnt else TAG.sub(placeholder, piece.text)
        if piece.learnt:
            learnt.append((start, len(text)))
    starts_itself = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    found = tokenizer(text, add_special_tokens=not starts_itself, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    counts = placeholder_counts(ids, tokens, family, "the conversation")
    expanded: list[int] = []
    labels: list[int] = []
    spans: list[tuple[int, int]] = []
    inside = _inside(learnt)
    waiting = iter(tokens)
    for token, (start, end), count in zip(ids, offsets, counts, strict=True):
        if token in ids_of.values():
            spans.append((len(expanded), len(expanded) + next(waiting)))
        expanded += [token] * count
        labels += [token if end > start and inside(end - 1) else IGNORED] * count
    return Encoded(expanded, labels, spans)


def _inside(ranges: Sequence[tuple[int, int]]) -> Callable[[int], bool]:
    """Whether a character lies in one of the ranges; a token belongs where its last character does, because tokens
    begin with the space before them."""
    return lambda place: any(start <= place < end for start, end in ranges)
