"""Subtitles in SubRip files, and which of them belong to the sampled frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import InputError

_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Cue:
    """Shown from start to end, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> tuple[Cue, ...]:
    """The cues of an .srt file that have text, in time order, without markup. Raises InputError naming the line."""
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line_number = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line_number}: not UTF-8 text; convert the file, for example with iconv"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    spans = [(number, match) for number, line in enumerate(lines) if (match := _SPAN.match(line))]
    if not spans:
        if content.strip():
            raise InputError(f"{path}, line 1: not an .srt file (no line like 00:00:01,000 --> 00:00:02,000)")
        return ()
    cues = []
    for number, match in spans:
        text: list[str] = []
        for line in lines[number + 1 :]:
            if not line.strip():
                break
            text.append(_MARKUP.sub("", line).strip())
        start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        if end < start:
            raise InputError(f"{path}, line {number + 1}: the cue ends before it starts")
        if any(text):
            cues.append(Cue(start, end, " ".join(part for part in text if part)))
    return tuple(sorted(cues, key=lambda cue: cue.start))


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def shown_at(cues: Sequence[Cue], seconds: Sequence[float]) -> list[str]:
    """Texts of the cues during which at least one of the frames, given by their times, is shown."""
    return [cue.text for cue in cues if any(cue.start <= time < cue.end for time in seconds)]
