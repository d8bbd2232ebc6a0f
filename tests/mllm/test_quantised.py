"""Quantised bases: looking at their weights changes nothing, and what is seen of a video is kept as with any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model


class PackedLinear(nn.Module):
    """As bitsandbytes has them: integer weights, which `state_dict` packs into another form, and which the first call
    packs as it likes. `packings` counts."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.scale = float(plain.weight.detach().abs().max()) / 127
        whole = (plain.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = plain.bias
        self.called, self.packings = False, 0

    def _save_to_state_dict(self, *given: Any) -> None:
        self.packings += 1
        self.weight.data = self.weight.data.flip(0)  # from now on, wrong
        super()._save_to_state_dict(*given)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.called:
            self.called = True
            self.weight.data = self.weight.data.t().contiguous()
        return nn.functional.linear(x, self.weight.t().to(x.dtype) * self.scale, self.bias)


def quantise(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child))


def simulated(folder: Path) -> am.GazedModel:
    base, processor = tiny_model("llava_onevision", image_size=64)
    quantise(base)
    return am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=folder)


def quantised_by(bits: int, folder: Path, cache: Path) -> am.GazedModel:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    if not folder.exists():
        base, processor = tiny_model("llava_onevision", image_size=64)
        base.save_pretrained(folder)
        processor.save_pretrained(folder)
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    return am.wrap(model, "pixel-diff", frames=3, cache=cache)


def check_kept_once(first: am.GazedModel, second: am.GazedModel, clip: Path) -> None:
    """Seen once, by whichever of two models of the same weights; and the answers are those without a cache."""
    before = first.family.vision_state()
    answer = first.ask(clip, "What moves?", max_new_tokens=6)
    assert "tower" in answer.stats["seconds"] and first.family.vision_state() == before
    for model in (first, second):
        again = model.ask(clip, "What moves?", max_new_tokens=6)
        assert again == answer
        assert again.stats["from_cache"] == 1 and set(again.stats["seconds"]) == {"cache", "llm"}
    second.cache = None
    assert second.ask(clip, "What moves?", max_new_tokens=6) == answer


def test_weights_are_looked_at_without_touching_them(clip, tmp_path):
    first, second = simulated(tmp_path), simulated(tmp_path)
    check_kept_once(first, second, clip)
    layers = [part for part in (*first.base.modules(), *second.base.modules()) if isinstance(part, PackedLinear)]
    assert len(layers) > 20 and not any(part.packings for part in layers)


def test_other_weights_are_another_state(tmp_path):
    model = simulated(tmp_path)
    before = model.family.vision_state()
    block = model.base.model.vision_tower.encoder.layers[0].self_attn
    kept = block.q_proj
    block.q_proj = PackedLinear(nn.Linear(64, 64))  # as merging an adapter does
    assert model.family.vision_state() != before
    block.q_proj = kept
    assert model.family.vision_state() == before
    with torch.no_grad():
        model.base.model.image_newline += 1
    assert model.family.vision_state() != before


def test_weights_of_a_kind_that_nobody_can_read_are_not_kept(clip, tmp_path):
    class Closed(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.flatten:
                raise NotImplementedError("no values to read")
            return super().__torch_function__(function, types, args, kwargs or {})

    base, processor = tiny_model("llava_onevision", image_size=64)
    base.model.multi_modal_projector.odd = nn.Buffer(torch.zeros(3).as_subclass(Closed))
    model = am.wrap(base, "pixel-diff", processor=processor, frames=3, cache=tmp_path)
    assert model.family.vision_state() is None
    answers = [model.ask(clip, "What moves?", max_new_tokens=3) for _ in range(2)]
    assert answers[0] == answers[1]
    assert "tower" in answers[1].stats["seconds"] and "gaze" not in answers[1].stats["seconds"]  # patches are kept


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits, clip, tmp_path):
    made = [quantised_by(bits, tmp_path / "base", tmp_path / "cache") for _ in range(2)]
    assert any(not part.is_floating_point() for part in made[0].base.parameters())
    check_kept_once(made[0], made[1], clip)
    assert made[0].is_quantized and made[0].dtype.is_floating_point
