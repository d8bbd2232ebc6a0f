"""From a model's reply to the letter that it chose. None is drawn at random: no letter is None.

`strict` is ours. The other rules are those of the benchmarks, wrong answers included, so that scores can be compared
with published ones; the one thing left out is the random letter that two of them draw where they find none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

_QUOTES = "\"'\u201c\u201d\u2018\u2019"
_EMPHASIS = re.compile(r"[*_`]+|</?(?:b|i|strong|em|answer)>", re.IGNORECASE)
# What may follow a bare letter without making it part of a sentence: "A because ...", "A is correct", not "A man ...".
_REASON = r"because|since|as|due|given|is\s+(?:the\s+)?(?:correct|right|best)"


@functools.cache
def _commitments(letters: str) -> tuple[re.Pattern[str], ...]:
    """Ways to commit to a letter, the clearest first; every group is a letter."""
    decided = rf"(?!\s*(?:,|/|or\b|and\b)\s*[(\[]?[{letters}]\b)"  # not "B or C"
    bracketed = rf"[(\[]((?i:[{letters}]))[)\]]"
    ended = rf"((?i:[{letters}]))(?=\s*(?:$|\n)|[).:;,!]){decided}"
    reasoned = rf"([{letters}])(?=\s+(?:{_REASON})\b)"
    # Behind "the answer is", a capital counts whatever follows, except the article A.
    capital = rf"([{letters.replace('A', '') or letters}])(?![\w'\u2019])"
    says = r"(?i:\b(?:answer|option|choice)\s*(?:is|would be|should be|:|=)(?:\s*(?:option\b|:))*\s*)"
    begins = r"\A(?i:(?:the\s+)?(?:correct\s+|best\s+)?(?:answer\s+|option\s+|choice\s+)?)"
    return tuple(
        re.compile(pattern)
        for pattern in (
            rf"{says}(?:{bracketed}{decided}|{ended}|{reasoned}|{capital})",
            rf"{begins}(?:{bracketed}{decided}|{ended}|{reasoned})",
            rf"\n\s*[(\[]?([{letters}])[)\].]*\Z",  # the last line is a letter
            bracketed,
        )
    )


def strict(reply: str, letters: str) -> str | None:
    """The one letter that a reply commits to; None where there is none, or where it commits to several.

    A reply commits by being a letter, by saying that the answer (option, choice) is a letter, by beginning with one as
    options do ("C. ...", "(C) ..."), by ending in a line that is one, or by one letter in brackets.
    """
    text = _EMPHASIS.sub("", reply).strip().strip(_QUOTES).strip()
    alone = re.fullmatch(rf"[(\[]?([{letters}])[)\].:,;!]*", text, re.IGNORECASE)
    if alone:
        return alone[1].upper()
    for pattern in _commitments(letters):
        found = {next(filter(None, match.groups())).upper() for match in pattern.finditer(text)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


_CONCLUDES = re.compile(r"\b(?:answer|option|choice)\s*(?:is|:)\s*", re.IGNORECASE)


def named_option(reply: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose words are the reply, or all that follows its last "the answer is".

    Case, spaces and the marks around do not count. options: their texts, with or without a letter before ("A. red").
    """
    said = _words(_CONCLUDES.split(_EMPHASIS.sub("", reply))[-1])
    texts = [
        _words(re.sub(rf"\A\s*\(?{letter}[.):]\s*", "", option))
        for letter, option in zip(letters, options, strict=False)
    ]
    named = [letter for letter, text in zip(letters, texts, strict=False) if text and text == said]
    return named[0] if len(named) == 1 else None


def _words(text: str) -> str:
    return " ".join(text.lower().split()).strip(_QUOTES + " .,:;!")


def first_word(reply: str, letters: str) -> str | None:
    """The first letter that stands as a word, in either case."""
    found = re.search(rf"\b([{letters}])\b", reply, re.IGNORECASE)
    return found[1].upper() if found else None


def first_capital(reply: str, letters: str, phrases: Sequence[str]) -> str | None:
    """The first capital among `letters`, anywhere, once the phrases were taken out one after the other."""
    for phrase in phrases:
        reply = reply.replace(phrase, "")
    found = re.search(f"[{letters}]", reply)
    return found[0] if found else None


def before_bracket(reply: str, letters: str) -> str | None:
    """The character before the first closing bracket, or else the whole reply."""
    reply = reply.strip()
    chosen = reply[: reply.index(")")][-1:] if ")" in reply else reply
    return chosen if len(chosen) == 1 and chosen in letters else None


def whole_option(reply: str, letters: str, options: Sequence[str]) -> str | None:
    """The reply is an option, word for word: "B. the text.", "the text." or "B". options: "A. the text", ..."""
    full = [option if option.endswith(".") else option + "." for option in options]
    parts = [option.split(". ") for option in full]
    for candidates in (full, [part[1] if len(part) > 1 else part[0] for part in parts], [part[0] for part in parts]):
        if reply in candidates:
            return letters[candidates.index(reply)]
    return None


def last_mention(reply: str, letters: str, options: Sequence[str]) -> str | None:
    """Letters in brackets; if there are none, letters before a space; if none, before a full stop; if none and the
    reply has more than five words, option texts. Of several, the one whose last mention comes last."""
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        reply = reply.strip(mark)
    reply = f" {reply} "
    for found_by, placed_by in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [
            (reply.rfind(placed_by.format(letter)), letter) for letter in letters if found_by.format(letter) in reply
        ]
        if found:
            return max(found, key=lambda mention: mention[0])[1]
    lower = reply.lower()
    texts = [option.strip().lower() for option in options] if len(lower.split()) > 5 else []
    named = [(lower.rfind(text), letter) for letter, text in zip(letters, texts, strict=False) if text in lower]
    return max(named, key=lambda mention: mention[0])[1] if named else None
