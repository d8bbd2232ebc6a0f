"""The gazed SigLIP tower."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.vision.tower import GazedSiglipVisionModel

from ..helpers.golden_data import assert_close, load, names, part, video, weights
from ..helpers.selections import as_info, random_kept
from ..helpers.towers import LAYERS, SCALES, gazed, pixels, siglip

# Against results of the published code

GOLDEN = [(name, case) for name in names("siglip_") for case in load(name)[0]["cases"]]


@pytest.mark.parametrize(("name", "case"), GOLDEN, ids=[f"{name}-{case['name']}" for name, case in GOLDEN])
def test_golden(name: str, case: dict[str, Any]) -> None:
    about, tensors = load(name)
    settings = {key: value for key, value in about["config"].items() if key not in ("scales", "max_embed_batch_size")}
    base = SiglipVisionModel(SiglipVisionConfig(**settings)).eval()
    base.load_state_dict(part(weights(name), "vision_model."))
    backend = "eager" if case["impl"] == "eager" else "sdpa"
    tower = GazedSiglipVisionModel(
        base, about["config"]["scales"], case["attn_type"], case.get("indep", False), backend
    )
    info = part(tensors, "inputs/") | {"gazing_pos": tensors["inputs/gazing_pos"].long()}
    with torch.no_grad():
        output = tower(video(name), info, output_hidden_states=True)
    expected, real = part(tensors, f"{case['name']}/"), info["if_padded_gazing"] == 0
    assert_close(output.last_hidden_state[real], expected["last_hidden_state"][real])
    assert len(output.hidden_states) == len(expected["hidden_states"])
    for state, wanted in zip(output.hidden_states, expected["hidden_states"], strict=True):
        assert_close(state[real], wanted[real])


# Against the base model


@pytest.mark.parametrize("attn_type", ["bidirectional", "block_causal"])
def test_all_patches_of_one_scale_are_the_base_model(attn_type: Any) -> None:
    base = siglip()
    tower = GazedSiglipVisionModel(base, attn_type=attn_type, frame_independent=True)
    frames = pixels(2, 3, 64, 64)
    info = AllSelector().select(frames, tower.grid, 1.0, None)
    packed = GazedVideo.from_info(frames, info, tower.grid)
    with torch.no_grad():
        dense = base(frames.flatten(0, 1), output_hidden_states=True)
        output = tower(frames, info)
        assert_close(tower.encode(packed), dense.last_hidden_state.flatten(0, 1))
        assert_close(output.last_hidden_state.flatten(0, 1), dense.last_hidden_state.flatten(0, 1))
        for layer in (-1, -2, 0, 1, LAYERS):
            assert_close(tower.encode(packed, layer), dense.hidden_states[layer].flatten(0, 1))
        one_frame = AllSelector().select(frames[:, :1], tower.grid, 1.0, None)
        assert_close(tower(frames[:, :1], one_frame).pooler_output, base(frames[:, 0]).pooler_output)


def test_weights_are_shared() -> None:
    base = siglip()
    tower = GazedSiglipVisionModel(base, SCALES)
    assert {weight.data_ptr() for weight in tower.parameters()} == {weight.data_ptr() for weight in base.parameters()}
    assert len(list(tower.parameters())) == len(list(base.parameters()))
    assert list(tower.buffers()) == list(base.buffers()) or len(list(tower.buffers())) == len(list(base.buffers()))

    clip = gazed(tower)
    with torch.no_grad():
        before = tower.encode(clip)
        base.encoder.layers[1].mlp.fc1.bias += 1
        assert not torch.allclose(tower.encode(clip), before)

    tower.encode(clip).square().sum().backward()
    without = {name for name, weight in base.named_parameters() if weight.grad is None}
    assert all(name.startswith("head.") for name in without)


def test_lora_in_the_base_is_used() -> None:
    base = siglip()
    tower = GazedSiglipVisionModel(base, frame_independent=True)
    frames = pixels(1, 2, 64, 64)
    info = AllSelector().select(frames, tower.grid, 1.0, None)
    with torch.no_grad():
        before = tower(frames, info).last_hidden_state
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "fc2"], init_lora_weights=False), base)
        after = tower(frames, info).last_hidden_state
        assert not torch.allclose(before, after, atol=1e-2)
        assert_close(after.flatten(0, 1), base(frames[0]).last_hidden_state.flatten(0, 1)[None].flatten(0, 1))


# Forms of the input


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("attn_type", ["block_causal", "causal", "bidirectional"])
@pytest.mark.parametrize("frame_independent", [False, True])
def test_a_clip_alone_gives_the_same(attn_type: Any, frame_independent: bool, backend: Any) -> None:
    """In a batch of seven, packed or in the interchange form, and with more padding."""
    tower = GazedSiglipVisionModel(siglip(), SCALES, attn_type, frame_independent, backend)
    kept, frames = random_kept(tower.grid, 7, 4, 20, seed=3), pixels(7, 4)
    kept[5] = [[], [], [], []]
    kept[6] = [list(range(tower.grid.size)), [], [0], []]
    with torch.no_grad():
        parts = [
            GazedVideo.from_info(frames[row : row + 1], as_info(tower.grid, kept[row : row + 1]), tower.grid)
            for row in range(7)
        ]
        alone = [tower.encode(clip) for clip in parts]
        assert torch.allclose(tower.encode(GazedVideo.concatenate(parts)), torch.cat(alone), rtol=1e-5, atol=2e-6)
        for padding in (0, 5):
            info = as_info(tower.grid, kept, padding)
            output = tower(frames, info)
            for row, features in enumerate(alone):
                real = ~info["if_padded_gazing"][row]
                assert torch.allclose(output.last_hidden_state[row][real], features, rtol=1e-5, atol=2e-6)
                assert (output.last_hidden_state[row][~real] == 0).all()


def test_pooling_does_not_see_the_padding() -> None:
    base = siglip()
    tower = GazedSiglipVisionModel(base, SCALES)
    kept, frames = random_kept(tower.grid, 4, 3, 12), pixels(4, 3)
    kept[2] = [[], [], []]
    with torch.no_grad():
        outputs = [tower(frames, as_info(tower.grid, kept, padding)) for padding in (0, 1, 30)]
        for output in outputs[1:]:
            assert torch.allclose(output.pooler_output, outputs[0].pooler_output, rtol=1e-5, atol=1e-6)
        real = ~as_info(tower.grid, kept)["if_padded_gazing"]
        for row in (0, 1, 3):
            wanted = base.head(outputs[0].last_hidden_state[row][real[row]][None])[0]
            assert torch.allclose(outputs[0].pooler_output[row], wanted, rtol=1e-5, atol=1e-6)
        assert (outputs[0].pooler_output[2] == 0).all()


def test_base_without_a_pooling_head() -> None:
    tower = GazedSiglipVisionModel(siglip(vision_use_head=False), SCALES)
    info = as_info(tower.grid, random_kept(tower.grid, 2, 3, 5))
    assert tower(pixels(2, 3), info).pooler_output is None


def test_video_of_any_size() -> None:
    """Every scale is made from the frame as it comes; the aspect is not kept."""
    tower = GazedSiglipVisionModel(siglip(), SCALES)
    kept, frames = random_kept(tower.grid, 1, 2, 10), pixels(1, 2, 50, 130)
    with torch.no_grad():
        output = tower(frames, as_info(tower.grid, kept)).last_hidden_state
    assert output.shape == (1, sum(map(len, kept[0])), 32)
    assert output.isfinite().all()


def test_order_of_the_patches_is_kept() -> None:
    tower = GazedSiglipVisionModel(siglip(), SCALES)
    frames = pixels(1, 1)
    with torch.no_grad():
        one = tower(frames, as_info(tower.grid, [[[5, 30, 2, 11]]])).last_hidden_state[0]
        other = tower(frames, as_info(tower.grid, [[[11, 2, 5, 30]]])).last_hidden_state[0]
    assert torch.allclose(one, other[[2, 3, 1, 0]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one[0], one[1], atol=1e-2)


@pytest.mark.parametrize("attn_type", ["block_causal", "causal", "bidirectional"])
def test_what_a_patch_sees(attn_type: Any) -> None:
    """Changing the last frame changes earlier features only when attention is bidirectional."""
    kept = [[[1, 2], [3, 40], [4, 9]]]
    frames = pixels(1, 3)
    changed = torch.cat([frames[:, :2], pixels(1, 1, seed=1)], dim=1)
    for frame_independent in (False, True):
        tower = GazedSiglipVisionModel(siglip(), SCALES, attn_type, frame_independent)
        info = as_info(tower.grid, kept)
        with torch.no_grad():
            one, other = (tower(x, info).last_hidden_state[0] for x in (frames, changed))
        same = (one - other).abs().amax(dim=1) < 1e-6
        sees_later = attn_type == "bidirectional" and not frame_independent
        assert same.tolist() == [not sees_later] * 4 + [False] * 2


def test_hidden_layers() -> None:
    tower = GazedSiglipVisionModel(siglip(), SCALES)
    kept, frames = [random_kept(tower.grid, 1, 3, 8)[0]], pixels(1, 3)
    info = as_info(tower.grid, kept)
    clip = GazedVideo.from_info(frames, info, tower.grid)
    with torch.no_grad():
        output = tower(frames, info, output_hidden_states=True)
        assert tower(frames, info).hidden_states is None
        assert len(output.hidden_states) == LAYERS + 1
        for layer in range(-LAYERS - 1, LAYERS + 1):
            assert torch.allclose(tower.encode(clip, layer), output.hidden_states[layer][0], rtol=1e-5, atol=1e-6)
        assert torch.allclose(tower.encode(clip, 0), tower.embed(clip))
        assert torch.allclose(tower.encode(clip), output.last_hidden_state[0], rtol=1e-5, atol=1e-6)
        for layer in (LAYERS + 1, -LAYERS - 2):
            with pytest.raises(InputError, match=f"hidden layer {layer} does not exist: the tower has {LAYERS} layers"):
                tower.encode(clip, layer)


def test_layers_after_the_wanted_one_are_not_computed() -> None:
    tower = GazedSiglipVisionModel(siglip(), SCALES)
    clip, runs = gazed(tower), [0] * LAYERS
    for number, layer in enumerate(tower.core.encoder.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: runs.__setitem__(number, runs[number] + 1))
    with torch.no_grad():
        tower.encode(clip, -2)
    assert runs == [1] * (LAYERS - 1) + [0]


def test_nothing_kept() -> None:
    tower = GazedSiglipVisionModel(siglip(), SCALES)
    info = as_info(tower.grid, [[[], []]])
    assert tower.encode(GazedVideo.from_info(pixels(1, 2), info, tower.grid)).shape == (0, 32)
    assert tower(pixels(1, 2), info).last_hidden_state.shape == (1, 0, 32)


# Scales


def test_scales() -> None:
    base = siglip()
    assert GazedSiglipVisionModel(base).grid == PatchGrid.of("64", 16)
    assert GazedSiglipVisionModel(base, 96).grid == GazedSiglipVisionModel(base, "96").grid == PatchGrid.of([96], 16)
    assert GazedSiglipVisionModel(base, [(32, 64), 96]).grid.counts == (8, 36)
    assert GazedSiglipVisionModel(siglip(patch_size=8, image_size=48), "16+24+48").grid.counts == (4, 9, 36)


def test_position_embeddings_at_other_scales() -> None:
    """As the base model resizes them; the table itself where the size is its own."""
    base = siglip()
    frames = pixels(1, 1, 96, 160)
    tower = GazedSiglipVisionModel(base, [(96, 160)], frame_independent=True)
    info = AllSelector().select(frames, tower.grid, 1.0, None)
    with torch.no_grad():
        dense = base(frames[0], interpolate_pos_encoding=True).last_hidden_state
        assert_close(tower(frames, info).last_hidden_state, dense)
    table = GazedSiglipVisionModel(base, "32+64").position_table()
    assert torch.equal(table[4:], base.embeddings.position_embedding.weight)


# Training and precision


def gradients(base: SiglipVisionModel) -> dict[str, torch.Tensor]:
    tower = GazedSiglipVisionModel(base, SCALES).train()
    base.zero_grad()
    tower.encode(gazed(tower, 2)).square().sum().backward()
    return {name: weight.grad.clone() for name, weight in base.named_parameters() if weight.grad is not None}


class SavedNumbers(torch.autograd.graph.saved_tensors_hooks):
    """Counts the numbers that a forward pass keeps for its backward pass."""

    def __init__(self) -> None:
        self.count = 0
        super().__init__(self.pack, lambda tensor: tensor)

    def __enter__(self) -> SavedNumbers:
        super().__enter__()
        return self

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count += tensor.numel()
        return tensor


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("switch", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
def test_gradient_checkpointing(switch: str) -> None:
    """Switched on at the base model, by either name that transformers has for it."""
    base = siglip()
    if not hasattr(base, switch):
        pytest.skip(f"transformers has no {switch}")
    wanted = gradients(base)
    with SavedNumbers() as everything:
        tower = GazedSiglipVisionModel(base, SCALES).train()
        tower.encode(gazed(tower, 2))
    getattr(base, switch)()
    with SavedNumbers() as less:
        tower.encode(gazed(tower, 2))
    assert less.count < everything.count / 2
    found = gradients(base)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_half_precision() -> None:
    base = siglip()
    tower = GazedSiglipVisionModel(base, SCALES)
    clip = gazed(tower, 2)
    with torch.no_grad():
        wanted = tower.encode(clip)
        half = GazedSiglipVisionModel(copy.deepcopy(base).bfloat16(), SCALES)
        found = half.encode(clip)
        assert (half.dtype, found.dtype) == (torch.bfloat16, torch.bfloat16)
        assert nn.functional.cosine_similarity(found.float(), wanted).min() > 0.99
        assert torch.equal(half.encode(clip.to(dtype=torch.bfloat16)), found)


# What is refused


def test_another_grid_is_refused() -> None:
    tower, other = GazedSiglipVisionModel(siglip(), SCALES), PatchGrid.of("32+64", 16)
    clip = GazedVideo.from_info(pixels(1, 2), as_info(other, [[[1], [2]]]), other)
    for run in (
        lambda: tower.encode(clip),
        lambda: tower(pixels(1, 2), AllSelector().select(pixels(1, 2), other, 1.0, None)),
        lambda: tower(pixels(1, 2), as_info(other, [[[1], [2]]]) | {"num_vision_tokens_each_frame": other.size}),
    ):
        with pytest.raises(InputError, match="grid mismatch"):
            run()
    with pytest.raises(InputError, match=r"32\+48\+96 at patch 16.*32\+64 at patch 16"):
        tower.encode(clip)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ViTModel(ViTConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)),
        lambda: nn.Linear(3, 3),
    ],
    ids=["another kind", "no tower"],
)
def test_another_tower_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"the vision tower is a .*; those that can be gazed"):
        GazedSiglipVisionModel(make())


def test_bad_settings_are_refused_at_once() -> None:
    for settings, named in (
        ({"attn_type": "diagonal"}, "diagonal"),
        ({"backend": "fast"}, "fast"),
        ({"scales": "8+64"}, "8x8"),
        ({"scales": "big"}, "big"),
    ):
        with pytest.raises(InputError, match=named):
            GazedSiglipVisionModel(siglip(), **settings)  # type: ignore[arg-type]


def test_encoding_in_groups_of_clips_changes_nothing(monkeypatch):  # type: ignore[no-untyped-def]
    import autogaze_mllm.vision.tower as module

    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
        )
    ).eval()
    tower = GazedSiglipVisionModel(siglip, "32+64")
    pixels = torch.randn(5, 3, 3, 64, 64)
    info = RandomSelector().select(pixels.sigmoid(), tower.grid, 0.4, None)
    gazed = GazedVideo.from_info(pixels, info, tower.grid)
    whole = [tower.encode(gazed), tower.encode(gazed, layer=-2)]
    monkeypatch.setattr(module, "ENCODE_PATCHES", 30)
    for expected, layer in zip(whole, (None, -2), strict=True):
        assert torch.allclose(tower.encode(gazed, layer=layer), expected, atol=1e-5)
