"""One video's gaze as one html file: it needs no server, no script, no network and no file beside it, so that it can be
attached to an issue and opened by whoever reads that.

The overlay is in the file itself, as base64: a file beside it would be lost on the way.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..common.errors import InputError
from ..common.storage.files import output_folder, write_text
from ..common.storage.paths import shown_name
from .chart import FrameCounts, chart_svg, scale_colours

STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1d1f23; --soft: #62666f; --line: #e2e2de;
  --code: #f0f0ec; }
@media (prefers-color-scheme: dark) {
  :root { --page: #131417; --card: #1c1e22; --ink: #e9e9ec; --soft: #9da1ab; --line: #2e3137; --code: #26282d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1rem; }
p { margin: .4rem 0; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem 1.4rem;
  margin-top: 1.25rem; }
video { display: block; width: 100%; border-radius: 8px; background: #121216; }
svg.patches { display: block; width: 100%; height: auto; }
svg.patches g.frame:hover rect:first-of-type { fill-opacity: .08; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; padding: 0;
  overflow: hidden; background: var(--line); }
.tiles div { background: var(--card); padding: 1rem 1.4rem; }
.tiles b { display: block; font-size: 1.65rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .875rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1.25rem;
  align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { padding: .32rem .6rem .32rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
tr:last-child th, tr:last-child td { border-bottom: 0; }
table.numbers th, table.numbers td { text-align: right; padding: .2rem 0 .2rem 1rem; }
i.scale { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .45em; }
pre { margin: 0; padding: .8rem 1rem; border-radius: 8px; background: var(--code); white-space: pre-wrap;
  overflow-wrap: anywhere; font: .9rem/1.5 ui-monospace, monospace; }
summary { cursor: pointer; font-weight: 600; }
details > div { margin-top: .8rem; }
"""


WHAT = (
    "What gaze keeps of it: every frame in small patches, coarse ones where they say enough, none where nothing is new."
)
OVERLAY = (
    "Left: kept patches at full brightness, outlined in the colour of their scale. Right: the picture that all patches "
    "kept so far give."
)


@dataclass(frozen=True)
class Report:
    """video: its name. stats: of the gazed video. counts: what was kept of each frame. psnr: decibels of the rebuilt
    picture. settings: what was chosen, in the words of reports. command: what repeats it. version: of this package.
    overlay: an mp4 file."""

    video: str
    stats: dict[str, Any]
    counts: FrameCounts
    psnr: float
    settings: Sequence[tuple[str, str]]
    command: str
    version: str
    overlay: bytes


@contextmanager
def report_folder(folder: str | Path) -> Iterator[Path]:
    """Gives the name under which the overlay is to be written, in the report's folder; it is gone afterwards."""
    overlay = output_folder(folder) / ".overlay.mp4"
    try:
        yield overlay
    finally:
        overlay.unlink(missing_ok=True)


def report_path(folder: str | Path, video: str) -> Path:
    """Where the report of a video goes. Raises InputError where that would be the video itself."""
    path = Path(folder) / f"{Path(video).stem}.html"
    if path.resolve() == Path(video).resolve():
        raise InputError(f"{shown_name(video)}: is the video itself; give the report another folder")
    return path


def write_report(path: Path, report: Report) -> None:
    write_text(path, report_html(report))


def report_html(report: Report) -> str:
    name = shown_name(Path(report.video).name)
    body = [
        f"<header><h1>{escape(name)}</h1><p>{WHAT}</p></header>",
        _headline(report),
        _section("Kept patches, and the picture rebuilt from them", _video(report.overlay) + f"<p>{OVERLAY}</p>"),
        _section("Patches kept of each frame", chart_svg(report.counts)),
        '<div class="pair">',
        _section("Settings", _pairs(report.settings)),
        "<div>",
        _section("Scales and seconds", _scales(report) + _seconds(report.stats)),
        _section("To repeat it", f"<pre>{escape(report.command)}</pre>"),
        "</div></div>",
        f'<section><details><summary>All numbers</summary><div class="scroll">{_numbers(report.counts)}</div></details>'
        "</section>",
        f"<p>autogaze-mllm {escape(report.version)}</p>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: kept patches</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"


def _headline(report: Report) -> str:
    stats = report.stats
    kept, total = stats["patches"], stats["patches_total"]
    width, height = reversed(stats["size"])
    shown = [
        (f"{100 * kept / total:.1f} %", f"of the patches ({kept:,} of {total:,})"),
        (f"{total / kept:.1f}x", "fewer than all"),
        (f"{report.psnr:.1f} dB" if math.isfinite(report.psnr) else "exact", "PSNR of the rebuilt picture"),
        (f"{stats['frames']}", f"frames of {width} x {height}" + _lost(stats)),
        (f"{stats['seconds_wall']:.1f} s", "by the clock, with the overlay"),
    ]
    return (
        '<section class="tiles">'
        + "".join(f"<div><b>{big}</b><span>{small}</span></div>" for big, small in shown)
        + "</section>"
    )


def _lost(stats: dict[str, Any]) -> str:
    return f", {stats['frames_lost']} could not be decoded" if stats.get("frames_lost") else ""


def _video(overlay: bytes) -> str:
    data = base64.b64encode(overlay).decode()
    return f'<video controls loop muted autoplay playsinline src="data:video/mp4;base64,{data}"></video>'


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
        + "</table>"
    )


def _scales(report: Report) -> str:
    rows, total = [], max(sum(map(sum, report.counts.kept)), 1)
    for scale, (name, colour) in enumerate(
        zip(report.counts.names, scale_colours(len(report.counts.names)), strict=True)
    ):
        kept = sum(frame[scale] for frame in report.counts.kept)
        rows.append(
            f'<tr><th><i class="scale" style="background:{colour}"></i>{escape(name)} px</th><td>{kept:,} patches</td>'
            f"<td>{100 * kept / total:.0f} %</td></tr>"
        )
    return "<table>" + "".join(rows) + "</table>"


def _seconds(stats: dict[str, Any]) -> str:
    text = "  ·  ".join(f"{stage} {spent:.2f} s" for stage, spent in stats["seconds"].items())
    return f"<p>{escape(text)}</p>"


def _numbers(counts: FrameCounts) -> str:
    head = "".join(f"<th>{escape(name)} px</th>" for name in counts.names)
    rows = [f"<tr><th>frame</th><th>seconds</th>{head}<th>all</th></tr>"]
    for number, (frame, second) in enumerate(zip(counts.kept, counts.seconds, strict=True)):
        cells = "".join(f"<td>{kept}</td>" for kept in frame)
        rows.append(f"<tr><td>{number}</td><td>{second:.2f}</td>{cells}<td>{sum(frame)}</td></tr>")
    return '<table class="numbers">' + "".join(rows) + "</table>"
