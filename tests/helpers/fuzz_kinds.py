"""Kinds of files that stand in a folder with others, or are words: models, rows, answers, tensors, command lines.

A sound file is a copy whose name tells where it belongs: `nvila@llm@config.json`. A damaged one takes that place in a
copy of its folder, `source` beside it.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

LARGEST = 50_000  # bytes of a json file that is worth damaging
VALUES: list[Any] = [None, True, -1, 0, 10**9, 10**30, 1.5, float("nan"), float("inf"), "", "x", "a/b", "0.5"]
VALUES += [[], [1], ["x"], {}, {"a": 1}, "\udcff", [[1]], -(10**9)]


# -- damage of meaning -------------------------------------------------------------------------------------------------


def damaged_json(data: bytes, chance: random.Random) -> bytes:
    """One value is another, or gone; of lines, of one of them."""
    lines = data.split(b"\n")
    of_lines = len(lines) > 2 and all(line.startswith(b"{") for line in lines if line)
    number = chance.randrange(len([line for line in lines if line])) if of_lines else 0
    tree = json.loads(lines[number] if of_lines else data)
    _change(tree, chance)
    changed = json.dumps(tree).encode()
    if not of_lines:
        return changed
    return b"\n".join([*lines[:number], changed, *lines[number + 1 :]])


def _change(tree: Any, chance: random.Random) -> None:
    found = list(_nodes(tree))
    if found:
        node, key = chance.choice(found)
        if chance.random() < 0.15:
            del node[key]
        else:
            node[key] = chance.choice(VALUES)


def damaged_settings(data: bytes, chance: random.Random) -> bytes:
    """The same for json and yaml; of weights, the names of some tensors are others."""
    if data.lstrip().startswith(b"{"):
        return damaged_json(data, chance)
    if data.startswith(b"PK") or b"\0" in data:
        return data.replace(*chance.choice([(b"dinov2", b"dinov9"), (b"decoder_", b"decodes_"), (b"vit.", b"vat.")]))
    tree = yaml.safe_load(data)
    _change(tree, chance)
    return yaml.safe_dump(tree).encode(errors="replace")


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:4] if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _nodes(value)


def damaged_words(data: bytes, chance: random.Random) -> bytes:
    """A command line of which words are others, gone or doubled."""
    words = json.loads(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(1, len(words))
        if chance.random() < 0.2:
            del words[at]
        elif chance.random() < 0.2:
            words.insert(at, words[at])
        else:
            words[at] = chance.choice(WORDS)
        if len(words) < 2:
            break
    return json.dumps(words).encode()


WORDS = ["", "-1", "0", "nan", "inf", "1e400", "10**9", "99999999999", "--json", "--frames", "--ratio", "--device", "x"]
WORDS += ["/dev/full", "/", "no such file", "a\nb", "\udcff", "--max-tiles", "--gaze", "all", "0.5", "--loss", "cpu"]
WORDS += ["--", "-h", "--fps", "--start", "--config", "http://example.com/x.mp4", "--thumbnails", "💥", "--out"]


# -- folders -----------------------------------------------------------------------------------------------------------


def _copies(source: Path, folder: Path, pattern: str) -> list[Path]:
    """Copies of the files below `source`, each by its place there."""
    made = []
    for path in sorted(source.rglob(pattern)):
        if path.suffix != ".json" or path.stat().st_size < LARGEST:
            copy = folder / "@".join(path.relative_to(source).parts)
            shutil.copy(path, copy)
            made.append(copy)
    return made


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A copy of the source folder with the damaged file in its place; and that place."""
    parts = tuple(path.name.split("-", 1)[1].split("@"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / parts[0]
        shutil.copytree(path.parent / "source" / parts[0], copy)
        shutil.copy(path, copy.joinpath(*parts[1:]))
        yield copy, parts


def _clip(folder: Path) -> Path:
    from autogaze_mllm.video.synthetic import moving_scene
    from autogaze_mllm.video.writer import write_video

    write_video(folder / "clip.mp4", moving_scene(96, 64, 4), 4)
    return folder / "clip.mp4"


def make_models(folder: Path) -> list[Path]:
    """The json of saved models and of base models in several layouts."""
    _models(folder / "source")
    return _copies(folder / "source", folder, "*.json")


def make_tensors(folder: Path) -> list[Path]:
    """The weights of the same, gazed videos, and entries of the cache."""
    import autogaze_mllm as am

    from .tiny_models import make

    source = folder / "source"
    _models(source)
    _, model = make("llava", frames=2, cache=folder / "cache")
    model.ask(source / "clip.mp4", "what?", max_new_tokens=1)
    (source / "entries").mkdir()
    for number, path in enumerate(sorted((folder / "cache").glob("*.safetensors"))):
        kind = "tokens" if ".tokens." in path.name else "gazed"
        shutil.copy(path, source / "entries" / f"{number}.{kind}.safetensors")
    am.gaze_video(source / "clip.mp4", "random", am.VideoSettings(frames=2)).save(
        source / "entries" / "video.gazed.safetensors"
    )
    return _copies(source, folder, "*.safetensors")


def _models(source: Path) -> None:
    from .families.models import write_folder
    from .files.checkpoints import write_nvila, write_vila
    from .tiny_models import make, tiny_gaze

    make("llava_onevision", tiny_gaze(), frames=2)[1].save_pretrained(source / "saved")
    write_nvila(source / "nvila")
    write_vila(source / "vila")
    for name in ("qwen3_vl", "gemma3"):
        write_folder(name, source / name)
    _clip(source)


def use_model(path: Path) -> None:
    import autogaze_mllm as am
    from autogaze_mllm.gaze.gazed_video import GazedVideo

    clip = path.parent / "source" / "clip.mp4"
    with _placed(path) as (folder, parts):
        if parts[0] == "entries":
            if ".gazed." in parts[-1]:
                GazedVideo.load(folder / parts[-1])
            else:
                _read_tokens(folder / parts[-1])
            return
        small = {"frames": 2, "max_tiles": 1, "thumbnails": 0, "cache": False}
        model = am.load(folder, cache=False) if parts[0] == "saved" else am.wrap(folder, "random", **small)
        model.ask(clip, "What?", max_new_tokens=1)


def _read_tokens(path: Path) -> None:
    """As the cache does: a damaged entry is a miss with a word."""
    from autogaze_mllm.gaze.cache import TOKENS, VideoCache

    key = path.name.removesuffix(TOKENS)
    VideoCache(path.parent).get_tokens(key)


def make_videomaes(folder: Path) -> list[Path]:
    """A published one with what it names beside it, one of our own, and plain ViT-MAEs."""
    from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

    from .files.videomae_files import write_published, write_vit_mae

    source = folder / "source"
    (source / "all").mkdir(parents=True)
    published = write_published(source / "all")
    VideoMAETask.from_pretrained(published).save_pretrained(source / "own")
    write_vit_mae(source / "plain")
    write_vit_mae(source / "older", pickled=True)
    return _copies(source, folder, "*.*")


def use_videomae(path: Path) -> None:
    import torch

    from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

    with _placed(path) as (folder, parts):
        task = VideoMAETask.from_pretrained(folder / "published" if parts[0] == "all" else folder)
        info = {
            "gazing_pos": torch.tensor([[0]]),
            "if_padded_gazing": torch.tensor([[False]]),
            "num_gazing_each_frame": torch.tensor([1]),
        }
        with torch.no_grad():
            task(task.normalize(torch.full((1, 1, 3, 64, 64), 0.5)), info)


def make_rows(folder: Path) -> list[Path]:
    """Training rows, labels, and the answers of an evaluation."""
    source = folder / "source" / "rows"
    source.mkdir(parents=True)
    _clip(source)
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A ball."}]
    rows = [{"id": n, "video": "clip.mp4", "conversations": turns, "start": 0.0, "end": 0.9} for n in range(3)]
    (source / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source / "data.json").write_text(json.dumps(rows))
    label = {"gazing_pos": [[0, 1], [2]], "task_losses": [[0.5, 0.4], [0.3]]}
    (source / "labels.json").write_text(json.dumps({"clip": label}))
    answer = {"id": "1", "reply": "A", "answer": "A", "correct": "A", "seconds": {"llm": 0.1}, "tokens": {"visual": 3}}
    (source / "answers.jsonl").write_text("".join(json.dumps({**answer, "id": str(n)}) + "\n" for n in range(3)))
    return _copies(folder / "source", folder, "*.json*")


def use_rows(path: Path) -> None:
    from autogaze_mllm.evaluation.answers import read_answers
    from autogaze_mllm.finetuning.data.samples import load_samples
    from autogaze_mllm.training.data.labels import checked_label, read_labels

    with _placed(path) as (folder, parts):
        if parts[-1] == "answers.jsonl":
            read_answers(folder)
        elif parts[-1] == "labels.json":
            for name, label in read_labels(str(folder / "labels.json")).items():
                checked_label(label, name)
        else:
            load_samples([folder / parts[-1]])


def make_commands(folder: Path) -> list[Path]:
    """Command lines as lists of words."""
    (folder / "source").mkdir()
    clip = str(_clip(folder / "source"))
    quick = ["--gaze", "pixel-diff", "--frames", "2"]
    lines = [
        ["gaze", clip, *quick, "--json"],
        ["gaze", clip, *quick, "--ratio", "0.1", "--max-tiles", "2", "--fps", "2", "--start", "0.1", "--end", "0.8"],
        ["gaze", clip, "--gaze", "random", "--out", str(folder / "out.mp4")],
        ["finetune", "--check", "--data", str(folder / "source" / "data.json")],
        ["cache", "ls", "--json"],
        ["info", "--json"],
    ]
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A ball."}]
    (folder / "source" / "data.json").write_text(json.dumps([{"video": "clip.mp4", "conversations": turns}]))
    made = []
    for number, words in enumerate(lines):
        made.append(folder / f"{words[0]}{number}.json")
        made[-1].write_text(json.dumps(words))
    return made


def use_command(path: Path) -> None:
    from autogaze_mllm.cli import main
    from autogaze_mllm.common.errors import InputError

    words = json.loads(path.read_text())
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told), contextlib.chdir(path.parent):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
    if code == 0:
        return
    lines = told.getvalue().strip().splitlines()
    assert code == 2 and lines and not any("Traceback" in line for line in lines), (words, code, told.getvalue()[-500:])
    raise InputError(lines[-1])
