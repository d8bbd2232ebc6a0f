"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.mllm.tiny import tiny_model

from .helpers.paths import ROOT
from .helpers.tiny_models import tiny_gaze

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(clip, tmp_path_factory):
    """A folder in which every file and model that the README names exists, small and random."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(clip, folder / "clip.mp4")
    base, processor = tiny_model("llava_onevision", image_size=64)
    named = folder / "llava-hf" / "llava-onevision-qwen2-7b-ov-hf"
    base.save_pretrained(named)
    processor.save_pretrained(named)
    tiny_gaze().save_pretrained(folder / "nvidia" / "AutoGaze")
    (folder / "videos.jsonl").write_text("".join(blocks("json")), encoding="utf-8")
    return folder


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    exec(compile(blocks("python")[number], f"README python example {number}", "exec"), {})


def test_commands_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("autogaze-mllm")]
    assert len(lines) >= 4
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
        assert capsys.readouterr().out
