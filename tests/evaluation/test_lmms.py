"""The plugin for lmms-eval. What needs lmms-eval itself runs where it is installed (it wants torchvision)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib

import pytest

from autogaze_mllm.cli import main
from autogaze_mllm.evaluation import lmms
from autogaze_mllm.evaluation.benchmarks import BENCHMARKS
from autogaze_mllm.evaluation.benchmarks.synthetic import write_made_up
from autogaze_mllm.mllm.tiny import tiny_model

from ..helpers.paths import ROOT

needs_lmms = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
# A task of lmms-eval's own, on local data: only where the videos lie is ours.
VIDEOMME_TASK = """task: videomme_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}/videomme/test-00000-of-00001.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
process_results: !function utils.process
metric_list:
  - metric: videomme_perception_score
    aggregation: !function utils.aggregate
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: "The best answer is:"
"""
VIDEOMME_UTILS = """from lmms_eval.tasks.videomme import utils
text, process = utils.videomme_doc_to_text, utils.videomme_process_results
aggregate = utils.videomme_aggregate_results
def visual(doc):
    return ["{data}/data/" + doc["videoID"] + ".mp4"]
"""
HLVID_TASK = """include: {tasks}/hlvid/hlvid.yaml
task: hlvid_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}/data/test-00000-of-00001.parquet
lmms_eval_specific_kwargs:
  default:
    data: {data}
"""


def test_the_entry_point_names_what_lmms_eval_loads():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["autogaze_mllm"].split(":")
    assert module == lmms.__name__ and callable(getattr(lmms, name))


def test_the_hlvid_task_asks_and_scores_as_our_own_harness(tmp_path):
    spec = importlib.util.spec_from_file_location("hlvid_utils", lmms.TASKS / "hlvid" / "utils.py")
    assert spec is not None and spec.loader is not None
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    data = write_made_up("hlvid", tmp_path, videos=1)
    benchmark = BENCHMARKS["hlvid"](data)
    from pyarrow import parquet

    for doc, question in zip(
        parquet.read_table(benchmark.table_paths()[0]).to_pylist(), benchmark.questions(), strict=True
    ):
        assert utils.doc_to_text(doc) == benchmark.prompt(question, [])
        assert utils.doc_to_visual(doc, {"data": str(data)}) == [str(benchmark.video_path(question.video))]
        sentence = f"{question.answer} man"  # the official rule reads a letter in it, ours does not
        right = {"accuracy_official": 1.0, "accuracy_strict": 1.0}
        assert utils.process_results(doc, [question.answer]) == right
        assert utils.process_results(doc, [sentence]) == right | {"accuracy_strict": 0.0}
        assert utils.process_results(doc, ["no idea"]) == {"accuracy_official": 0.0, "accuracy_strict": 0.0}
    task = (lmms.TASKS / "hlvid" / "hlvid.yaml").read_text()
    assert "dataset_path: bfshi/HLVid" in task and f"max_new_tokens: {benchmark.max_new_tokens}" in task


@pytest.mark.slow
@needs_lmms
def test_its_command_line_runs_our_model_and_agrees_with_our_harness(tmp_path, capsys):
    base, processor = tiny_model("llava_onevision", image_size=64)
    for part in (base, processor):
        part.save_pretrained(tmp_path / "model")
    folders = {name: write_made_up(name, tmp_path / name) for name in ("hlvid", "videomme")}
    tasks = tmp_path / "tasks"
    for name, files in {
        "hlvid": {"task.yaml": HLVID_TASK},
        "videomme": {"task.yaml": VIDEOMME_TASK, "utils.py": VIDEOMME_UTILS},
    }.items():
        (tasks / name).mkdir(parents=True)
        for file, content in files.items():
            (tasks / name / file).write_text(content.format(tasks=lmms.TASKS, data=folders[name]))
    arguments = f"pretrained={tmp_path / 'model'},gaze=pixel-diff,frames=6,ratio=0.25"
    command = [sys.executable, "-m", "lmms_eval", "--model", "autogaze_mllm", "--model_args", arguments]
    command += ["--tasks", "hlvid_local,videomme_local", "--include_path", str(tasks), "--batch_size", "1"]
    command += ["--log_samples", "--output_path", str(tmp_path / "out")]
    offline = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, metric in (("hlvid", "accuracy_official"), ("videomme", "videomme_perception_score")):
        (path,) = (tmp_path / "out").rglob(f"*samples_{name}_local.jsonl")
        theirs = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
        out = tmp_path / f"run {name}"
        ours = ["eval", name, "--data", str(folders[name]), "--model", str(tmp_path / "model"), "--out", str(out)]
        assert main([*ours, "--gaze", "pixel-diff", "--frames", "6", "--ratio", "0.25", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        answers = [json.loads(line) for line in (out / "answers-00000.jsonl").read_text().splitlines()]
        if name == "hlvid":  # the same prompt: the same replies
            assert [row["filtered_resps"] for row in theirs] == [answer["raw"] for answer in answers]
            assert sum(row[metric] for row in theirs) == report["scores"]["official"]["score"]["correct"]
        else:  # their prompt speaks of subtitles always; their scorer and our official rule read the same in a reply
            benchmark = BENCHMARKS[name](folders[name])
            for row, question in zip(theirs, benchmark.questions(), strict=True):
                reply = row["filtered_resps"]
                assert row[metric]["question_id"] == question.id
                assert row[metric]["pred_answer"] == (benchmark.official(reply, question) or "")


@needs_lmms
def test_likelihoods_and_replies_of_the_model(tmp_path, clip, short_clip):
    """In process: requests as lmms-eval makes them."""
    import torch
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    base, processor = tiny_model("llava_onevision", image_size=64)
    for part in (base, processor):
        part.save_pretrained(tmp_path)
    kind = get_model("autogaze_mllm")
    model = kind.create_from_arg_string(f"pretrained={tmp_path},gaze=random,frames=4,ratio=0.2,cache=False")
    assert model.model.settings.frames == 4 and model.model.settings.ratio == 0.2
    docs = [{"video": str(clip)}, {"video": str(short_clip)}, {"video": str(clip)}]
    model.task_dict = {"task": {"test": docs}}

    def requests(kind: str, second: object) -> list[Instance]:
        def request(place: int) -> Instance:
            arguments = ("What moves?", second, lambda doc: [doc["video"]], place, "task", "test")
            return Instance(kind, arguments, 0, {"task": "task", "doc_id": place, "repeats": 1})

        return [request(place) for place in range(3)]

    options = {"max_new_tokens": 6, "temperature": 0, "until": ["\\n\\n"]}
    replies = model.generate_until(requests("generate_until", options))
    alone = [model.model.ask(doc["video"], "What moves?", max_new_tokens=6) for doc in docs]
    assert replies == alone
    found = model.loglikelihood(requests("loglikelihood", "No"))
    assert found[0] == found[2]
    for (loss, _), doc in zip(found, docs, strict=True):
        inputs = model.model.prepare("<video>\nWhat moves?", [doc["video"]])
        target = model.model.tokenizer("No", add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([inputs["input_ids"], target], dim=1)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), target], dim=1)
        with torch.no_grad():
            expected = model.model(ids, inputs["media"], labels=labels, attention_mask=torch.ones_like(ids)).loss
        assert loss == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(ValueError, match="unknown setting 'colour'"):
        kind.create_from_arg_string(f"pretrained={tmp_path},gaze=random,colour=1")
    with pytest.raises(ValueError, match="batch_size must be 1"):
        kind.create_from_arg_string(f"pretrained={tmp_path},gaze=random", {"batch_size": 4})
