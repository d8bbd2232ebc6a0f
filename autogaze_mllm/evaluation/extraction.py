"""From a model's reply to the letter that it chose. None is drawn at random: no letter is None.

`strict` is ours: the wrong letter is worse than none. The other rules are those of the benchmarks, wrong answers
included, so that scores can be compared with published ones; the one thing left out is the random letter that two of
them draw where they find none.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

from .commitment import marked_answers, plain, without_thoughts
from .phrases import (
    AND_LATIN,
    AND_OTHER,
    BETWEEN,
    DENIED,
    DENIES,
    DOUBTS,
    FINAL,
    REASONS,
    RIGHT_OTHER,
    SAYS_LATIN,
    SAYS_OTHER,
    SO,
)

_QUOTES = "\"'\u201c\u201d\u2018\u2019"
NESTED = 4  # marks within marks that are looked into
UNSAID, UNSAID_LAST = 3, 6  # of the ways to commit, the first that says nothing of an answer, and the least clear one
_WORD = r"[\w'\u2019]"  # what a letter must not be followed by
_DENIED, _DENIES, _DOUBTS = (re.compile(words, re.IGNORECASE) for words in (DENIED, DENIES, DOUBTS))


@functools.cache
def _commitments(letters: str) -> tuple[re.Pattern[str], ...]:
    """Ways to commit to a letter, the clearest first; every group is a letter."""
    some, no_abbreviation = rf"[{letters}]", r"(?!\.[A-Za-z]\b)"  # "e.g."
    bracketed = rf"[(\[]((?i:{some}))[)\]]"
    ended = rf"((?i:{some}))(?=\s*(?:$|\n)|[).:;,!]|\s+(?:{AND_LATIN})\s|\s*[,/&+]){no_abbreviation}"
    reasoned = rf"([{letters}])(?=\s+(?i:{'|'.join(REASONS)})\b)"
    # Behind "the answer is", a capital counts whatever follows, except the article A.
    capital = rf"([{letters.replace('A', '') or letters}])(?!{_WORD}){no_abbreviation}"
    latin, other = rf"(?i:\b(?:{'|'.join(SAYS_LATIN)}){BETWEEN})", rf"(?i:(?:{'|'.join(SAYS_OTHER)}){BETWEEN})"
    meant = rf"((?i:{some}))(?![A-Za-z0-9'\u2019]){no_abbreviation}"
    one = rf"(?:{bracketed}|{ended}|{reasoned}|{capital})"
    begins = r"\A\W*(?i:(?:the\s+)?(?:correct\s+|best\s+|right\s+)?(?:answer\s+|option\s+|choice\s+|letter\s+)?)"
    right = r"\s+(?i:(?:is|would\s+be|must\s+be)\s+(?:the\s+)?(?:most\s+)?(?:correct|right|best|accurate|answer))"
    forms = (
        rf"(?i:{FINAL}(?:\s*(?:is|:|=|ist|est|是|は|은|는))*{BETWEEN}){one}",
        rf"(?:{latin}{one}|{other}(?:{bracketed}|{meant}))",
        rf"(?:[(\[]({some})[)\]]|(?<!{_WORD})({some}))(?={right})|(?<![A-Za-z0-9])({some})(?={RIGHT_OTHER})",
        rf"{begins}(?:{bracketed}|{ended}|{reasoned})",
        rf"(?i:{SO})[\s,:]*(?i:option\s+)?(?:[(\[]({some})[)\]]|({some}))\W*\Z",
        rf"\n[^\w\n]*({some})[)\].]*\W*\Z",  # the last line is a letter
        bracketed,
    )
    return tuple(re.compile(unicodedata.normalize("NFKC", form)) for form in forms)


@functools.cache
def _another(letters: str) -> re.Pattern[str]:
    """What makes several of one: "or C", "/ (C)"."""
    both = rf"(?:\s+(?i:{AND_LATIN})\s+|\s*(?:{AND_OTHER})\s*(?:(?i:{AND_LATIN})\s+)?)"
    return re.compile(rf"[)\]]?{both}(?i:option\s+)?[(\[]?[{letters}](?!{_WORD})")


def strict(reply: str, letters: str) -> str | None:
    """The one letter that a reply commits to; None where there is none, or where it commits to several.

    Thoughts do not count, also where they are cut off. What the reply marks as its answer (`<answer>`, a box, json)
    goes before the rest. A reply commits by being a letter, by saying that the answer (option, choice) is a letter, by
    beginning with one as options do ("C. ...", "(C) ..."), by ending in a line that is one, or by one letter in
    brackets; not by a letter that it denies or only supposes.
    """
    return _strict(without_thoughts(reply), letters, NESTED)


def _strict(text: str, letters: str, deeper: int) -> str | None:
    marked = marked_answers(text) if deeper else []
    if marked:
        chosen = {letter for part in marked if (letter := _strict(part, letters, deeper - 1)) is not None}
        return chosen.pop() if len(chosen) == 1 else None
    text = plain(text)
    alone = re.fullmatch(rf"\W*([{letters}])\W*", text, re.IGNORECASE)
    if alone:
        return alone[1].upper()
    listed = len(set(re.findall(rf"(?:^|[\n;,.!?])\s*[(\[]?([{letters}])[).:\]](?=\s|$)", text))) > 1
    for number, pattern in enumerate(_commitments(letters)):
        if listed and number >= UNSAID:  # the options are gone through: only what says that it is the answer counts
            return None
        found: set[str] = set()
        for match in pattern.finditer(text):
            group = next(number for number, part in enumerate(match.groups(), 1) if part)
            if _another(letters).match(text, match.end(group)):
                return None
            if not _is_denied(text, match.start(), match.start(group), match.end(group)):
                found.add(match[group].upper())
        if found and number in (UNSAID, UNSAID_LAST):
            found |= _named(text, letters, ending=number == UNSAID)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _named(text: str, letters: str, ending: bool) -> set[str]:
    """Letters that stand alone anywhere, but for what may be the article; ending: only those that end a sentence."""
    after = r"(?=\s*$|[.!?](?:\s|$))" if ending else rf"(?!{_WORD})(?:(?<!A)|(?!\s+[a-z]))"
    return set(re.findall(rf"(?<!{_WORD})([{letters}]){after}", text))


def _is_denied(text: str, start: int, letter: int, end: int) -> bool:
    """Whether the letter is said not to be the answer, or only supposed to be. start: of the words that it follows."""
    near = max(start - 60, 0)
    before, inside, after = text[near:start], text[near:letter], text[end:].lstrip(")]")
    cut_off = text[letter:end] in ("a", "e") and not after and letter > start  # "the answer is a" man?
    return bool(_DENIED.match(after) or _DENIES.search(inside) or _DOUBTS.search(before) or cut_off)


_CONCLUDES = re.compile(r"\b(?:answer|option|choice)\s*(?:is|:)\s*", re.IGNORECASE)


def named_option(reply: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose words are the reply, or all that follows its last "the answer is".

    Thoughts are left out, and what is marked as the answer is the reply. Case, spaces and marks around do not count.
    options: their texts, with or without a letter before ("A. red").
    """
    text = without_thoughts(reply)
    said = {_words(_CONCLUDES.split(plain(part))[-1]) for part in marked_answers(text) or [text]}
    texts = [
        _words(re.sub(rf"\A\s*\(?{letter}[.):]\s*", "", option))
        for letter, option in zip(letters, options, strict=False)
    ]
    named = [letter for letter, text in zip(letters, texts, strict=False) if text and said == {text}]
    return named[0] if len(named) == 1 else None


def _words(text: str) -> str:
    return " ".join(text.lower().split()).strip(_QUOTES + " .,:;!{}")


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
