"""Training samples from json and jsonl files, in the two conventions that are in use.

`conversations` (LLaVA, VILA): turns {"from": "human" | "gpt", "value": text} beside `video` and `image`.
`messages` (OpenAI, ms-swift, LLaMA-Factory): turns {"role": "user" | "assistant", "content": text} beside `videos` and
`images`; content may also be a list of parts, in which media stand where they belong.

`gaze` says how a sample's videos are looked at, where not as all others (sample_gaze.py); `video_start`, `video_end`
and `fps` say which part of a video is meant. Keys without a meaning are refused (sample_keys.py).
A `<video>` or `<image>` tag marks the place of a medium. Without any tag the media come before the first question.
Where a sample has videos only, `<image>` tags stand for them, as in LLaVA's video data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...common.errors import InputError, listed
from ...common.pixels import open_picture
from ...common.storage.json_text import parse_json
from ...common.storage.paths import shown_name
from ...mllm.prompts.prompt import TAG, tags_in
from ...video.sources import Video
from .sample_gaze import GazeSpec, gaze_spec_of
from .sample_keys import (
    MEDIA_KEYS,
    PART_KEYS,
    TURN_KEYS,
    Part,
    check_row,
    check_turn,
    part_of,
    parts_of_row,
    unknown_keys,
)

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHOWN_FAULTS = 5


@dataclass(frozen=True)
class Turn:
    """role: user, assistant or system."""

    role: str
    text: str


@dataclass(frozen=True)
class Medium:
    """kind: video or image. look: how it is looked at, where not as the training says. start, end, fps: as of `Video`,
    where a part of it is meant, or frames by the second."""

    kind: str
    path: Path
    gaze_spec: GazeSpec | None = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    def video(self) -> Video:
        return Video(self.path, self.start, self.end, self.fps)


@dataclass(frozen=True)
class Sample:
    """A conversation whose tags have their media, in the order of the tags. place: file and row, for messages."""

    turns: tuple[Turn, ...]
    media: tuple[Medium, ...]
    where: str


@dataclass(frozen=True)
class Fault:
    """row: counted from 1; in jsonl files it is the line."""

    file: str
    row: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.message}"


def read_samples(files: Sequence[str | Path], media_root: str | Path | None = None) -> tuple[list[Sample], list[Fault]]:
    """All samples of the files, and everything that is wrong with the others; media files are not looked at yet.

    media_root: what relative media paths start from (default: the folder of their data file).
    Raises InputError for a file that cannot be read at all.
    """
    samples: list[Sample] = []
    faults: list[Fault] = []
    for file in map(Path, files):
        root = file.parent if media_root is None else Path(media_root)
        for row, content in _rows(file):
            if isinstance(content, Fault):
                faults.append(content)
                continue
            sample, wrong = _parse(content, root, f"{file}, row {row}")
            faults += [Fault(str(file), row, message) for message in wrong]
            if sample is not None:
                samples.append(sample)
    return samples, faults


def check_samples(
    files: Sequence[str | Path], media_root: str | Path | None = None, progress: bool = False
) -> tuple[list[Sample], list[Fault]]:
    """As `read_samples`, and opens every video and image once. Faults are in the order of files and rows."""
    samples, faults = read_samples(files, media_root)
    states: dict[Medium, str | None] = {}
    order = {str(file): number for number, file in enumerate(files)}
    for sample in tqdm(samples, desc="checking media", unit="sample", disable=not progress):
        file, row = sample.where.rsplit(", row ", 1)
        for medium in dict.fromkeys(sample.media):
            if medium not in states:
                states[medium] = medium_fault(medium)
            message = states[medium]
            if message is not None:
                faults.append(Fault(file, int(row), message))
    return samples, sorted(faults, key=lambda fault: (order[fault.file], fault.row))


def load_samples(files: Sequence[str | Path], media_root: str | Path | None = None) -> list[Sample]:
    """The samples of files without faults; otherwise an InputError that names the first of them."""
    samples, faults = read_samples(files, media_root)
    if faults:
        raise InputError(f"{listed(faults, SHOWN_FAULTS, '; ')} (`autogaze-mllm finetune --check` lists all)")
    if not samples:
        raise InputError(f"{', '.join(map(str, files))}: no samples")
    return samples


def medium_fault(medium: Medium) -> str | None:
    """What is wrong with a media file, or None."""
    try:
        if medium.kind == "video":
            medium.video().sampled(1)
        else:
            open_picture(medium.path)
    except InputError as error:
        return str(error)
    return None


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(row, content); the content of a row that is not json is a Fault."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{shown_name(str(file))}: cannot be read ({reason})") from error
    if file.suffix.lower() == ".jsonl":
        for row, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand inside a text
            if line.strip():
                try:
                    yield row, parse_json(line, "")
                except InputError as error:
                    yield row, Fault(str(file), row, str(error).removeprefix(": "))
        return
    try:
        content = parse_json(text, file)
    except InputError as error:
        raise InputError(f"{error}; one sample per line needs the ending .jsonl") from error
    if not isinstance(content, list):
        raise InputError(f"{file}: expected a json list of samples")
    yield from enumerate(content, 1)


def _parse(content: Any, root: Path, where: str) -> tuple[Sample | None, list[str]]:
    """One row -> its sample, or everything that is wrong with it."""
    if not isinstance(content, dict):
        return None, [f"expected an object, got {type(content).__name__}"]
    faults: list[str] = []
    check_row(content, faults)
    listed = {kind: _listed_media(content, kind, faults) for kind in MEDIA_KEYS}
    turns, inline = _turns(content, faults)
    for kind, found in inline.items():
        if found and listed[kind]:
            faults.append(f"{kind}s are given both beside the messages and inside them")
        listed[kind] += found
    for (_, part), said in zip(listed["video"], parts_of_row(content, len(listed["video"]), faults), strict=True):
        if part.keys() & said.keys():
            faults.append(f"{min(part.keys() & said.keys())!r} is said both beside the messages and inside them")
        part |= said
    if turns:
        _check_order(turns, faults)
        turns = _placed(turns, {kind: len(found) for kind, found in listed.items()}, faults)
    try:
        gaze_spec = gaze_spec_of(content)
    except InputError as error:
        faults.append(str(error))
    if faults:
        return None, faults
    waiting = {kind: iter(found) for kind, found in listed.items()}
    media = []
    for kind in (kind for turn in turns for kind in tags_in(turn.text)):
        path, part = next(waiting[kind])
        media.append(Medium(kind, root / path, gaze_spec if kind == "video" else None, **part))
    return Sample(tuple(turns), tuple(media), where), []


def _listed_media(content: dict[str, Any], kind: str, faults: list[str]) -> list[tuple[str, Part]]:
    """The media beside the turns; of which part, is said in other keys."""
    found: list[tuple[str, Part]] = []
    for key in MEDIA_KEYS[kind]:
        given = content.get(key)
        if given in (None, "", []):
            continue
        for path in given if isinstance(given, list) else [given]:
            if isinstance(path, str) and path.strip():
                found.append((path, {}))
            else:
                faults.append(f"{key!r} must be a path or a list of paths, got {path!r}")
    return found


def _turns(content: dict[str, Any], faults: list[str]) -> tuple[list[Turn], dict[str, list[tuple[str, Part]]]]:
    """The turns, and the media that stand inside them, by kind."""
    inline: dict[str, list[tuple[str, Part]]] = {kind: [] for kind in MEDIA_KEYS}
    names = [name for name in TURN_KEYS if content.get(name) is not None]
    if len(names) != 1:
        faults.append("expected either 'conversations' or 'messages'" + (", got both" if names else ""))
        return [], inline
    entries, (role_key, text_key) = content[names[0]], TURN_KEYS[names[0]]
    if not isinstance(entries, list) or not entries:
        faults.append(f"{names[0]!r} must be a list of turns")
        return [], inline
    turns = []
    for number, turn in enumerate(entries, 1):
        role = ROLES.get(str(turn.get(role_key))) if isinstance(turn, dict) else None
        if role is None:
            got = turn.get(role_key) if isinstance(turn, dict) else turn
            faults.append(f"turn {number}: {role_key!r} must be one of {', '.join(ROLES)}, got {got!r}")
            continue
        check_turn(turn, number, (role_key, text_key), faults)
        text = turn.get(text_key)
        if isinstance(text, list):
            text = _joined_parts(text, number, inline, faults)
        elif not isinstance(text, str):
            faults.append(f"turn {number}: {text_key!r} must be text, got {text!r}")
            continue
        turns.append(Turn(role, text.strip()))
    return (turns if len(turns) == len(entries) else []), inline


def _joined_parts(parts: list[Any], number: int, inline: dict[str, list[tuple[str, Part]]], faults: list[str]) -> str:
    """A list of content parts as text with tags."""
    text, where = "", f"turn {number}: "
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
            faults += unknown_keys(part, ("type", "text"), frozenset(), where)
        elif kind in MEDIA_KEYS:
            text += f"<{kind}>"
            more = PART_KEYS if kind == "video" else ()
            faults += unknown_keys(part, ("type", kind, "path", *more), frozenset(), where)
            path = next((part[key] for key in (kind, "path") if isinstance(part.get(key), str)), None)
            said = part_of(part, where, faults) if kind == "video" else {}
            if path is not None:  # otherwise it is one of those beside the messages
                inline[kind].append((path, said))
            elif said:
                faults.append(f"{where}{min(said)!r} is said of a video that stands elsewhere: say it there")
        else:
            faults.append(f"turn {number}: a content part must be of type text, video or image, got {part!r}")
    return text


def _check_order(turns: list[Turn], faults: list[str]) -> None:
    """A system turn may come first; then questions and answers in turn, from a question to an answer."""
    said = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(said):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            faults.append(f"turn {len(turns) - len(said) + number + 1} is the {turn.role}'s, expected the {expected}'s")
            break
    else:
        if len(said) % 2 or not said:
            faults.append("the last turn must be the assistant's: it is what is learnt")
    for number, turn in enumerate(turns, 1):
        if not TAG.sub("", turn.text).strip():
            faults.append(f"turn {number} has no text")
        if turn.role != "user" and tags_in(turn.text):
            faults.append(f"turn {number} is the {turn.role}'s and has a media tag: only questions may")


def _placed(turns: list[Turn], given: dict[str, int], faults: list[str]) -> list[Turn]:
    """The turns with a tag for every medium."""
    tags = [kind for turn in turns for kind in tags_in(turn.text)]
    if not tags and any(given.values()):
        first = next((number for number, turn in enumerate(turns) if turn.role == "user"), 0)
        text = "<video>\n" * given["video"] + "<image>\n" * given["image"] + turns[first].text
        return [*turns[:first], Turn(turns[first].role, text), *turns[first + 1 :]]
    if given["video"] and not given["image"] and tags == ["image"] * given["video"]:
        return [Turn(turn.role, turn.text.replace("<image>", "<video>")) for turn in turns]
    for kind, count in given.items():
        if tags.count(kind) != count:
            faults.append(f"{tags.count(kind)} <{kind}> tags, but {count} {kind}s")
    return turns
