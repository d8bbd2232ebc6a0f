"""Sweeps: a grid of ways to gaze in one go, decoding every video once for all that look at the same frames."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.drawing.labels import told_apart
from ..common.errors import InputError
from ..common.fields import settings_of
from ..gaze.selector_registry import NAMED, load_selector
from ..gaze.selectors.base import AnySelector, selector_name
from ..gaze.selectors.baselines import AllSelector, RandomSelector
from ..gaze.settings import LIMITS, VideoSettings
from .reports.accuracy_plot import Curve, accuracy_plot
from .reports.document import Block, Heading, Picture, Table, Text
from .reports.report import percent, write_documents
from .responders import Variant

SETTINGS = {one.name: one for one in sorted(settings_of(VideoSettings), key=lambda one: one.group)}  # limits first
NAMES = ("gaze", *SETTINGS)
AUTOGAZE = "autogaze"  # the gaze model that --gaze names
Point = dict[str, Any]


def parse_sweep(text: str) -> list[Point]:
    """ "gaze=random,all; ratio=0.1,0.2" -> every combination. Raises InputError saying what is wrong."""
    axes: dict[str, list[Any]] = {}
    for part in filter(str.strip, text.split(";")):
        name, found, values = (piece.strip() for piece in part.partition("="))
        if name not in NAMES or not found:
            raise InputError(f"--sweep: {part.strip()!r} is not NAME=VALUE,...; names: {', '.join(NAMES)}")
        if name in axes:
            raise InputError(f"--sweep: {name} stands there twice")
        try:
            read = str if name == "gaze" else SETTINGS[name].read
            axes[name] = [read(value.strip()) for value in values.split(",")]
        except ValueError as error:
            words = "true and false" if SETTINGS[name].kind is bool else "numbers"
            raise InputError(f"--sweep: {name}={values!r} is not a list of {words}") from error
        if "" in axes[name] or len(set(axes[name])) != len(axes[name]):
            raise InputError(f"--sweep: {name}={values!r} has an empty value, or one twice")
    if not axes:
        raise InputError('--sweep: nothing to try; for example --sweep "gaze=random,all; ratio=0.1,0.2"')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep_variants(
    points: Sequence[Point], selector: AnySelector, gaze: str, settings: VideoSettings, seed: int, **target: Any
) -> list[Variant]:
    """One variant for each point that differs: `all` keeps everything whatever the limits say.

    selector, gaze, settings: what the points change. place: device and dtype of gaze models that are loaded.
    """
    loaded: dict[str, AnySelector] = {}
    variants: dict[str, Variant] = {}
    short = told_apart(str(point["gaze"]) for point in points if "gaze" in point)
    done: set[str] = set()
    for point in points:
        asked = str(point.get("gaze", gaze))
        wanted = gaze if asked == AUTOGAZE else asked
        if asked == AUTOGAZE and selector_name(selector) in NAMED:
            raise InputError("--sweep: for gaze=autogaze name the gaze model with --gaze (a hub id or a folder)")
        if wanted not in loaded:
            loaded[wanted] = selector if wanted == gaze else load_selector(wanted, **target)
            if isinstance(loaded[wanted], RandomSelector):
                loaded[wanted] = RandomSelector(seed)
        chosen = loaded[wanted]
        changes = {name: value for name, value in point.items() if name != "gaze"}
        if isinstance(chosen, AllSelector):
            changes = {name: value for name, value in changes.items() if SETTINGS[name].group != LIMITS}
        if (whole := f"{asked if 'gaze' in point else ''} {changes}") in done:
            continue
        done.add(whole)
        named = {**({"gaze": short[asked]} if "gaze" in point else {}), **changes}
        name = re.sub(r"[^\w.=+-]", "-", "_".join(f"{key}={value}" for key, value in named.items()))
        while name in variants:  # signs that no folder should have in its name may have been all that was different
            name += "-"
        variants[name] = Variant(chosen, settings.changed(**changes), wanted, name)
    return list(variants.values())


def write_sweep(folder: Path, variants: Sequence[Variant], reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """report.json, .md and .html of the whole sweep; each variant has its own in a folder beside them."""
    first = reports[0]
    short = told_apart(variant.gaze for variant in variants)
    entries = [_entry(variant, short, report) for variant, report in zip(variants, reports, strict=True)]
    result = {
        "benchmark": first["benchmark"],
        "title": first["title"],
        "sweep": entries,
        "published": first["published"],
        "model": first["settings"]["model"],
    }
    header = ("variant", "official", "strict", "n", "unparsed", "patches kept", "visual tokens")
    rows = [
        (
            entry["name"],
            percent(entry["official"]),
            percent(entry["strict"]),
            str(entry["n"]),
            str(entry["unparsed"]),
            "-" if entry["patches_kept"] is None else f"{100 * entry['patches_kept']:.1f} %",
            "-" if entry["visual_tokens"] is None else f"{entry['visual_tokens']:.0f}",
        )
        for entry in entries
    ]
    blocks: list[Block] = [
        Text(f"Model: {result['model']['name']}. Each variant has its own report in the folder of its name."),
        Heading("Accuracy and cost"),
        Table(header, rows),
    ]
    curves: dict[str, Curve] = {}
    for entry in entries:
        if entry["patches_kept"] is not None and entry["official"]["value"] is not None:
            accuracy = entry["official"]
            curve = curves.setdefault(entry["gaze"], Curve(entry["gaze"]))
            curve.points.append((100 * entry["patches_kept"], accuracy["value"], accuracy["low"], accuracy["high"]))
    if curves:
        picture = accuracy_plot(list(curves.values()), "patches kept, %")
        blocks += [Heading("Accuracy against kept patches"), Picture("Accuracy against kept patches", picture)]
        blocks.append(Text("Variants that take the same frames share the decoding; each reports its time as its own."))
    write_documents(folder, f"{first['title']}: sweep", result, blocks)
    return result


def _entry(variant: Variant, short: dict[str, str], report: dict[str, Any]) -> dict[str, Any]:
    scores, tokens, patches = report["scores"], report["visual_tokens_per_video"], report["patches"]
    return {
        "name": variant.name,
        "gaze": short[variant.gaze],
        "n": scores["n"],
        "official": scores["official"]["score"],
        "strict": scores["strict"]["score"],
        "unparsed": scores["official"]["unparsed"],
        "patches_kept": patches and patches["share"],
        "visual_tokens": tokens and tokens["mean"],
    }
