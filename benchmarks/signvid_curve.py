"""SignVid at 672x672: accuracy against visual tokens, for every way of looking, clean and with noise of a sensor.

Asks a model all questions of the test split behind each selector at three budgets, behind random patches, with every
patch, and with the frame shrunk to 448 and 224 pixels. Budgets are shares of a frame's patches; those of greedy
search and of guided gaze are the largest share, and what a patch must bring besides; pixel-diff is asked for another
loss, too, at which it takes as many tokens. Videos and questions go through the model side by side, which changes no
answer and makes it minutes on a GPU; seconds are measured apart (--seconds), one question at a time as `ask` takes
them. What counts is the option that a reply names in words: choosing its letter is another thing to learn (`strict`
beside it). Writes OUT/signvid_curve.json and OUT/signvid_curve.png; the json is complete after every batch of videos,
and looks (--looks) add to what it holds. Settings are chosen with --dev.

    python benchmarks/signvid_curve.py --out runs/curve                          # 51 videos, 510 questions
    python benchmarks/signvid_curve.py --out runs/curve --gaze bundled,OTHER
    python benchmarks/signvid_curve.py --out runs/curve --seconds 3              # adds seconds to what was measured
    python benchmarks/signvid_curve.py --out runs/large --side 1344 --conditions clean --budgets 0.15
    python benchmarks/signvid_curve.py --quick --out runs/curve                  # two small videos
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from autogaze_mllm.cli import program_parser, run_program
from autogaze_mllm.commands.arguments.options import usable_device
from autogaze_mllm.common.drawing.labels import in_plot, told_apart
from autogaze_mllm.common.drawing.plots import legend, panels, plain_log, save_png
from autogaze_mllm.common.environment import machine
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import output_folder, read_json, write_json
from autogaze_mllm.common.storage.hashing import fingerprint
from autogaze_mllm.common.storage.json_diff import check_same
from autogaze_mllm.evaluation.benchmarks import Question
from autogaze_mllm.evaluation.benchmarks.hlvid import HLVid
from autogaze_mllm.evaluation.scoring import Accuracy
from autogaze_mllm.finetuning.on_device.answering import answers
from autogaze_mllm.finetuning.on_device.course import load_llm
from autogaze_mllm.finetuning.on_device.looks import Look, look_at
from autogaze_mllm.finetuning.on_device.shared_prefix import sharing_prefix
from autogaze_mllm.finetuning.on_device.signs import speech_of
from autogaze_mllm.gaze.autogaze.pretrained import BUNDLED
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.selectors.base import Selector, as_selector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.loading import BUNDLED_FOLDER, load_or_wrap
from autogaze_mllm.mllm.model import GazedModel
from autogaze_mllm.signvid import SignVidConfig, VideoShape, ensure_signvid
from autogaze_mllm.signvid.dataset import DEVELOPMENT_SEED
from autogaze_mllm.signvid.plan import GAIN, TILE
from autogaze_mllm.video.reader import VideoReader

RESULT = "signvid_curve"
BUDGETS = (0.15, 0.06, 0.025)  # shares of a frame's patches
NOISE = {"clean": 0.0, "noisy": 0.05}
MOST = 24  # tokens of an answer, as in signvid.py
GAINS = (GAIN, 0.001)  # what a patch must bring, see VideoSettings.gain; chosen with --dev
RULE = 0.06  # loss to stop at, of pixel-diff, whose tokens are then those of a gain; chosen with --dev
GREEDY = "greedy"
PLAIN = ("pixel-diff", "pixel-diff-raw", "random")
CHANCE = 0.25
SIDES = (672, 1344)


def looks_of(
    gaze: Sequence[str],
    budgets: Sequence[float],
    gains: Sequence[float],
    tiles: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Look]:
    """gaze: models or selectors, by their names."""
    settings = VideoSettings().changed(max_tiles=tiles)
    everything = load_selector("all", device=device, dtype=dtype)
    found = [Look("all", everything, settings.changed(ratio=1))]
    labels = told_apart(gaze) if len(gaze) > 1 else {gaze[0]: "gaze"}
    for name, label in {**labels, **{name: name for name in (GREEDY, *PLAIN) if name not in labels}}.items():
        selector = as_selector(load_selector(name, device=device, dtype=dtype))
        # A small sign moves a frame's loss less than noise does: where that would end a frame, it would end too soon.
        own = settings.changed(loss=0.0) if name in (*gaze, GREEDY) else settings
        if measures_gains(selector):
            found.append(Look(f"{label} {budgets[0]}", selector, own.changed(ratio=budgets[0])))
            for gain in gains:
                found.append(Look(f"{label} gain {gain:g}", selector, own.changed(ratio=budgets[0], gain=gain)))
        else:
            found += [Look(f"{label} {ratio}", selector, own.changed(ratio=ratio)) for ratio in budgets]
            if name == PLAIN[0]:
                found.append(Look(f"{label} loss {RULE}", selector, own.changed(ratio=budgets[0], loss=RULE)))
    for side, number in ((448, 4), (224, 1)):
        found.append(Look(f"whole-{side}", everything, settings.changed(ratio=1, max_tiles=min(number, tiles))))
    return found


def measures_gains(selector: Selector) -> bool:
    try:
        selector.ending_at(0)
    except InputError:
        return False
    return True


def chosen(looks: Sequence[Look], names: str) -> list[Look]:
    """Those of these kinds: of "all,gaze,whole", say."""
    wanted = names.split(",")
    known = [look.name.partition(" ")[0] for look in looks]
    unknown = [name for name in wanted if not any(kind.startswith(name) for kind in known)]
    if unknown:
        raise InputError(f"--looks {names}: there is no {unknown[0]!r}; there are {', '.join(dict.fromkeys(known))}")
    return [look for look, kind in zip(looks, known, strict=True) if kind in wanted or kind.split("-")[0] in wanted]


def said(reply: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a reply names in words, whatever letter it goes on to choose. Where codes were to
    be counted, each stands there with + or -, and the option is the number behind them, or else that of the former."""
    words = re.sub(r"\s*\([A-Z]?\)?\s*$", "", reply.strip())
    counted = re.fullmatch(r"(?:[\w ]+[+-]\s*)+(\d)?", words)
    wanted = (counted[1] or str(words.count("+"))) if counted else words
    found = [letter for letter, option in zip("ABCD", options, strict=False) if option == wanted]
    return found[0] if len(found) == 1 else None


class Tally:
    """Marks of one look. tokens: visual tokens of each video."""

    def __init__(self) -> None:
        self.right: list[tuple[str, bool, bool]] = []
        self.unparsed = 0
        self.tokens: list[int] = []

    def add(self, benchmark: HLVid, question: Question, reply: str) -> None:
        found = said(reply, question.options)
        kind = question.categories["category"]
        letter = benchmark.strict(reply, question)
        self.right.append((kind, found == question.answer, letter == question.answer))
        self.unparsed += found is None

    def facts(self) -> dict[str, Any]:
        kinds = sorted({kind for kind, _, _ in self.right})
        return {
            "accuracy": dataclasses.asdict(Accuracy.of(right for _, right, _ in self.right)),
            "strict": dataclasses.asdict(Accuracy.of(letter for _, _, letter in self.right)),
            "kinds": {
                kind: dataclasses.asdict(Accuracy.of(right for found, right, _ in self.right if found == kind))
                for kind in kinds
            },
            "unparsed": self.unparsed / max(len(self.right), 1),
            "tokens": float(np.mean(self.tokens)),
        }


def decoded(folder: Path, names: Sequence[str], frames: int, workers: int) -> list[np.ndarray]:
    """(T, height, width, 3) of each video."""

    def read(name: str) -> np.ndarray:
        return np.concatenate([part.frames for part in VideoReader(folder / name).read(range(frames), chunk=frames)])

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read, names))


def measure(
    model: GazedModel,
    looks: Sequence[Look],
    data: Path,
    frames: int,
    options: Any,
    note: Callable[[dict[str, Any]], None],
) -> None:
    """note: is given the tallies after every batch of videos."""
    benchmark, tokenizer = HLVid(data), model.tokenizer
    turns = speech_of(model, options.tokenizer).turns()
    questions: dict[str, list[Question]] = {}
    for question in benchmark.questions():
        questions.setdefault(question.video, []).append(question)
    names = list(questions)
    tallies = {look.name: Tally() for look in looks}
    precision = torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda")
    base: Any = model.base
    for start in tqdm(range(0, len(names), options.batch), unit="batch"):
        some = names[start : start + options.batch]
        videos = decoded(data / "videos", some, frames, options.workers)
        seen = look_at(model, videos, looks)
        asked = [[question.text for question in questions[name]] for name in some]
        for look in looks:
            tokens = [row.pop(look.name) for row in seen]
            with sharing_prefix(base.llm) as llm:
                replies = answers(llm, turns, tokens, asked, tokenizer.eos_token_id, MOST, precision)
            tally = tallies[look.name]
            tally.tokens += [len(part) for part in tokens]
            for name, said in zip(some, replies, strict=True):
                for question, reply in zip(questions[name], said, strict=True):
                    tally.add(benchmark, question, tokenizer.decode(reply).strip())
        note({name: tally.facts() for name, tally in tallies.items()})


def seconds_of(model: GazedModel, looks: Sequence[Look], data: Path, videos: int) -> dict[str, dict[str, float]]:
    """As `ask` answers them, one after the other: the first question about a video, and a further one."""
    questions = HLVid(data).questions()
    names = list(dict.fromkeys(question.video for question in questions))[:videos]
    found = {}
    for look in looks:
        model.gaze, model.settings = look.selector, look.settings
        spent: dict[str, list[float]] = {"first": [], "further": []}
        for name in names:
            mine = [question.text for question in questions if question.video == name][:3]
            start = time.perf_counter()
            seen = model.encode_video(data / "videos" / name, share_prompt=True)
            for number, text in enumerate(mine):
                model.ask(seen, text, max_new_tokens=MOST)
                now = time.perf_counter()
                spent["further" if number else "first"].append(now - start)
                start = now
        found[look.name] = {name: float(np.median(values)) for name, values in spent.items()}
        print(look.name, found[look.name], flush=True)
    return found


def series_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Looks that are joined in the plot, by what they are called there; in the order of `looks_of`."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind = name.partition(" ")[0]
        if kind.startswith("whole"):
            kind = "the frame at 224 and 448 pixels"
        found.setdefault("every patch" if kind == "all" else kind, []).append(name)
    return found


def plot(path: Path, result: dict[str, Any]) -> None:
    """Accuracy against visual tokens, a panel for each condition."""
    conditions = [name for name in NOISE if name in result["conditions"]]
    figure, axes = panels(len(conditions), size=(5.4, 4.2))
    for axis, condition in zip(axes, conditions, strict=True):
        rows = result["conditions"][condition]
        for label, names in series_of(result["looks"]).items():
            known = [rows[name] for name in names if name in rows]
            points = sorted(((row["tokens"], row["accuracy"]) for row in known), key=lambda one: one[0])
            if not points:
                continue
            x, y = [tokens for tokens, _ in points], [100 * found["value"] for _, found in points]
            spans = [[100 * (a["value"] - a["low"]), 100 * (a["high"] - a["value"])] for _, a in points]
            axis.errorbar(x, y, np.array(spans).T.clip(min=0), marker="o", capsize=3, label=in_plot(label))
        axis.axhline(100 * CHANCE, linestyle="--", linewidth=1, color="grey", label="chance")
        noise = NOISE[condition]
        axis.set(title=f"{condition}: sensor noise of {100 * noise:g} %" if noise else condition)
        axis.set(ylim=(-14, 100), yticks=range(0, 101, 20))  # room for the legend, which hides nothing there
        axis.set(xlabel="visual tokens of a video", ylabel="accuracy, %", xscale="log")
        plain_log(axis.xaxis)
    legend(axes[-1], loc="lower center", ncols=2)
    save_png(figure, path)


def recipe_of(options: argparse.Namespace, noise: float) -> SignVidConfig:
    shape = (
        VideoShape(448, 448, 6, signs=3, noise=noise)
        if options.quick
        else VideoShape(options.side, options.side, noise=noise)
    )
    videos, questions = (2, 3) if options.quick else (options.videos, 10)
    split: Any = ("train", DEVELOPMENT_SEED) if options.dev else ("test", 0)
    return SignVidConfig(shape, split[0], videos, questions, split[1])


def load(options: argparse.Namespace) -> GazedModel:
    device = usable_device(options.device)
    dtype = torch.bfloat16 if torch.device(device or "cpu").type == "cuda" else torch.float32
    model = load_or_wrap(options.model, "all", settings=VideoSettings(), device=device, dtype=dtype, cache=False)
    base: Any = model.base
    base.llm.float()  # autocast where it pays
    if options.llm is not None:
        load_llm(base.llm, options.llm)
    return model


def run(options: argparse.Namespace) -> None:
    out = output_folder(options.out)
    path = out / f"{RESULT}.json"
    model = load(options)
    folder = BUNDLED_FOLDER if options.model == BUNDLED else Path(options.model)
    options.tokenizer = folder / "llm" / "tokenizer.json"
    gaze = options.gaze.split(",")
    tiles = 4 if options.quick else (options.side // TILE) ** 2
    looks = looks_of(gaze, options.budgets, options.gains, tiles, model.device, model.dtype)
    order = [look.name for look in looks]
    if options.looks is not None:
        looks = chosen(looks, options.looks)
    facts = {
        "split": "train, for choosing" if options.dev else "test",
        # Bundled weights are in bf16: on every device the same.
        "model": fingerprint({name: weight.bfloat16() for name, weight in model.base.state_dict().items()}),
        "gaze": {name: weights_of(name) for name in gaze},
        "side": options.side,
        "noise": NOISE,
        "budgets": options.budgets,
        "gains": options.gains,
    }
    result = read_json(path) if path.is_file() else {"facts": facts, "looks": [], "conditions": {}, "seconds": {}}
    check_same(path, result["facts"], facts)
    asked = {*result["looks"], *(look.name for look in looks)}
    result["looks"] = [name for name in order if name in asked]
    for condition in options.conditions:
        recipe = recipe_of(options, NOISE[condition])
        name = f"{condition}-{recipe.shape.width}{'-dev' if options.dev else ''}"
        data = output_folder(options.data or out / "data") / name
        ensure_signvid(data, recipe, workers=options.workers, progress=True)
        if options.seconds:
            spent = seconds_of(model, looks, data, options.seconds)
            known = result["seconds"].get(condition, {}).get("looks", {})
            facts = {"machine": machine(model.device), "videos": options.seconds}
            result["seconds"][condition] = {**facts, "looks": known | spent}
            continue

        def note(rows: dict[str, Any], condition: str = condition) -> None:
            result["conditions"].setdefault(condition, {}).update(rows)
            result["machine"] = machine(model.device)
            write_json(path, result)

        measure(model, looks, data, recipe.shape.frames, options, note)
    write_json(path, result)
    if result["conditions"]:
        plot(out / f"{RESULT}.png", result)
    for condition, rows in result["conditions"].items():
        for name in (name for name in result["looks"] if name in rows):
            row = rows[name]
            kinds = "  ".join(f"{kind} {100 * found['value']:.0f}" for kind, found in row["kinds"].items())
            print(
                f"{condition:6} {name:24} {100 * row['accuracy']['value']:5.1f} %  {kinds}  {row['tokens']:6.0f} tokens"
            )


def weights_of(gaze: str) -> Any:
    """What tells a gaze model from another one."""
    identity = as_selector(load_selector(gaze)).identity() or {}
    if "weights" not in identity:
        return identity
    guidance = {name: identity["config"].get(name, 0) for name in ("reward_guidance", "least_gain")}
    seen = identity["processor"].get("do_denoise", False)
    return {"weights": identity["weights"], "do_denoise": seen, **guidance}


def shares(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r}: shares lie between 0 and 1")
    return found


def least_gains(text: str) -> list[float]:
    found = [float(part) for part in text.split(",")]
    if not all(0 < gain < float("inf") for gain in found):
        raise argparse.ArgumentTypeError(f"{text!r}: gains lie above 0")
    return found


def conditions(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in NOISE]:
        raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; known: {', '.join(NOISE)}")
    return names


def parser() -> argparse.ArgumentParser:
    options = program_parser(__doc__)
    options.add_argument("--out", type=Path, required=True, help="folder of the results")
    options.add_argument("--data", type=Path, help="folder of the videos (default: OUT/data)")
    options.add_argument("--model", default=BUNDLED, help="folder of the model (default: the bundled one)")
    options.add_argument("--llm", type=Path, help="weights in place of its LLM's, from scripts/train_signvid_llm.py")
    options.add_argument("--gaze", default=BUNDLED, help="gaze models, joined by commas (default: the bundled one)")
    options.add_argument("--looks", help="of these kinds alone: all,gaze,greedy,pixel-diff,pixel-diff-raw,random,whole")
    options.add_argument("--side", type=int, default=672, choices=SIDES, help="pixels of the videos (default 672)")
    options.add_argument(
        "--budgets", type=shares, default=list(BUDGETS), help="shares of a frame's patches, with commas"
    )
    options.add_argument(
        "--gains", type=least_gains, default=list(GAINS), help="what a patch must bring at least, with commas"
    )
    options.add_argument("--conditions", type=conditions, default=list(NOISE), help="clean,noisy or one of them")
    options.add_argument("--videos", type=int, default=51, help="of 10 questions each (default 51)")
    options.add_argument("--batch", type=int, default=4, help="videos that are worked on together (default 4)")
    options.add_argument("--dev", action="store_true", help="the train split, to choose settings on")
    options.add_argument("--quick", action="store_true", help="two small videos")
    options.add_argument(
        "--seconds", type=int, metavar="N", help="measure seconds, on N clean videos, and nothing else"
    )
    options.add_argument("--device", help="cpu, cuda, ... (default: cpu)")
    options.add_argument("--workers", type=int, default=2, help="processes that generate videos")
    return options


if __name__ == "__main__":
    sys.exit(run_program(parser(), run))
