"""What the page shows of a video and of answers, as html. All text that comes from outside is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .chart import chart_svg, scale_colours
from .looker import Reply, Seen

NARROW = 420  # units of the chart's width on a phone
CHART = "Kept patches of each frame, by scale"
CAPTIONS = {"frames": "Original", "kept": "Kept patches", "rebuilt": "Rebuilt"}


def notice(line: str) -> str:
    """What went wrong, in one line."""
    return f'<p class="ag-notice" role="alert">{escape(line)}</p>'


def steps(lines: Sequence[str]) -> str:
    """What to do, where nothing is shown yet."""
    return f'<ol class="ag-steps">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ol>'


def viewer(seen: Seen) -> str:
    """Numbers, videos and chart of a video that was looked at. page.js brings the videos and the chart together."""
    frames = json.dumps(_frames(seen))
    return (
        f'<div class="ag-viewer" data-fps="{seen.fps:.6f}" data-frames="{escape(frames)}">'
        f"{_numbers(seen.facts)}{_films(seen)}{_controls(seen)}{_chart(seen)}{_repeated(seen.facts)}</div>"
    )


def answers(question: str, replies: Mapping[str, Reply], facts: Mapping[str, Any], note: str) -> str:
    """replies: as far as they are written; "gaze" and, where it is asked, "dense"."""
    cards = [
        _answer("With gaze", replies["gaze"], facts["visual_tokens"], "ag-with", _once(facts)),
        _answer("Without gaze", replies["dense"], facts["dense_tokens"], "ag-without") if "dense" in replies else "",
    ]
    hint = f'<p class="ag-hint">{escape(note)}</p>' if note else ""
    return f'<p class="ag-question">{escape(question)}</p><div class="ag-answers">{"".join(cards)}</div>{hint}'


def _numbers(facts: Mapping[str, Any]) -> str:
    kept, total = facts["patches"], facts["patches_total"]
    tokens, dense = facts["visual_tokens"], facts["dense_tokens"]
    psnr = facts["psnr_db"]
    tiles = [
        ("Patches kept", f"{kept:,}", f"of {total:,} ({100 * kept / total:.1f} %)"),
        ("Reduction", f"{facts['reduction']:.1f}x", "fewer patches"),
        ("Visual tokens", f"{tokens:,}", f"the dense model, whole frames: {dense:,}"),
        ("Rebuilt", "exact" if psnr is None else f"{psnr:.1f} dB", "PSNR, from the kept patches"),
        ("Seconds", f"{facts['seconds_wall']:.1f}", _stages(facts["seconds"])),
    ]
    cells = "".join(
        f'<div class="ag-number"><dt>{name}</dt><dd>{value}</dd><dd class="ag-small">{more}</dd></div>'
        for name, value, more in tiles
    )
    return f'<dl class="ag-numbers">{cells}</dl>'


def _stages(seconds: Mapping[str, float]) -> str:
    return " · ".join(f"{escape(stage)} {spent:.2f}" for stage, spent in seconds.items())


def _films(seen: Seen) -> str:
    height, width = seen.facts["size"]
    videos = {
        name: f'<video class="ag-film ag-{name}" src="{file_url(path)}" muted loop playsinline preload="auto" '
        f'aria-label="{CAPTIONS[name]}" title="Double-click: full screen"></video>'
        for name, path in seen.clips.items()
    }
    columns, rows = seen.facts["tiles"]
    shape = f"{width}x{height}" + (f", {columns}x{rows} tiles" if columns * rows > 1 else "")
    return (
        f'<div class="ag-films"><figure><figcaption><b>{CAPTIONS["frames"]}</b> <span>{shape}</span></figcaption>'
        f'<div class="ag-screen">{videos["frames"]}</div></figure>'
        f'<figure><figcaption><span class="ag-tabs" role="group" aria-label="Show">'
        f'<button type="button" data-film="kept" aria-pressed="true">{CAPTIONS["kept"]}</button>'
        f'<button type="button" data-film="rebuilt" aria-pressed="false">{CAPTIONS["rebuilt"]}</button></span>'
        f'<a class="ag-save" href="{file_url(seen.clips["kept"])}" download="kept patches.mp4">Save</a></figcaption>'
        f'<div class="ag-screen">{videos["kept"]}{videos["rebuilt"]}</div></figure></div>'
    )


def _controls(seen: Seen) -> str:
    last = len(seen.facts["kept"]["seconds"]) - 1
    return (
        '<div class="ag-controls"><button type="button" class="ag-play" aria-label="Play or pause"></button>'
        f'<input type="range" class="ag-seek" min="0" max="{last}" value="0" aria-label="Frame">'
        '<output class="ag-frame"></output></div>'
    )


def _chart(seen: Seen) -> str:
    colours = scale_colours(len(seen.counts.names))
    totals = [sum(of_scale) for of_scale in zip(*seen.counts.kept, strict=True)]
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{total:,} at {escape(name)} px</li>'
        for name, colour, total in zip(seen.counts.names, colours, totals, strict=True)
    )
    wide, narrow = chart_svg(seen.counts, legend=False), chart_svg(seen.counts, width=NARROW, legend=False)
    return (
        f'<div class="ag-chart"><div class="ag-legend"><b>{CHART}</b><ul>{legend}</ul></div>'
        f'<div class="ag-wide">{wide}</div><div class="ag-narrow">{narrow}</div></div>'
    )


def _repeated(facts: Mapping[str, Any]) -> str:
    return f'<p class="ag-small ag-command">On the command line: <code>{escape(facts["command"])}</code></p>'


def _frames(seen: Seen) -> list[dict[str, Any]]:
    """For page.js: the frame of the videos that a bar of the chart begins with, and what is said of it."""
    count, bars = seen.facts["frames"], len(seen.counts.kept)
    found = []
    for number, (kept, second) in enumerate(zip(seen.counts.kept, seen.counts.seconds, strict=True)):
        said = ", ".join(f"{n} at {name}" for n, name in zip(kept, seen.counts.names, strict=True) if n)
        label = f"frame {number + 1} of {bars}, {second:.2f} s: {sum(kept)} kept" + (f" ({said})" if said else "")
        found.append({"at": number * -(-count // bars), "said": label})
    return found


def _once(facts: Mapping[str, Any]) -> str:
    return f", after {facts['seconds_wall']:.1f} s of gazing, once for all questions"


def _answer(title: str, reply: Reply, tokens: int, kind: str, before: str = "") -> str:
    if reply.refusal:
        return _card(kind, title, f'<p class="ag-refusal">{escape(reply.refusal)}</p>')
    if not reply.stats:
        return _card(f"{kind} ag-waiting", title, f'<p class="ag-text">{escape(reply.text)} …</p>')
    cost = f"{tokens:,} visual tokens · {reply.seconds:.2f} s{before}"
    lines = [
        f'<p class="ag-text">{escape(reply.text) or "(no answer)"}</p>',
        f'<p class="ag-small">{cost}</p>',
        f'<p class="ag-small">{_stages(reply.stats["seconds"])}</p>',
    ]
    return _card(kind, title, "".join(lines))


def _card(kind: str, title: str, inside: str) -> str:
    return f'<section class="ag-answer {kind}"><h3>{title}</h3>{inside}</section>'


def file_url(path: Path) -> str:
    """Where the page's server gives out a file; relative, so that it holds behind a proxy, too."""
    return escape(f"gradio_api/file={quote(str(path))}")
