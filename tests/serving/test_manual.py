"""The python blocks of the manual's page, in order, against a server that runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import autogaze_mllm as am

from ..helpers.servers import served, talkative

PAGE = Path(am.__file__).resolve().parents[1] / "docs" / "serving.md"


def test_the_examples_of_the_page_run(clip, tmp_path, monkeypatch, capsys):
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n# Needs the server\.\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    with served(talkative()) as server:
        for block in blocks:
            assert "127.0.0.1:8000" in block or "client" in names
            exec(compile(block.replace("http://127.0.0.1:8000", server.url), PAGE.name, "exec"), names)
    assert "CompletionUsage" in capsys.readouterr().out
