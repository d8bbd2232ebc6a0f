"""Reading and writing gaze model folders, and what people are told when a folder is not right."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.autogaze.processor import AutoGazeImageProcessor

from ...helpers.golden_data import independent_rows, load, video, weights

NAME = "gaze_00_basic"
# What transformers' serializer adds to every configuration object of the published files.
NOISE = {
    "_name_or_path": "", "transformers_version": "4.51.3", "torch_dtype": "float32", "return_dict": True, "task": None,
    "output_hidden_states": False, "is_decoder": False, "max_length": 20, "num_beams": 1, "temperature": 1.0,
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "bos_token_id": None, "pad_token_id": None, "top_k": 50,
    "use_cache": True, "model_type": "llama", "architectures": None, "max_batch_size": None, "pruned_heads": {},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model as the published code writes it."""
    config = copy.deepcopy(load(NAME)[0]["config"])
    inner = config["gaze_model_config"]
    for node in (config, inner, *(inner[f"{part}_config"] for part in ("vision_model", "connector", "gaze_decoder"))):
        node |= {key: value for key, value in NOISE.items() if key not in node}
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights(NAME), target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_published_folder_loads(folder: Path) -> None:
    model = AutoGaze.from_pretrained(folder)
    assert not model.training
    info = model.generate(video(NAME), 0.9, -2.484375)
    assert torch.equal(info.gazing_pos, independent_rows(NAME, "both")["gazing_pos"].long())


def test_save_and_load_change_nothing(tmp_path: Path) -> None:
    published = load(NAME)[0]["config"] | {"max_num_frames": 16, "repeat_step_positions": False}
    processor = AutoGazeImageProcessor(size=(48, 64), resample=3, image_mean=(0.1, 0.2, 0.3))
    model = AutoGaze(AutoGazeConfig.from_dict(published), processor)
    model.save_pretrained(tmp_path / "one")
    again = AutoGaze.from_pretrained(tmp_path / "one")

    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.config == model.config
    assert again.config.to_dict() == model.config.to_dict()
    assert again.processor.to_dict() == processor.to_dict()
    again.save_pretrained(tmp_path / "two")
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "two")) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_saved_config_keeps_what_the_published_one_says() -> None:
    published = copy.deepcopy(load(NAME)[0]["config"])
    published["gazing_ratio_config"] |= {
        "uniform": {"gazing_ratio_min": 0.1, "gazing_ratio_max": 0.8},
        "exponential": {"lambda": 5.0, "gazing_ratio_min": 0.02, "gazing_ratio_max": 0.3},
    }

    def missing(want: Any, have: Any, path: str) -> list[str]:
        if isinstance(want, dict) and isinstance(have, dict):
            return [line for key in want for line in missing(want[key], have.get(key), f"{path}.{key}")]
        return [] if want == have else [f"{path}: {want} became {have}"]

    stored = AutoGazeConfig.from_dict(published).to_dict()
    assert missing(published, stored, "config") == []


def test_released_architecture_is_the_default() -> None:
    for model in (AutoGaze(), AutoGaze(AutoGazeConfig.from_dict({"model_type": "autogaze"}))):
        assert sum(parameter.numel() for parameter in model.parameters()) == 3_258_240
        assert model.grid.counts == (4, 16, 49, 196)
        assert dict(model.named_buffers()) == {}


def test_half_precision_and_wide_files(folder: Path) -> None:
    model = AutoGaze.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.generate(video(NAME), 0.5).gazing_pos.shape == (2, 30)


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


EMBED, HEAD = "gazing_model.connector.pos_embed", "gazing_model.gaze_decoder.lm_head.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing weight": (lambda f: rewrite_weights(f, lambda w: w.pop(EMBED)), [f"missing: {EMBED}"]),
    "unknown weight": (lambda f: rewrite_weights(f, lambda w: w.update(extra=torch.zeros(1))), ["left over: extra"]),
    "misshapen weight": (
        lambda f: rewrite_weights(f, lambda w: w.update({HEAD: w[HEAD][:-1].clone()})),
        [f"of another shape: {HEAD} (stored 62x32, expected 63x32)"],
    ),
    "other model's weights": (lambda f: rewrite_weights(f, lambda w: w.clear()), ["missing", "more"]),
    "truncated weights": (lambda f: os.truncate(f / "model.safetensors", 1000), ["model.safetensors"]),
    "not weights": (lambda f: (f / "model.safetensors").write_bytes(b"<html>" * 9), ["model.safetensors"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no model.safetensors"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json"]),
    "broken config": (lambda f: (f / "config.json").write_text('{"model_type": '), ["config.json"]),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "json object"]),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ["config.json"]),
    "wrong model_type": (lambda f: rewrite_config(f, model_type="siglip"), ["'siglip'", "autogaze"]),
    "no model_type": (lambda f: rewrite_config(f, model_type=None), ["autogaze"]),
    "bad scales": (lambda f: rewrite_config(f, scales="32x64"), ["32x64"]),
    "impossible grid": (lambda f: rewrite_config(f, num_vision_tokens_each_frame=23), ["23", "32+64"]),
    "bad preprocessor": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": {"longest": 3}}'), ["size", "shortest_edge"],
    ),
    "wrong type in config": (lambda f: rewrite_config(f, gaze_model_config={"input_img_size": "large"}), ["large"]),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_folder(folder: Path, what: str) -> None:
    damage, expected = DAMAGE[what]
    damage(folder)
    with pytest.raises(InputError) as error:
        AutoGaze.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 2000
    assert [text for text in expected if text not in message] == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-model"):
        AutoGaze.from_pretrained(tmp_path / "no-such-model")


def test_cannot_save_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        AutoGaze(AutoGazeConfig.from_dict(load(NAME)[0]["config"])).save_pretrained(tmp_path / "taken")


def test_hub_without_a_copy_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"someone/model: not a folder, and config\.json could not be fetched"):
        AutoGaze.from_pretrained("someone/model", cache_dir=tmp_path, local_files_only=True)


def test_a_name_without_an_owner_is_no_repository() -> None:
    """No hub is asked, which would take a minute where there is none."""
    with pytest.raises(InputError, match="a-typo: no such folder, and not the name of a hub repo"):
        AutoGaze.from_pretrained("a-typo")


def test_hub_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="someone/model: not a folder, and"):
        AutoGaze.from_pretrained("someone/model", cache_dir=tmp_path)
