"""What a GPU runs in half precision, held against the plain path: Triton's interpreter runs the kernels on the CPU."""

from __future__ import annotations

import importlib.util
import os
import random

import pytest
import torch

if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs triton and its interpreter (see conftest.py)", allow_module_level=True)

from autogaze_mllm.common import pixels
from autogaze_mllm.common.compute import varlen
from autogaze_mllm.gaze.autogaze.decoding import device_loop, generation, gpu_decoder, kernels
from autogaze_mllm.gaze.autogaze.encoder import GazeVisionEncoder
from autogaze_mllm.vision import attention
from autogaze_mllm.vision.attention import AttentionType

from ...helpers.attention import RAGGED, Clips, inputs, plain
from ...helpers.gaze_models import clip, config_dict, make, rows_alone, same_info, same_state, stopping_requirement


def plain_varlen(q, k, v, query_starts, key_starts, key_counts, most_queries, most_keys, causal):
    """Sequence by sequence, with an explicit softmax."""
    out = torch.zeros_like(q)
    shared = q.shape[1] // k.shape[1]
    for number, count in enumerate(key_counts.tolist()):
        queries = slice(int(query_starts[number]), int(query_starts[number + 1]))
        keys = slice(int(key_starts[number]), int(key_starts[number]) + count)
        new = queries.stop - queries.start
        assert new <= most_queries and count <= most_keys
        kk, vv = (x[keys].repeat_interleave(shared, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[queries], kk) / q.shape[-1] ** 0.5
        if causal:
            last = torch.arange(new)[:, None] + count - new
            scores = scores.masked_fill(torch.arange(count)[None] > last, -torch.inf)
        out[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), vv)
    return out


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of CUDA in half precision, on the CPU in float32."""
    monkeypatch.setattr(generation, "_on_host", lambda device, capture: False)
    monkeypatch.setattr(device_loop, "_kernels", lambda device: kernels)
    monkeypatch.setattr(device_loop, "can_run", lambda like: True)
    monkeypatch.setattr(gpu_decoder, "varlen_attention", plain_varlen)


@pytest.mark.parametrize("seed", range(12))
def test_the_way_of_a_gpu_is_that_of_the_host(seed: int, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models, with and without a stop rule; a second call goes on from the state of the first."""
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    video = clip(config, rng.randint(1, 3), 2)
    need = stopping_requirement(reference, video, rng, (len(video), 2)) if seed % 2 else None
    if min(result.margin for result in rows_alone(reference, video, 0.7, need, 2)) < 1e-4:
        pytest.skip("a decision is too close for float32")
    found = model.generate(video, 0.7, need, return_state=True)
    later = model.generate(video, 0.3, need, state=found.state)
    with monkeypatch.context() as host:
        host.setattr(generation, "_on_host", lambda device, capture: True)
        wanted = model.generate(video, 0.7, need, return_state=True)
        wanted_later = model.generate(video, 0.3, need, state=wanted.state)
    same_info(found, wanted)
    same_state(found.state, wanted.state)
    same_info(later, wanted_later)


def test_choices_leave_finished_rows_alone(as_on_a_gpu: None) -> None:
    """Rows of a bucket that no clip fills, budgets that end within a step, a rule that stops at the first patch."""
    config = config_dict(random.Random(4), num_multi_token_pred=4)
    model, _ = make(config, 4)
    video = clip(config, 5, 2)
    budgets = torch.tensor([[1, 2], [4, 5], [9, 3], [6, 8], [2, 20]]).clamp(max=model.grid.size) / model.grid.size
    free = model.generate(video, 1.0)
    assert free.num_gazing_each_row.eq(model.grid.size).all()
    for row, ratios in enumerate(budgets.tolist()):
        alone = model.generate(video[[row]], ratios)
        kept = [round(ratio * model.grid.size) for ratio in ratios]
        assert alone.num_gazing_each_row[0].tolist() == kept
    at_once = model.generate(video, 0.5, 1e9)
    assert (~at_once.if_padded_gazing).sum(dim=1).eq(2).all(), "the first patch of a frame is always kept"


@pytest.mark.parametrize("seed", range(6))
def test_products_give_what_convolutions_give(seed: int) -> None:
    rng = random.Random(seed)
    model, _ = make(config_dict(rng), seed)
    encoder = model.gazing_model.vision_model
    assert isinstance(encoder, GazeVisionEncoder)
    side, patch = model.config.input_img_size, model.config.encoder.temporal_patch_size
    first, second = torch.randn(2, 2, 3 * patch, 3, side, side)
    past = later = None
    for part in (first, second):
        (wanted, past), (found, later) = encoder(part, past), encoder.channels_last(part, later)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(later, past, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("attn_type", ["block_causal", "causal", "bidirectional"])
@pytest.mark.parametrize("frame_independent", [False, True])
@pytest.mark.parametrize("clips", RAGGED.values(), ids=RAGGED)
def test_packed_attention_as_sequences(
    clips: Clips, attn_type: AttentionType, frame_independent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tower asks of the flash kernel is what its mask says."""
    monkeypatch.setattr(attention, "can_run", lambda *tensors: True)
    monkeypatch.setattr(attention, "varlen_attention", plain_varlen)
    q, k, v = inputs(clips)
    found = attention.PackedAttention(clips, attn_type, frame_independent, "sdpa", torch.device("cpu"))(q, k, v)
    torch.testing.assert_close(found, plain(clips, attn_type, frame_independent, q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "wanted"), [((20, 33), (7, 12)), ((16, 16), (40, 5)), ((9, 14), (9, 30))])
def test_resizing_by_products(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 3, *size)
    found = pixels._resize_by_products(images, *wanted)
    torch.testing.assert_close(found, pixels.resize_bicubic(images, *wanted), rtol=1e-5, atol=1e-5)


def test_a_resize_that_was_kept_can_be_learned_through() -> None:
    """Its weights are kept from the first call, which may be in inference mode; autocast rounds no pixels."""
    images = torch.randn(1, 2, 11, 17, requires_grad=True)
    with torch.inference_mode():
        pixels._resize_by_products(images, 6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = pixels._resize_by_products(images, 6, 5)
    torch.testing.assert_close(found, pixels.resize_bicubic(images, 6, 5), rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert images.grad is not None and bool(images.grad.any())


def test_the_flash_kernel_is_not_taken_where_anything_learns() -> None:
    q, k, v = torch.zeros(3, 1, 2, 32)
    assert not varlen.wants_gradient(q, k, v)
    assert varlen.wants_gradient(q, k, v.requires_grad_()), "LoRA on the values alone"
    with torch.no_grad():
        assert not varlen.wants_gradient(q, k, v)


def test_the_flash_kernel_is_not_asked_for_what_it_cannot() -> None:
    assert not varlen.can_run(torch.zeros(1, 2, 32)), "not on the CPU"
