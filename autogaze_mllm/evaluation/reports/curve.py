"""The curve: accuracy against visual tokens for several ways of looking at the same videos, as table, plot and json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .accuracy_plot import Curve, accuracy_plot
from .document import Block, Heading, Items, Picture, Table, Text
from .report import percent, write_documents

CHANCE = 0.25
KEPT_ACCURACY, KEPT_TOKENS = 0.95, 0.15  # of `all`: what gaze must at least keep, and may at most spend
OVER_RANDOM, OVER_SHRUNK = 0.10, 0.20
SAME_TOKENS = 0.03  # by which those of random and of gaze may differ
FASTER = 3.0


@dataclass(frozen=True)
class CurvePoint:
    """One way of looking, as it was measured.

    accuracy: value, low, high and n, by the benchmark's rule; strict: by our own. kinds: the same for each kind of
    question. tokens: visual tokens of a video, mean. kept: share of the patches. first: seconds for the first question
    about a video, with all that it takes to see it; further: for another one. peak: GiB of memory. unparsed: share of
    the replies that name no option, which are wrong. shuffled: accuracy when every question is asked about another
    video.
    """

    name: str
    accuracy: dict[str, Any]
    kinds: dict[str, dict[str, Any]]
    tokens: float
    kept: float
    first: float
    further: float
    peak: float
    unparsed: float = 0.0
    shuffled: dict[str, Any] | None = None
    strict: dict[str, Any] | None = None


def curve_point(name: str, report: dict[str, Any], answers: Sequence[Any], peak: float) -> CurvePoint:
    """From a finished run: its report (evaluation.report) and answers."""
    first: list[float] = []
    further: list[float] = []
    seen: set[str] = set()
    for answer in answers:
        if answer.error is not None:
            continue
        (further if answer.video in seen else first).append(sum(answer.seconds.values()))
        seen.add(answer.video)
    scores = report["scores"]["official"]
    return CurvePoint(
        name,
        scores["score"],
        scores["categories"].get("category", {}),
        (report["visual_tokens_per_video"] or {"mean": 0.0})["mean"],
        (report["patches"] or {"share": 0.0})["share"],
        _mean(first),
        _mean(further),
        peak,
        scores["unparsed"] / max(scores["score"]["n"], 1),
        strict=report["scores"]["strict"]["score"],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def targets(looks: dict[str, CurvePoint]) -> list[dict[str, Any]]:
    """What has to hold of `gaze` beside the other looks that were measured: {"says", "found", "met"}.

    Who names no option is wrong more often than who guesses, so gains are counted from chance where a look is below."""
    gaze = looks.get("gaze")
    found: list[dict[str, Any]] = []

    def add(says: str, value: float, met: bool, unit: str) -> None:
        found.append({"says": says, "found": f"{value:.3g} {unit}", "met": bool(met)})

    def points(other: CurvePoint) -> float:
        assert gaze is not None
        return gaze.accuracy["value"] - max(other.accuracy["value"], CHANCE)

    if gaze is None:
        return found
    if "all" in looks:
        everything = looks["all"]
        share = gaze.accuracy["value"] / max(everything.accuracy["value"], 1e-9)
        add("gaze keeps at least 95 % of the accuracy of all", 100 * share, share >= KEPT_ACCURACY, "%")
        tokens = gaze.tokens / max(everything.tokens, 1)
        add("gaze spends at most 15 % of the visual tokens of all", 100 * tokens, tokens <= KEPT_TOKENS, "%")
        faster = everything.first / max(gaze.first, 1e-9)
        add("a question is at least 3 x faster gazed than with all", faster, faster >= FASTER, "x")
    if "random" in looks:
        gain, spent = points(looks["random"]), looks["random"].tokens / max(gaze.tokens, 1)
        equal = abs(spent - 1) <= SAME_TOKENS
        add("random spends the visual tokens of gaze, within 3 %", 100 * spent, equal, "%")
        met = equal and gain >= OVER_RANDOM
        add("gaze beats random at equal tokens by at least 10 points", 100 * gain, met, "points")
    if "whole-448" in looks:
        gain = points(looks["whole-448"])
        add("gaze beats the whole frame at 448 pixels by at least 20 points", 100 * gain, gain >= OVER_SHRUNK, "points")
    if gaze.shuffled is not None:
        met = gaze.shuffled["low"] <= CHANCE
        add("on shuffled videos gaze is not above chance (25 %)", 100 * gaze.shuffled["value"], met, "%")
    return found


def write_curve(folder: Path, looks: dict[str, CurvePoint], facts: dict[str, Any]) -> dict[str, Any]:
    """report.json, .md, .html and curve.png. facts: how it was measured. -> what stands in report.json."""
    result: dict[str, Any] = {
        "facts": facts,
        "chance": CHANCE,
        "looks": {name: dataclasses.asdict(look) for name, look in looks.items()},
        "targets": targets(looks),
    }
    picture = plot(looks)
    (folder / "curve.png").write_bytes(picture)
    n = next(iter(looks.values())).accuracy["n"]
    blocks: list[Block] = [
        Text(f"n = {n} questions, chance {100 * CHANCE:.0f} %. Accuracies with their 95 % intervals."),
        table(looks),
        Picture("Accuracy against visual tokens", picture),
    ]
    if result["targets"]:
        lines = [f"{one['says']}: {one['found']}{'' if one['met'] else ' (missed)'}" for one in result["targets"]]
        blocks += [Heading("Targets"), Items(lines)]
    blocks += [Heading("How it was measured"), Table(("", ""), [(name, str(value)) for name, value in facts.items()])]
    write_documents(folder, "SignVid", result, blocks)
    return result


def table(looks: dict[str, CurvePoint]) -> Table:
    kinds = list(dict.fromkeys(kind for look in looks.values() for kind in look.kinds))
    shuffled = any(look.shuffled for look in looks.values())
    strict = any(look.strict for look in looks.values())
    header = (
        "looks at",
        "accuracy",
        *(["by the strict rule"] if strict else []),
        *kinds,
        "no option named",
        *(["shuffled"] if shuffled else []),
        "visual tokens",
    )
    header = (*header, "patches kept", "s, first question", "s, further ones", "peak GiB")
    rows = [
        (
            look.name,
            percent(look.accuracy),
            *([percent(look.strict) if look.strict else "-"] if strict else []),
            *(f"{100 * look.kinds[kind]['value']:.1f} %" if kind in look.kinds else "-" for kind in kinds),
            f"{100 * look.unparsed:.1f} %",
            *([percent(look.shuffled) if look.shuffled else "-"] if shuffled else []),
            f"{look.tokens:.0f}",
            f"{100 * look.kept:.1f} %",
            f"{look.first:.2f}",
            f"{look.further:.2f}",
            f"{look.peak:.2f}",
        )
        for look in looks.values()
    ]
    return Table(header, rows)


def plot(looks: dict[str, CurvePoint]) -> bytes:
    curves = []
    for look in looks.values():
        accuracy = look.accuracy
        curves.append(Curve(look.name, [(look.tokens, accuracy["value"], accuracy["low"], accuracy["high"])]))
    return accuracy_plot(curves, "visual tokens of a video", {"chance": 100 * CHANCE})
