"""LoRA on disk: peft's own form, and one line for a base that it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import autogaze_mllm as am
from autogaze_mllm.finetuning.config import PRESETS, AdapterConfig, PartConfig
from autogaze_mllm.finetuning.parts import switch_on
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.mllm.trained_parts import load_parts, save_parts


def wrapped(**sizes: int) -> am.GazedModel:
    base, processor = tiny_model("llava_onevision", image_size=64, **sizes)
    return am.wrap(base, "all", processor=processor, cache=False)


def lora(model: am.GazedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.family.base.named_parameters() if ".lora_" in name}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder, model = tmp_path_factory.mktemp("lora"), wrapped()
    config = switch_on(model, {**PRESETS["lora"], "tower": PartConfig("lora", 1e-4)}, AdapterConfig(rank=4))
    for tensor in lora(model).values():
        tensor.normal_()  # LoRA begins with zeros
    assert save_parts(folder, model.family, lora(model), config) == {"parts": [], "adapter": True}
    return folder, lora(model)


def test_names_are_those_of_peft_and_values_come_back(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = saved
    with safe_open(folder / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight" in names
    assert len(names) == len(expected)
    model = wrapped()
    load_parts(folder, model.family, {"adapter": True})
    found = lora(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("sizes", [{"hidden": 32}, {"layers": 2}], ids=str)
def test_another_base_is_refused_in_one_line(
    saved: tuple[Path, dict[str, torch.Tensor]], sizes: dict[str, int]
) -> None:
    with pytest.raises(am.InputError, match="fit the base model") as caught:
        load_parts(saved[0], wrapped(**sizes).family, {"adapter": True})
    assert "\n" not in str(caught.value)
