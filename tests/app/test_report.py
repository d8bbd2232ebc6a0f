"""`gaze --report`: one html file that says everything and needs nothing."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.video.reader import VideoReader

from ..helpers.eval_runs import refused

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ["--gaze", "pixel-diff", "--frames", "7", "--max-tiles", "2", "--loss", "0.02", "--no-enlarge"]


class _Page(HTMLParser):
    """tags: of all elements; links: what their attributes lead to; open: elements that were never closed."""

    VOID = ("meta", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def report(clip, tmp_path_factory) -> tuple[Path, dict]:
    """The file, and what the command printed."""
    import contextlib

    folder, printed = tmp_path_factory.mktemp("report") / "new", io.StringIO()
    named = folder.parent / "a <b> & 'c'.mp4"
    shutil.copy(clip, named)
    with contextlib.redirect_stdout(printed):
        assert main(["gaze", str(named), "--report", str(folder), "--json", *OPTIONS]) == 0
    return folder / "a <b> & 'c'.html", json.loads(printed.getvalue())


def test_it_is_one_file_without_scripts_or_anything_from_elsewhere(report):
    path, told = report
    assert [found.name for found in path.parent.iterdir()] == [path.name] and told["report"] == str(path)
    page = _Page(path.read_text())
    assert not page.open and "script" not in page.tags and {"video", "svg", "table"} <= set(page.tags)
    assert [link.partition(",")[0] for link in page.links] == ["data:video/mp4;base64"]
    assert not re.findall(r"url\(|@import|\bon[a-z]+=", path.read_text())
    assert str(path.parent.parent) not in path.read_text()  # whose folders these are is nobody's business


def test_the_overlay_in_it_is_a_video_of_all_frames(report):
    (data,) = _Page(report[0].read_text()).links
    reader = VideoReader(base64.b64decode(data.partition(",")[2]))
    assert len(reader) == 7


def test_its_numbers_are_those_of_the_command(report):
    path, told = report
    text = path.read_text()
    assert f"({told['patches']:,} of {told['patches_total']:,})" in text and f"{told['psnr_db']:.1f} dB" in text
    cells = re.findall(r"<tr><td>(\d+)</td><td>[\d.]+</td>(.*?)</tr>", text)
    counts = [[int(cell) for cell in re.findall(r"<td>(\d+)</td>", row)] for _, row in cells]
    assert [int(number) for number, _ in cells] == list(range(7))
    assert all(sum(row[:-1]) == row[-1] for row in counts) and sum(row[-1] for row in counts) == told["patches"]
    drawn = [int(found) for found in re.findall(r"frame \d+, [\d.]+ s: (\d+) patches", text)]
    assert drawn == [row[-1] for row in counts]


def test_the_command_in_it_gives_the_same_again(report, capsys, monkeypatch):
    path, told = report
    command = shlex.split(unescape(re.search(r"<pre>(.*?)</pre>", path.read_text(), re.S)[1]))
    assert command[:2] == ["autogaze-mllm", "gaze"] and "--no-enlarge" in command and "--report" not in command
    monkeypatch.chdir(path.parent.parent)
    assert main([*command[1:], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {k: again[k] for k in ("patches", "psnr_db", "frames")} == {
        k: told[k] for k in ("patches", "psnr_db", "frames")
    }


def test_one_number_for_each_frame_is_repeated_by_a_file(clip, tmp_path, capsys):
    ratios = [0.3, *[0.1] * 3]
    (tmp_path / "given.yaml").write_text(f"ratio: {ratios}\nchunk-frames: 4\ngaze: pixel-diff\nframes: 4\n")
    command = ["gaze", str(clip), "--report", str(tmp_path / "report"), "--out", str(tmp_path / "overlay.mp4")]
    assert main([*command, "--config", str(tmp_path / "given.yaml")]) == 0
    assert "overlay.mp4" in capsys.readouterr().out and (tmp_path / "overlay.mp4").is_file()
    text = (tmp_path / "report" / "scene.html").read_text()
    told = unescape(re.search(r"<pre>(.*?)</pre>", text, re.S)[1])
    assert "--config options.yaml" in told and "ratio: [0.3, 0.1, 0.1, 0.1]" in told
    assert "0.3, 0.1 (3 times)" in text


def test_what_cannot_be_written_is_refused_in_one_line(clip, tmp_path, capsys):
    (tmp_path / "file").touch()
    line = refused(capsys, ["gaze", str(clip), "--report", str(tmp_path / "file")])
    assert "cannot write here" in line
    (tmp_path / "clip.html").write_bytes(clip.read_bytes())  # a video of that name
    line = refused(capsys, ["gaze", str(tmp_path / "clip.html"), "--report", str(tmp_path)])
    assert "is the video itself" in line
    assert "not a readable video" in refused(
        capsys, ["gaze", str(tmp_path / "file"), "--report", str(tmp_path / "new")]
    )
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.slow
def test_it_opens_and_plays_from_a_file_in_a_browser(report, tmp_path):
    """Scripts switched off, and no request to anywhere."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = report[0]
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_context(java_script_enabled=False).new_page()
        asked, faults = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: faults.append(message.text))
        page.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] and not faults
        box = page.locator("svg.patches").bounding_box()
        assert box["width"] > 400 and box["height"] > 100 and page.locator("g.frame").count() == 7
        assert page.locator("pre").inner_text().startswith("autogaze-mllm gaze")
        browser_page = browser.new_context().new_page()  # only to look at the video's own state
        browser_page.goto(path.as_uri())
        browser_page.wait_for_function("document.querySelector('video').readyState == 4", timeout=60_000)
        seen = browser_page.evaluate(
            "(() => { const v = document.querySelector('video'); return [v.videoWidth, v.duration, v.error] })()"
        )
        assert seen[0] == 2 * 560 and 0.5 < seen[1] < 4 and seen[2] is None
        browser.close()
