"""Which part of a reply is its answer: without the thoughts before it, out of the marks that models put around it.

Models think aloud between tags, cut-off ones never close them, and templates may open them in the prompt, so that only
the end is in the reply. What is left may mark the answer: `<answer>`, `\\boxed{}`, json, a box of its own.
"""

from __future__ import annotations

import re
import unicodedata

_THOUGHTS = "think|thinking|thoughts?|reason|reasoning|analysis|scratchpad|reflection|seed:think"
_THOUGHT = re.compile(
    rf"<(?P<a>/?)(?:{_THOUGHTS})\s*>"
    r"|\u25c1(?P<b>/?)think\u25b7"  # ◁think▷
    r"|\[(?P<c>/?)think\]"
    r"|<\|(?P<d>begin|end)_of_thought\|>",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|(?!begin_of_box|end_of_box|begin_of_thought|end_of_thought)[^|<>]{0,40}\|>")

_TAG = "answer|final_answer|finalanswer|ans|choice|option|letter|final|solution|result|output"
_MARKED = (
    re.compile(rf"<({_TAG})\s*>(.*?)(?=</\1\s*>|<\1\s*>|\Z)", re.IGNORECASE | re.DOTALL),
    re.compile(r"<\|(begin_of_box)\|>(.*?)(?=<\|end_of_box\|>|\Z)", re.DOTALL),
    re.compile(r"<\|(begin_of_solution)\|>(.*?)(?=<\|end_of_solution\|>|\Z)", re.DOTALL),
    re.compile(
        r'["\'](answer|final[_ ]?answer|correct[_ ]?(?:answer|option|choice)|(?:selected[_ ]?)?(?:choice|option)|letter'
        r'|prediction)["\']\s*:\s*\[?\s*["\']([^"\'\n]*)',
        re.IGNORECASE,
    ),
    re.compile(r"(?:^|\n)[ \t]*(####)[ \t]*([^\n]*)"),
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")

_LATEX = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|operatorname|displaystyle)\b\s*")
_EMPHASIS = re.compile(r"[*_`$]+|</?(?:b|i|u|p|strong|em|br|span|code)\s*/?>|\\[()\[\]]|\\+$", re.IGNORECASE)
_QUOTES = "\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb\u2039\u203a"
_AROUND = re.compile(rf"[{_QUOTES}]([A-Za-z])([.)]?)[{_QUOTES}]")
_BRACKETS = re.compile(r"[<{\u3010\u300c\u300e\u3014\u27e8]\s*([A-Za-z])\s*[>}\u3011\u300d\u300f\u3015\u27e9]")


def without_thoughts(reply: str) -> str:
    """What a reply says after and around its thoughts; what follows a thought that is never closed is part of it."""
    channels = list(_CHANNEL.finditer(reply))
    if channels:
        finals = [match for match in channels if match[1].lower() == "final"]
        return _SPECIAL.split(reply[finals[-1].end() :])[0] if finals else ""
    kept: list[str] = []
    depth, offset = 0, 0
    for match in _THOUGHT.finditer(reply):
        if depth == 0:
            kept.append(reply[offset : match.start()])
        closes = match["d"] == "end" if match["d"] else any(match[name] for name in "abc")
        if not closes:
            depth += 1
        elif depth:
            depth -= 1
        else:  # it was opened in the prompt
            kept.clear()
        offset = match.end()
    if depth == 0:
        kept.append(reply[offset:])
    return "".join(kept)


def marked_answers(text: str) -> list[str]:
    """What stands in the marks of an answer, empty ones left out; none where there are no such marks."""
    found = [match[2] for pattern in _MARKED for match in pattern.finditer(text)]
    return [part for part in [*found, *_boxes(text)] if part.strip()]


def _boxes(text: str) -> list[str]:
    """What is in boxes, each to its own closing brace; boxes within boxes are part of these."""
    found, offset = [], 0
    while (box := _BOX.search(text, offset)) is not None:
        depth, end = 1, len(text)
        for brace in re.finditer(r"[{}]", text[box.end() :]):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                end = box.end() + brace.start()
                break
        found.append(text[box.end() : end])
        offset = end
    return found


def plain(text: str) -> str:
    """The same words in one alphabet of signs: wide letters and brackets as narrow ones, no emphasis, no LaTeX, and no
    more than one space or line break between them."""
    text = unicodedata.normalize("NFKC", text).replace("\u3002", ".").replace("\u3001", ",")
    text = _SPECIAL.sub("", text)
    if "\\" in text:
        text = _LATEX.sub("", text)
    text = _EMPHASIS.sub("", text)
    text = _BRACKETS.sub(r"(\1)", text)
    lines = (" ".join(line.split()) for line in _AROUND.sub(r"\1\2", text).splitlines())
    return "\n".join(filter(None, lines)).strip(_QUOTES).strip()
