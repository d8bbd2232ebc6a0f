"""A gazed tower that keeps everything is its base, whatever kind of vision transformer that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Idefics3VisionConfig,
    InternVLVisionConfig,
    InternVLVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMVisionConfig,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.vision import adapters
from autogaze_mllm.vision.adapters import TowerAdapter, register_tower
from autogaze_mllm.vision.tower import GazedVisionModel

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES = {"image_size": 64, "patch_size": 16}
DINO = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}


def internvl(**settings: Any) -> nn.Module:
    sizes = {"image_size": [64, 64], "patch_size": [16, 16]}
    return InternVLVisionModel(InternVLVisionConfig(**SHAPE, **sizes, **settings))


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SHAPE, **SIZES)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SHAPE, **SIZES)),
    "smolvlm": lambda: SmolVLMVisionTransformer(SmolVLMVisionConfig(**SHAPE, **SIZES)),
    "idefics3": lambda: Idefics3VisionTransformer(Idefics3VisionConfig(**SHAPE, **SIZES)),
    "internvl": lambda: internvl(),
    "internvl with norms": lambda: internvl(use_qk_norm=True, use_mean_pooling=False, norm_type="rms_norm"),
    "naflex": lambda: Siglip2VisionModel(Siglip2VisionConfig(**SHAPE, num_patches=16, patch_size=16)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO, **SIZES)),
    "dinov2 with swiglu": lambda: Dinov2Model(Dinov2Config(**DINO, **SIZES, use_swiglu_ffn=True)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, **SIZES)),
}


def tower(name: str) -> nn.Module:
    torch.manual_seed(0)
    base = TOWERS[name]().eval()
    for weight in base.parameters():  # far from the initial values, so that every part matters
        weight.data += 0.1 * torch.randn_like(weight)
    return base


def dense(base: nn.Module, pixels: torch.Tensor, **options: Any) -> Any:
    """What the base makes of pictures (n, 3, H, W), with all hidden states. NaFlex has its patches cut by its own
    processor."""
    if not isinstance(base, Siglip2VisionModel):
        return base(pixels, output_hidden_states=True, **options)
    cut = [convert_image_to_patches(picture.numpy(), 16) for picture in pixels]
    patches = torch.from_numpy(np.stack(cut))
    sizes = torch.tensor([[pixels.shape[2] // 16, pixels.shape[3] // 16]] * len(pixels))
    seen = torch.ones(patches.shape[:2], dtype=torch.long)
    return base(patches, pixel_attention_mask=seen, spatial_shapes=sizes, output_hidden_states=True)


def keep_all(pixels: torch.Tensor, gazed_tower: GazedVisionModel) -> GazedVideo:
    info = AllSelector().select(pixels, gazed_tower.grid, 1.0, None)
    return GazedVideo.from_info(pixels, info, gazed_tower.grid)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("name", TOWERS)
def test_everything_kept_is_the_base(name: str, group: int) -> None:
    base = tower(name)
    ours = GazedVisionModel(base, frame_independent=True, group=group)
    pixels = torch.randn(2, 3, 3, 64, 64)
    gazed = keep_all(pixels, ours)
    out = dense(base, pixels.flatten(0, 1))
    prefix = out.last_hidden_state.shape[1] - 16

    def grouped(states: torch.Tensor) -> torch.Tensor:
        side = 4 // group
        cells = states[:, prefix:].reshape(6, side, group, side, group, -1).transpose(2, 3)
        return cells.reshape(6 * side * side, group * group, -1)

    for layer, expected in enumerate(out.hidden_states):
        found = ours.encode(gazed, layer).reshape(-1, group * group, 32)
        if layer < 3 or name in ("clip", "siglip"):  # some give the last one after its norm
            assert torch.allclose(found, grouped(expected), atol=1e-5)
    found = ours.encode(gazed).reshape(-1, group * group, 32)
    expected = out.last_hidden_state
    if name == "clip":  # its own norm is for the class token alone
        expected = base.post_layernorm(expected) if hasattr(base, "post_layernorm") else expected
        expected = base.vision_model.post_layernorm(expected) if hasattr(base, "vision_model") else expected
    assert torch.allclose(found, grouped(expected), atol=1e-5)


@pytest.mark.parametrize(("name", "prefix"), [("clip", 1), ("dinov2", 1), ("dinov2 with registers", 5)])
def test_kept_class_tokens_stand_before_their_frames(name: str, prefix: int) -> None:
    base = tower(name)
    ours = GazedVisionModel(base, frame_independent=True, keep_prefix=True)
    pixels = torch.randn(1, 3, 3, 64, 64)
    gazed = keep_all(pixels, ours)
    expected = base(pixels[0], output_hidden_states=True).hidden_states[-2]
    assert ours.rows(gazed).tolist() == [16 + prefix] * 3
    assert torch.allclose(ours.encode(gazed, -2).view(3, 16 + prefix, 32), expected, atol=1e-5)


def test_a_frame_that_keeps_nothing_has_no_class_token() -> None:
    base = tower("clip")
    ours = GazedVisionModel(base, keep_prefix=True)
    gazed = GazedVideo(
        torch.randn(3, 3 * 16 * 16),
        torch.tensor([1, 5, 2]),
        torch.tensor([2, 0, 1]),
        torch.tensor([3]),
        ours.grid,
        torch.zeros(3),
    )
    assert ours.rows(gazed).tolist() == [3, 0, 2]
    assert ours.encode(gazed).shape == (5, 32)


@pytest.mark.parametrize("size", [(96, 160), (32, 48)])
@pytest.mark.parametrize("name", ["siglip", "clip", "smolvlm", "internvl", "naflex", "dinov2", "dinov2 with registers"])
def test_other_sizes_are_taken_by_the_towers_own_rule(name: str, size: tuple[int, int]) -> None:
    base = tower(name)
    ours = GazedVisionModel(base, scales=[size], frame_independent=True)
    pixels = torch.randn(1, 2, 3, *size)
    gazed = keep_all(pixels, ours)
    options = {"interpolate_pos_encoding": True} if name in ("siglip", "clip") else {}
    out = dense(base, pixels[0], **options)
    prefix = out.hidden_states[1].shape[1] - size[0] * size[1] // 256
    assert torch.allclose(ours.encode(gazed, 2), out.hidden_states[2][:, prefix:].flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_weights_may_be_kept_elsewhere(name: str) -> None:
    base = tower(name)
    ours = GazedVisionModel(base, "32+64", frame_independent=True)
    gazed = keep_all(torch.randn(1, 2, 3, 64, 64), ours)
    with torch.no_grad():
        before = ours.encode(gazed)
        cpu_offload(base, execution_device=torch.device("cpu"))
        assert all(weight.is_meta for weight in base.parameters())
        assert torch.equal(ours.encode(gazed), before)


@pytest.mark.parametrize("name", ["siglip", "naflex"])
def test_what_is_pooled_is_the_base_s(name: str) -> None:
    base = tower(name)
    ours = GazedVisionModel(base, frame_independent=True)
    pixels = torch.randn(2, 1, 3, 64, 64)
    info = AllSelector().select(pixels, ours.grid, 1.0, None)
    pooled = ours(pixels, info).pooler_output
    assert torch.allclose(pooled, dense(base, pixels[:, 0]).pooler_output, atol=1e-5)


@pytest.mark.parametrize("attn_type", ["block_causal", "causal", "bidirectional"])
def test_class_tokens_see_what_their_frame_may_see(attn_type: Any) -> None:
    """Every backend gives what the plain one gives, and gradients reach the class token."""
    base = tower("clip")
    pixels = torch.randn(2, 3, 3, 64, 64)
    plain = GazedVisionModel(base, "32+64", attn_type, backend="eager")
    info = RandomSelector().select(pixels.sigmoid(), plain.grid, 0.4, None)
    gazed = GazedVideo.from_info(pixels, info, plain.grid)
    assert torch.allclose(GazedVisionModel(base, "32+64", attn_type).encode(gazed), plain.encode(gazed), atol=1e-5)
    plain.encode(gazed).square().sum().backward()
    core = plain.core
    assert float(core.embeddings.class_embedding.grad.abs().sum()) > 0


def test_what_cannot_be_gazed_is_refused() -> None:
    with pytest.raises(InputError, match="14 x 16 pixels cannot be gazed"):
        GazedVisionModel(InternVLVisionModel(InternVLVisionConfig(**SHAPE, image_size=[112, 112], patch_size=[14, 16])))
    with pytest.raises(InputError, match="class tokens cannot be kept"):
        GazedVisionModel(tower("clip"), keep_prefix=True, group=2)


def test_models_around_a_tower_are_refused_by_their_name() -> None:
    with pytest.raises(InputError, match="the vision tower is a dinov2; those that can be gazed: siglip_vision_model"):
        GazedVisionModel(Dinov2ForImageClassification(Dinov2Config(**DINO, **SIZES)))


class PlainConfig(SiglipVisionConfig):
    model_type = "plain_vision"


class PlainTower(SiglipVisionModel):
    """SigLIP under another name, its layers in another place."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__(config)
        core = getattr(self, "vision_model", self)
        core.blocks = core.encoder.layers
        del core.encoder


class PlainAdapter(TowerAdapter):
    kinds = ("plain_vision",)

    @classmethod
    def fits(cls, core: Any) -> bool:
        return hasattr(core, "blocks")

    @property
    def layers(self) -> Any:
        return self.core.blocks


def test_a_tower_of_ones_own_is_gazed_by_its_registered_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS", list(adapters.ADAPTERS))
    own = PlainTower(PlainConfig(**SHAPE, **SIZES)).eval()
    with pytest.raises(InputError, match="the vision tower is a plain_vision"):
        GazedVisionModel(own)
    assert register_tower(PlainAdapter) is PlainAdapter
    assert register_tower(PlainAdapter) is PlainAdapter  # a module that is imported again
    base = SiglipVisionModel(SiglipVisionConfig(**SHAPE, **SIZES)).eval()
    base.load_state_dict(
        {name.replace("blocks.", "encoder.layers."): value for name, value in own.state_dict().items()}
    )
    pixels = torch.randn(1, 3, 3, 64, 64)
    ours = GazedVisionModel(own, "32+64")
    expected = GazedVisionModel(base, "32+64")
    gazed = keep_all(pixels, expected)
    assert torch.equal(ours.encode(gazed), expected.encode(gazed))
    assert "plain_vision" in adapters.tower_kinds(in_models=True)


def test_what_is_no_adapter_of_a_tower_of_its_own_is_refused() -> None:
    class Nameless(TowerAdapter):
        pass

    class Taken(TowerAdapter):
        kinds = ("my_vision", "clip_vision_model")

    class Text(TowerAdapter):
        kinds: Any = "my_vision"

    before = list(adapters.ADAPTERS)
    for adapter, said in (
        (PlainTower, "is no tower adapter"),
        ("clip", "is no tower adapter"),
        (Nameless, "Nameless does not say its kinds"),
        (Text, "Text does not say its kinds"),
        (Taken, "towers of model_type clip_vision_model have an adapter already"),
    ):
        with pytest.raises(InputError, match=said):
            register_tower(adapter)  # type: ignore[arg-type]
    assert before == adapters.ADAPTERS


def test_an_adapter_that_is_wrong_about_its_tower_fails_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "ADAPTERS", list(adapters.ADAPTERS))
    register_tower(PlainAdapter)
    own = PlainTower(PlainConfig(**SHAPE, **SIZES))
    core: Any = getattr(own, "vision_model", own)
    del core.embeddings
    with pytest.raises(AttributeError, match="no attribute 'embeddings'"):
        GazedVisionModel(own)
