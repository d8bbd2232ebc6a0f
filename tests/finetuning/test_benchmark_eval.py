"""A benchmark that is asked while a model is fine-tuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.evaluation.answers import read_answers
from autogaze_mllm.evaluation.benchmarks import BENCHMARKS
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up
from autogaze_mllm.finetuning.config import AdapterConfig, PartConfig
from autogaze_mllm.finetuning.run import finetune

from ..helpers.files.finetune_files import ALL, config, save_base, turns, wrapped

LIMIT = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """HLVid as it is published, but made up, and its own questions with their answers as samples."""
    folder = tmp_path_factory.mktemp("benchmark")
    benchmark = BENCHMARKS["hlvid"](write_made_up("hlvid", folder / "hlvid", videos=2))
    rows = [
        {
            "video": str(benchmark.video_path(question.video)),
            "conversations": turns(f"<video>\n{benchmark.prompt(question, [])}", question.answer),
        }
        for question in benchmark.questions()[:LIMIT]
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder


def asked(place: Path, output: Path, **changes):
    told = {"eval_data": (str(place / "data.json"),), "eval_steps": 2, "eval_limit": LIMIT}
    return config(place / "data.json", output, eval_benchmark=f"hlvid={place / 'hlvid'}", **{**told, **changes})


def test_accuracy_stands_beside_the_loss_and_is_what_eval_gives(place, tmp_path, capsys):
    base = save_base(tmp_path / "base")
    model = am.wrap(base, "pixel-diff", frames=4, ratio=0.5, cache=False)
    parts = {part: PartConfig("full", 3e-3) for part in ALL}
    output = tmp_path / "out"
    options = {"parts": parts, "max_steps": 8, "eval_steps": 1, "batch_size": LIMIT}
    result = finetune(model, asked(place, output, **options), str(base))
    assert len(result["eval_accuracies"]) == len(result["eval_losses"]) == 8
    # The letters of these questions are learnt by heart.
    assert result["eval_accuracies"][0] < result["eval_accuracy"]
    assert result["eval_accuracy"] > 0.3
    answers = read_answers(output / "benchmark" / "hlvid-8")
    right = sum(answer.official == answer.answer for answer in answers.values())
    assert len(answers) == LIMIT and result["eval_accuracy"] == pytest.approx(right / LIMIT)
    more = ["--frames", "4", "--ratio", "0.5", "--limit", str(LIMIT), "--out", str(tmp_path / "run"), "--json"]
    assert main(["eval", "hlvid", "--data", str(place / "hlvid"), "--model", str(output), "--no-cache", *more]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["scores"]["official"]["score"]["value"] == pytest.approx(result["eval_accuracy"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_asking_changes_nothing_in_the_training(precision, place, tmp_path):
    """LoRA's dropout would show another random state, or a model left in evaluation mode."""
    options = {
        "parts": {**ALL, "llm": PartConfig("lora", 1e-2)},
        "lora": AdapterConfig(rank=4, dropout=0.3),
        "max_steps": 5,
        "precision": precision,
    }
    with_it = finetune(wrapped(), asked(place, tmp_path / "a", eval_steps=1, **options))
    assert len(with_it["eval_accuracies"]) == 5
    without = finetune(wrapped(), config(place / "data.json", tmp_path / "b", **options))
    assert with_it["losses"] == without["losses"]


def test_bad_benchmarks_get_one_line(place, tmp_path):
    for told, message in {
        "hlvid": "eval_benchmark is NAME=FOLDER",
        f"nothing={place}": "NAME one of hlvid",
        f"hlvid={tmp_path}": str(tmp_path),
    }.items():
        wrong = config(place / "data.json", tmp_path, eval_data=(str(place / "data.json"),), eval_benchmark=told)
        with pytest.raises(am.InputError, match=message):
            finetune(wrapped(), wrong)
    with pytest.raises(am.InputError, match="eval_benchmark needs eval_data"):
        config(place / "data.json", tmp_path, eval_benchmark="hlvid=somewhere")
    with pytest.raises(am.InputError, match="does not go with ZeRO-3"):
        finetune(wrapped(), asked(place, tmp_path, deepspeed="zero3"))
