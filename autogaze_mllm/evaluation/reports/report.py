"""The reports of a run: report.json for programs, report.md to paste, report.html to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ...common.storage.files import write_json, write_text
from ..answers import Answer
from ..run_folder import RUN_FILE, Run
from ..scoring import RULES, Accuracy, grouped, right_by, score
from .accuracy_plot import Curve, accuracy_plot, time_plot
from .document import Block, Heading, Items, Picture, Table, Text, to_html, to_markdown
from .published import MODEL, benchmark_of, check_settings, differences_in_words

BINS = 5  # of visual tokens, in the plot of one run


def make_report(run: Run) -> dict[str, Any]:
    """Everything that is known about a finished run, as json values."""
    check_settings(run.settings, run.folder / RUN_FILE)
    found = run.answers()
    missing = [name for name in run.questions if name not in found]
    if missing:
        raise InputError(f"{run.folder}: {len(missing)} questions have no answer yet; go on with --resume")
    answers = [found[name] for name in run.questions]
    benchmark = benchmark_of(run.settings)
    videos = [group[0] for group in grouped((a for a in answers if a.error is None), lambda a: a.video).values()]
    published = benchmark.published
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title + (" with subtitles" if benchmark.subtitles else ""),
        "scores": score(answers, benchmark.mean_over),
        "mean_over": benchmark.mean_over,
        "published": None
        if published is None
        else {"model": MODEL, "dense": published.dense, "gazed": published.gazed, "note": published.note},
        "differences": differences_in_words(run.settings, len(answers)),
        "visual_tokens_per_video": _spread([a.tokens["visual"] for a in videos if "visual" in a.tokens]),
        "dense_tokens_per_video": _spread([a.tokens["dense"] for a in videos if "dense" in a.tokens]),
        "patches": _patches(videos),
        "frames_per_video": _spread([a.frames["sampled"] for a in videos]),
        "fps": _spread([a.frames["fps"] for a in videos]),
        "accuracy_by_tokens": _bins(answers),
        "failures": [
            {"video": group[0].video, "error": group[0].error, "questions": len(group)}
            for group in grouped((a for a in answers if a.error is not None), lambda a: a.video).values()
        ],
        "damaged": [{"video": a.video, "frames_lost": int(a.frames["lost"])} for a in videos if a.frames["lost"]],
        "seconds": _seconds(answers),
        "published_size": benchmark.size,
        "settings": run.settings,
        "environment": run.environment,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"mean": round(sum(values) / len(values), 4), "max": max(values)} if values else None


def _patches(videos: Sequence[Answer]) -> dict[str, float] | None:
    kept, total = (sum(a.patches.get(name, 0) for a in videos) for name in ("kept", "total"))
    return {"kept": kept, "total": total, "share": kept / total} if total else None


def _seconds(answers: Sequence[Answer]) -> dict[str, float]:
    stages = dict.fromkeys(stage for answer in answers for stage in answer.seconds)
    return {stage: round(sum(answer.seconds.get(stage, 0.0) for answer in answers), 3) for stage in stages}


def _bins(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Accuracy (official) of the questions in groups of about equal size by their visual tokens."""
    known = sorted((a for a in answers if "visual" in a.tokens and a.answer is not None), key=_visual)
    size = max(-(-len(known) // BINS), 1)
    bins: list[list[Answer]] = []
    for answer in known:  # questions with the same number of tokens stay together
        if not bins or (len(bins[-1]) >= size and _visual(bins[-1][-1]) != _visual(answer)):
            bins.append([])
        bins[-1].append(answer)
    result = []
    for group in bins:
        accuracy = Accuracy.of(map(right_by("official"), group))
        tokens = {"mean": sum(map(_visual, group)) / len(group), "min": _visual(group[0]), "max": _visual(group[-1])}
        result.append({"tokens": tokens, "n": accuracy.n, "value": accuracy.value, "interval": _ends(accuracy)})
    return result


def _visual(answer: Answer) -> int:
    return answer.tokens["visual"]


def _ends(accuracy: Accuracy) -> list[float | None]:
    return [accuracy.low, accuracy.high]


# -- as a document ---------------------------------------------------------------------------------------------------


def percent(accuracy: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    if accuracy["value"] is None:
        return "-"
    return f"{100 * accuracy['value']:.1f} % [{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"


def pace(report: dict[str, Any]) -> str:
    """How long one process would take for the whole benchmark, by the sum of the stages."""
    asked = report["scores"]["n"] + report["scores"]["withheld"] - report["scores"]["failed"]
    hours = sum(report["seconds"].values()) / max(asked, 1) * report["published_size"] / 3600
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"


def blocks_of(report: dict[str, Any]) -> list[Block]:
    scores, published, settings = report["scores"], report["published"], report["settings"]
    blocks: list[Block] = [Text(f"Model: {settings['model']['name']}. Gaze: {settings['seen']['gaze']}.")]
    if not scores["n"]:
        blocks.append(Text(f"The answers are withheld: {scores['withheld']} replies stand in submission.csv."))
    blocks += [Heading("Accuracy"), _score_table(report)]
    kind = f"the mean over {report['mean_over']}" if report["mean_over"] else "over all questions"
    blocks.append(
        Text(
            f"The score is {kind}, with its 95 % interval. Replies without an answer, and questions about videos that "
            "could not be read, are wrong and stay in n. By video, every video counts the same."
        )
    )
    if published:
        blocks += [Heading("Published numbers"), _published_table(report)]
        if report["differences"]:
            blocks += [Text("This run differs from the published one:"), Items(report["differences"])]
        else:
            blocks.append(Text("This run has the published settings."))
    for name in scores["official"]["categories"]:
        blocks += [Heading(f"By {name}"), _category_table(scores, name)]
    blocks += _cost_blocks(report)
    if report["failures"]:
        failed = [(one["video"], one["error"], str(one["questions"])) for one in report["failures"]]
        blocks += [Heading("Videos that could not be read"), Table(("video", "why", "questions"), failed)]
    if report["damaged"]:
        damaged = [(one["video"], str(one["frames_lost"])) for one in report["damaged"]]
        blocks += [Heading("Damaged videos"), Table(("video", "frames lost"), damaged)]
    facts = [*_flat(settings), *_flat(report["environment"], "environment")]
    blocks += [Heading("Settings"), Table(("setting", "value"), facts)]
    return blocks


def _score_table(report: dict[str, Any]) -> Table:
    scores = report["scores"]
    rows = []
    for rule in RULES:
        found = scores[rule]
        by_video = "-" if found["by_video"] is None else f"{100 * found['by_video']:.1f} %"
        counts = (str(scores["n"]), str(found["unparsed"]), str(scores["failed"]))
        rows.append((rule, percent(found["score"]), percent(found["micro"]), by_video, *counts))
    return Table(("rule", "score", "all questions", "by video", "n", "unparsed", "failed"), rows)


def _published_table(report: dict[str, Any]) -> Table:
    published = report["published"]
    dense = "-" if published["dense"] is None else f"{published['dense']} %"
    note = published["note"] or "-"
    rows = [
        ("NVILA-8B-Video", dense, "dense", note),
        ("NVILA-8B-HD-Video", f"{published['gazed']} %", "AutoGaze", note),
        ("this run", percent(report["scores"]["official"]["score"]), report["settings"]["seen"]["gaze"], "official"),
    ]
    return Table(("model", "accuracy", "gaze", "note"), rows)


def _category_table(scores: dict[str, Any], name: str) -> Table:
    official, strict = (scores[rule]["categories"][name] for rule in RULES)
    rows = [(value, str(found["n"]), percent(found), percent(strict[value])) for value, found in official.items()]
    return Table((name, "n", "official", "strict"), rows)


def _cost_blocks(report: dict[str, Any]) -> list[Block]:
    rows = []
    for name, label in (
        ("visual_tokens_per_video", "visual tokens per video"),
        ("dense_tokens_per_video", "visual tokens per video, dense"),
        ("frames_per_video", "frames per video"),
        ("fps", "frames per second of video"),
    ):
        spread = report[name]
        if spread:
            rows.append((label, f"{spread['mean']:.4g}", f"{spread['max']:.4g}"))
    blocks: list[Block] = [Heading("What was looked at"), Table(("", "mean", "max"), rows)]
    if report["patches"]:
        patches = report["patches"]
        share = 100 * patches["share"]
        blocks.append(Text(f"Patches kept: {patches['kept']} of {patches['total']} ({share:.1f} %)."))
    bins = [one for one in report["accuracy_by_tokens"] if one["value"] is not None]
    if bins:
        points = [(one["tokens"]["mean"], one["value"], *one["interval"]) for one in bins]
        published = report["published"] or {}
        lines = {f"published, {name}": published[name] for name in ("dense", "gazed") if published.get(name)}
        rows = [
            (f"{one['tokens']['min']} to {one['tokens']['max']}", str(one["n"]), f"{100 * one['value']:.1f} %")
            for one in bins
        ]
        blocks += [
            Heading("Accuracy against visual tokens"),
            Picture(
                "Accuracy against visual tokens", accuracy_plot([Curve("this run", points)], "visual tokens", lines)
            ),
            Table(("visual tokens", "n", "accuracy (official)"), rows),
        ]
    seconds = report["seconds"]
    if seconds:
        stages = sorted(seconds, key=lambda stage: -seconds[stage])
        blocks += [
            Heading("Time"),
            Picture("Seconds per stage", time_plot(seconds)),
            Table(("stage", "seconds"), [(stage, f"{seconds[stage]:.2f}") for stage in stages]),
            Text("Decoding and resizing run beside the other stages, so the sum is more than the time that passed."),
            Text(f"At this pace all {report['published_size']} questions of the benchmark take {pace(report)}."),
        ]
    return blocks


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        label = f"{prefix}.{name}" if prefix else name
        rows += _flat(value, label) if isinstance(value, dict) else [(label, str(value))]
    return rows


# -- on disk ---------------------------------------------------------------------------------------------------------


def write_documents(folder: Path, title: str, report: dict[str, Any], blocks: Sequence[Block]) -> None:
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", to_markdown(title, blocks))
    write_text(folder / "report.html", to_html(title, blocks))


def write_report(run: Run) -> dict[str, Any]:
    """The three reports, and submission.csv where answers are withheld. -> the report."""
    report = make_report(run)
    if report["scores"]["withheld"]:
        _write_submission(run)
    write_documents(run.folder, report["title"], report, blocks_of(report))
    return report


def _write_submission(run: Run) -> None:
    """q_uid,answer with options counted from 0, by the strict rule; -1, which is wrong, where a reply names none."""
    found = run.answers()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("q_uid", "answer"))
    for name in run.questions:
        letter = found[name].strict
        writer.writerow((name, -1 if letter is None else ord(letter) - ord("A")))
    write_text(run.folder / "submission.csv", stream.getvalue())
