"""Conversations in the base model's own chat format, with the answers marked: they alone are learnt.

A training prompt is, up to its answer, exactly what `GazedModel.prepare` makes of the same question. The answer is
followed by what the model's format ends a turn with, which is learnt too: it is how the model stops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from ...common.errors import InputError
from ...mllm.families import Family
from ...mllm.media import Layout
from ...mllm.preprocessing import Preprocessing
from ...mllm.prompts.prompt import ESCAPED, LITERAL, TAG, media_text, placeholder_counts, text_tokens
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
    """A conversation as tokens. spans: [start, end) of what each medium becomes, in order. cut: tokens that were left
    out at the end."""

    ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int]]
    cut: int = 0


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
        rendered = render(shown[:number], prompt=True)
        if turns[number - 1].text not in rendered:
            raise LookupError("a question is missing")
        if pieces:
            rendered = _after(rendered, MARK.format(len(pieces) // 2 - 1))
            if not rendered.startswith(end):
                raise InputError("the model's chat template ends earlier answers in another way than the last")
            rendered = rendered[len(end) :]
        pieces += [Piece(rendered, False), Piece(turn.text + end, True)]
    return pieces


def _after(text: str, mark: str) -> str:
    _, found, rest = text.partition(mark)
    if not found:
        raise LookupError("an answer is missing")
    return rest


def encode_conversation(
    sample: Sample, layouts: Sequence[Layout], preprocessing: Preprocessing, family: Family
) -> Encoded:
    """layouts: what each medium becomes. Raises InputError naming the sample."""
    try:
        pieces = render_conversation(sample.turns, preprocessing, family)
        return _encode(pieces, layouts, preprocessing, family)
    except InputError as error:
        raise InputError(f"{sample.where}: {error}") from error


def _encode(
    pieces: Sequence[Piece], layouts: Sequence[Layout], preprocessing: Preprocessing, family: Family
) -> Encoded:
    tokenizer = preprocessing.tokenizer
    text, learnt, media = _with_media(pieces, layouts, family)
    starts_itself = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    special = family.add_special_tokens and not starts_itself
    ids, offsets = text_tokens(text, tokenizer, special)
    runs = [piece for layout in layouts for piece in layout if isinstance(piece, int)]
    counts = placeholder_counts(ids, runs, family, "the conversation")
    expanded: list[int] = []
    labels: list[int] = []
    inside = _inside(learnt)
    starts = [len(ids)] * len(media)  # of each medium, its first token, and the first after it
    ends = [len(ids)] * len(media)
    before = [0, *itertools.accumulate(counts)]
    for number, (token, (start, end), count) in enumerate(zip(ids, offsets, counts, strict=True)):
        expanded += [token] * count
        labels += [token if end > start and inside(end - 1) else IGNORED] * count
        for medium, (first, last) in enumerate(media):
            if end > start and start >= first:
                starts[medium] = min(starts[medium], number)
            if end > start and start >= last:
                ends[medium] = min(ends[medium], number)
    spans = [(before[start], before[end]) for start, end in zip(starts, ends, strict=True)]
    return Encoded(expanded, labels, spans)


def _with_media(
    pieces: Sequence[Piece], layouts: Sequence[Layout], family: Family
) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
    """-> the conversation's text, one placeholder for each run; characters [start, end) that are learnt, and those of
    each medium."""
    text, waiting = "", iter(layouts)
    learnt: list[tuple[int, int]] = []
    media: list[tuple[int, int]] = []
    for piece in pieces:
        start, said = len(text), ESCAPED.sub(LITERAL, piece.text)
        if piece.learnt:
            text += said
            learnt.append((start, len(text)))
            continue
        done = 0
        for match in TAG.finditer(said):
            text += said[done : match.start()]
            shown = media_text(next(waiting), match[1], family)
            media.append((len(text), len(text) + len(shown)))
            text, done = text + shown, match.end()
        text += said[done:]
    return text, learnt, media


def _inside(ranges: Sequence[tuple[int, int]]) -> Callable[[int], bool]:
    """Whether a character lies in one of the ranges; a token belongs where its last character does, because tokens
    begin with the space before them."""
    return lambda offset: any(start <= offset < end for start, end in ranges)
