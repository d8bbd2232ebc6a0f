"""A tiny model learns eight answers about eight videos by heart, and needs the videos for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import AdapterConfig, PartConfig
from autogaze_mllm.finetuning.data.samples import load_samples
from autogaze_mllm.finetuning.run import finetune

from ..helpers.files.finetune_files import config, save_base
from ..helpers.paths import ROOT

SCRIPT = ROOT / "scripts" / "make_finetune_data.py"
PLANS = {
    "full": {part: PartConfig("full", 3e-3) for part in ("tower", "projector", "llm")},
    "lora": {"tower": PartConfig("lora", 1e-2), "projector": PartConfig("full", 5e-3), "llm": PartConfig("lora", 1e-2)},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("overfit") / "data"
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, capture_output=True)
    return folder / "train.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("way", list(PLANS))
def test_eight_answers_about_eight_videos_are_learnt_by_heart(way, data, tmp_path):
    base = save_base(tmp_path / "base model")
    model = am.wrap(base, "pixel-diff", frames=2, ratio=0.5, cache=False)
    options = {"batch_size": 8, "max_steps": 200, "warmup": 0.1, "gradient_checkpointing": False}
    options |= {"lora": AdapterConfig(rank=16, alpha=32, dropout=0.0), "log_steps": 20}
    result = finetune(model, config(data, tmp_path / "out", parts=PLANS[way], **options), str(base))
    print(way, result["losses"])
    samples = load_samples([data])
    videos = [sample.media[0].path for sample in samples]
    answers = [sample.turns[1].text for sample in samples]
    loaded = am.load(tmp_path / "out", cache=False)
    question = samples[0].turns[0].text  # the same for all: only the video tells
    assert all(sample.turns[0].text == question for sample in samples)

    def right(shown: list[Path]) -> int:
        asked = [loaded.ask(video, question, max_new_tokens=10) for video in shown]
        print(asked)
        return sum(reply == answer for reply, answer in zip(asked, answers, strict=True))

    assert right(videos) == 8
    for shift in (1, 3):  # with another sample's video the answers are those of that video
        assert right(videos[shift:] + videos[:shift]) == 0
    shuffled = [videos[number] for number in (0, 2, 1, 4, 3, 6, 7, 5)]
    assert right(shuffled) == 1  # chance: one of eight
