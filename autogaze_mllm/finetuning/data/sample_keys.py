"""Which keys rows of training data may have, and what those say that mean a part of a video.

A key that is passed over changes what is learnt without a word, so only those are let through that mean something here,
and labels that mean nothing to anybody's training. What has no value (null) is as good as absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from ...common.errors import InputError
from ...video.sources import Video
from .sample_gaze import KEY

PART_KEYS = {"video_start": "start", "start": "start", "video_end": "end", "end": "end", "fps": "fps"}
MEDIA_KEYS = {"video": ("video", "videos"), "image": ("image", "images")}
TURN_KEYS = {"conversations": ("from", "value"), "messages": ("role", "content")}
# Labels in published data sets: names, where a row comes from, what it is about, and facts about its media.
LABELS = frozenset({
    "id", "idx", "index", "uid", "uuid", "sample_id", "question_id", "qid", "problem_id", "doc_id", "video_id", "vid",
    "image_id", "video_name", "image_name", "source", "data_source", "dataset", "dataset_name", "data_name",
    "data_type", "split", "task", "task_type", "type", "question_type", "problem_type", "category", "sub_category",
    "subcategory", "domain", "topic", "tags", "metadata", "meta", "info", "comment", "note", "license", "url", "title",
    "language", "lang", "duration", "video_duration", "width", "height", "length", "num_tokens", "model", "question",
    "answer", "options", "solution",
})  # fmt: skip
TURN_LABELS = frozenset({"id", "idx", "index", "name"})

Part = dict[str, float]
"""start, end and fps, as of `Video`, as far as they are said."""


def check_row(row: dict[str, Any], faults: list[str]) -> None:
    known = [key for keys in MEDIA_KEYS.values() for key in keys] + [*TURN_KEYS, KEY, *PART_KEYS]
    faults += unknown_keys(row, known, LABELS, "")


def check_turn(turn: dict[str, Any], number: int, keys: Iterable[str], faults: list[str]) -> None:
    faults += unknown_keys(turn, keys, TURN_LABELS, f"turn {number}: ")


def unknown_keys(given: dict[str, Any], known: Iterable[str], labels: frozenset[str], where: str) -> list[str]:
    """A line for each key that has a value and no meaning here. place: what the lines begin with."""
    known = list(known)
    faults = []
    for key, value in given.items():
        if value is None or key in known or key in labels or key.startswith("_"):
            continue
        near = get_close_matches(key, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}, and labels such as id or source"
        )
        faults.append(f"{where}the key {key!r} means nothing here: {hint}")
    return faults


def part_of(given: dict[str, Any], where: str, faults: list[str]) -> Part:
    """The part of a video that a content part names."""
    part: Part = {}
    for key, name in PART_KEYS.items():
        if given.get(key) is None:
            continue
        if name in part:
            faults.append(f"{where}{key!r} is said twice")
        part[name] = given[key]
    return part if _possible(part, where, faults) else {}


def parts_of_row(row: dict[str, Any], videos: int, faults: list[str]) -> list[Part]:
    """What a row says of each of its videos: a number where it has one video, otherwise a list; fps may be for all."""
    parts: list[dict[str, Any]] = [{} for _ in range(videos)]
    for key, name in PART_KEYS.items():
        value = row.get(key)
        if value is None:
            continue
        if not videos:
            faults.append(f"{key!r} is said of a video, but there is none")
            continue
        values = value if isinstance(value, list) else [value] * (videos if name == "fps" else 1)
        if len(values) != videos:
            faults.append(f"{key!r} must be a list of {videos} numbers, one for each video, got {value!r}")
            continue
        for part, one in zip(parts, values, strict=True):
            if one is not None and name in part:
                faults.append(f"{key!r} is said twice")
            elif one is not None:
                part[name] = one
    return [part if _possible(part, "", faults) else {} for part in parts]


def _possible(part: dict[str, Any], where: str, faults: list[str]) -> bool:
    try:
        Video("video", **part)
    except InputError as error:
        faults.append(f"{where}{error}")
        return False
    return True
