"""Folders of gaze models with values that cannot be: one line with file and key, and no memory taken first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autogaze_mllm.common.compute.memory import PeakMemory
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.autogaze.pretrained import BUNDLED_FOLDER

INNER, DECODER, ENCODER = (
    ("gaze_model_config",),
    ("gaze_model_config", "gaze_decoder_config"),
    (
        "gaze_model_config",
        "vision_model_config",
    ),
)
RATIO = ("gazing_ratio_config", "fixed")
WRONG: list[tuple[tuple[str, ...], str, Any]] = [
    (DECODER, "num_hidden_layers", 10**9),
    (DECODER, "num_hidden_layers", 10**6),
    (DECODER, "hidden_size", 10**6),
    (DECODER, "intermediate_size", 2**20),
    (DECODER, "intermediate_size", -384),
    (DECODER, "head_dim", 10**9),
    (DECODER, "num_attention_heads", 0),
    (DECODER, "num_attention_heads", "6"),
    (DECODER, "num_key_value_heads", 0),
    (DECODER, "num_multi_token_pred", 10**6),
    (DECODER, "rms_norm_eps", float("nan")),
    (DECODER, "rms_norm_eps", [1e-5]),
    (DECODER, "rope_theta", -1.0),
    (DECODER, "rope_theta", 10**400),
    (DECODER, "rope_scaling", {"rope_type": "llama3"}),
    (DECODER, "rope_scaling", {"rope_type": "llama3", "factor": 0.0}),
    (DECODER, "rope_scaling", "llama3"),
    (DECODER, "mlp_bias", "false"),
    (ENCODER, "depth", 10**9),
    (ENCODER, "depth", True),
    (ENCODER, "kernel_size", 10**9),
    (ENCODER, "trunk_spatial_kernel_size", 99_999),
    (ENCODER, "hidden_dim", None),
    (INNER, "input_img_size", 10**9),
    (INNER, "input_img_size", "large"),
    (INNER, "vision_model_config", [1]),
    (RATIO, "gazing_ratio", "0.5"),
    (RATIO, "gazing_ratio", float("inf")),
    ((), "gazing_ratio_config", "fixed"),
    ((), "scales", 10**9),
    ((), "scales", "+".join(["32"] * 10_000)),
    ((), "scales", {"a": 1}),
    ((), "num_vision_tokens_each_frame", 265.5),
    ((), "max_num_frames", "16"),
    ((), "repeat_step_positions", 1),
    ((), "model_type", {"a": [1] * 10_000}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(BUNDLED_FOLDER, tmp_path / "gaze")
    return tmp_path / "gaze"


def refused(folder: Path) -> str:
    memory = PeakMemory()
    with pytest.raises(InputError) as error:
        AutoGaze.from_pretrained(folder)
    assert memory.above < 200 << 20
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    return str(error.value)


@pytest.mark.parametrize(("keys", "name", "value"), WRONG)
def test_values_that_cannot_be(folder: Path, keys: tuple[str, ...], name: str, value: Any) -> None:
    stored = json.loads((folder / "config.json").read_text())
    node = stored
    for key in keys:
        node = node.setdefault(key, {})
    node[name] = value
    (folder / "config.json").write_text(json.dumps(stored))
    told = refused(folder)
    assert name in told or "config.json" in told or "sides" in told


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"height": 10**9, "width": 224}},
        {"size": "224"},
        {"size": {"shortest_edge": 0}},
        {"image_mean": [0.5, "a", 0.5]},
        {"image_std": [0.0, 0.2, 0.2]},
        {"image_std": [0.2, 0.2]},
        {"rescale_factor": None},
        {"rescale_factor": float("inf")},
        {"resample": 99},
        {"do_rescale": "yes"},
    ],
)
def test_preprocessing_that_cannot_be(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert "preprocessor" in refused(folder)


def test_keys_without_a_meaning_have_none(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text())
        stored |= {"auto_map": {"AutoModel": "evil.M"}, "device": "warp", "hub": [1], "processor": 3}
        (folder / name).write_text(json.dumps(stored))
    assert AutoGaze.from_pretrained(folder).device.type == "cpu"
