"""Ray as the back end: a real cluster on this machine, with actors that are killed in the middle.

Each test is a program of its own, because a process connects to one cluster only, and its home is its own: Ray keeps
a token there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autogaze_mllm.indexing.attempts import Attempts
from autogaze_mllm.indexing.run import run_index
from autogaze_mllm.video.writer import write_video

from ..helpers.eval_runs import refused
from ..helpers.index_runs import Deadly, make_videos, records, stored, tiny_base
from ..helpers.paths import ROOT
from .test_kills import job

BLACK, DARK = "1 black.mp4", "2 black.mp4"
CODE = """
import sys
from pathlib import Path
from autogaze_mllm.indexing.run import run_index
from tests.helpers.index_runs import Deadly
from tests.indexing.test_kills import job

if __name__ == "__main__":
    videos, out, model, deaths, times = sys.argv[1:]
    result = run_index(job(videos, out, model, Deadly(Path(deaths), int(times))), workers=2, ray="local")
    print(result.made, *(record.path for record in result.failed), sep="|")
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = make_videos(tmp_path_factory.mktemp("videos"), 3)
    for name, shade in ((BLACK, 0), (DARK, 12)):
        write_video(folder / name, [np.full((64, 96, 3), shade, np.uint8)] * 6, fps=6)
    (folder / "notes.mp4").write_text("not a video")
    return folder


def run(tmp_path: Path, *arguments: object) -> list[str]:
    """What the program prints of its result."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1].split("|")


@pytest.mark.slow
def test_actors_that_are_killed_in_the_middle_cost_nothing_but_time(videos, tmp_path):
    """A first death at a video: it is done all the same. A second one, after that of an earlier run: it is set aside.
    All others are done, and the bytes are those of processes."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    model, deaths, out = tiny_base(tmp_path / "model"), tmp_path / "deaths", tmp_path / "out"
    deaths.mkdir()
    (out / ".attempts").mkdir(parents=True)
    Attempts(out)._mark(BLACK).write_text("x")  # as a run leaves it that was killed with its worker
    assert run(tmp_path, videos, out, model, deaths, 1) == ["6", BLACK, "notes.mp4"]
    assert sorted(path.name.partition("-")[2] for path in deaths.iterdir()) == ["0", "0"]
    assert "set aside, because its worker was killed" in records(out)[BLACK]["error"]
    alone = run_index(job(videos, tmp_path / "alone", model, Deadly(deaths, 0)), workers=1)
    assert [record.path for record in alone.failed] == ["notes.mp4"]
    expected, found = stored(tmp_path / "alone"), stored(out)
    assert len(found) == 6 + 4 and {name for name in found if found[name] != expected[name]} == {BLACK}
    # Processes go on with what a cluster began.
    again = run_index(job(videos, out, model, Deadly(deaths, 0)), workers=1, retry_failed=True)
    assert again.made == 2 and stored(out) == expected


def test_without_ray_it_says_what_to_install(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python notes that there is none
    model = tiny_base(tmp_path / "model")
    command = ["index", str(videos), "--out", str(tmp_path / "out"), "--model", str(model), "--gaze", "pixel-diff"]
    capsys.readouterr()
    assert "pip install 'autogaze_mllm[ray]'" in refused(capsys, [*command, "--ray", "local"])
