"""HLVid's questions, prompt and rules for lmms-eval: those of `autogaze-mllm eval hlvid`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from autogaze_mllm.evaluation.benchmarks import Question
from autogaze_mllm.evaluation.benchmarks.hlvid import LETTERS, HLVid


def doc_to_visual(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[str]:
    home = os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    folder = (lmms_eval_specific_kwargs or {}).get("data") or Path(home, "hlvid")
    return [str(HLVid(folder).video_path(doc["video_path"]))]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return f"Question: {doc['question']}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    question = Question(doc["question_id"], doc["video_path"], doc_to_text(doc), LETTERS, doc["answer"])
    benchmark = HLVid(Path())
    return {
        "accuracy_official": float(benchmark.official(results[0], question) == doc["answer"]),
        "accuracy_strict": float(benchmark.strict(results[0], question) == doc["answer"]),
    }
