"""The plugin for lmms-eval: the model `autogaze_mllm`, and tasks that lmms-eval lacks.

    lmms-eval --model autogaze_mllm --model_args pretrained=...,gaze=nvidia/AutoGaze,ratio=0.25 --tasks videomme

lmms-eval finds it by the entry point of the group `lmms_eval.models`. `TASKS` is the folder for its --include_path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"


def manifest() -> Any:
    """What lmms-eval registers. The model's module is imported when the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("autogaze_mllm", simple_class_path=f"{__name__}.model.AutoGazeMllm")
