"""The python blocks of the manual's page, in order, against a server that runs."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import autogaze_mllm as am
from autogaze_mllm.mllm.families import OWN

from ..helpers.serving.servers import served, talkative

ROOT = Path(am.__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "serving.md"
sys.path.insert(0, str(ROOT / "scripts"))
import docs_hooks  # noqa: E402  # a script, not part of the package


def test_the_examples_of_the_page_run(clip, tmp_path, monkeypatch, capsys):
    shutil.copy(clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n# Needs the server\.\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    with served(talkative(), max_tokens=16) as server:
        for block in blocks:
            assert "127.0.0.1:8000" in block or "client" in names
            exec(compile(block.replace("http://127.0.0.1:8000", server.url), PAGE.name, "exec"), names)
    assert "CompletionUsage" in capsys.readouterr().out


def test_the_table_of_engines_is_made_of_the_families():
    text = docs_hooks.on_page_markdown(PAGE.read_text(encoding="utf-8"))
    assert "<!-- engines" not in text and "<!-- settings" not in text
    assert all(f"| {family.title} | " in text for family in OWN)
