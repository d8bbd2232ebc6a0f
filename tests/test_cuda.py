"""What must hold on an accelerator, against the CPU and against results of the published code.

`pytest -m cuda` runs these where there is CUDA; AUTOGAZE_TEST_DEVICE=cpu runs them on the CPU, which proves the tests.
float32 means float32 here: cuDNN's TF32 convolutions, torch's default, are switched off.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

import autogaze_mllm as am
from autogaze_mllm.gaze.autogaze.denoising import denoised
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.selectors.base import ending_at
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.vision.tower import GazedSiglipVisionModel

from .helpers.gaze_models import clip, config_dict, make, same_info, same_state, stopping_requirement
from .helpers.golden_data import (
    Tensors,
    assert_close,
    call_arguments,
    cases,
    gaze_model,
    independent_rows,
    label,
    load,
    names,
    part,
    video,
    weights,
)
from .helpers.selections import as_info, random_kept

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    place = torch.device(os.environ.get("AUTOGAZE_TEST_DEVICE", "cuda"))
    if place.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield place
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def bundled(device: torch.device, dtype: torch.dtype = torch.float32) -> am.AutoGaze:
    return am.AutoGaze.from_pretrained("bundled").eval().to(device, dtype)


def scenes(rows: int, frames: int = 4, seed: int = 0) -> torch.Tensor:
    """Clips (rows, frames, 3, 224, 224), preprocessed: smooth pictures in which squares move."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 1, 3, 14, 14, generator=generator).expand(-1, frames, -1, -1, -1)
    pixels = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=(224, 224), mode="bilinear")
    pixels = pixels.unflatten(0, (rows, frames)).clone()
    for row in range(rows):
        for frame in range(frames):
            x = 10 + 37 * row % 150 + 16 * frame
            pixels[row, frame, :, 60 + 8 * row % 100 :, x : x + 24][:, :24] = torch.tensor([0.9, 0.2, 0.1])[
                :, None, None
            ]
    return (pixels - 0.5) / 0.25


# The gaze model


@pytest.mark.parametrize(("name", "case"), cases("gaze_", "call", "default"), ids=label)
def test_golden_selection(name: str, case: dict, device: torch.device) -> None:
    model = gaze_model(name).to(device)
    info = model.generate(video(name, case["video"]).to(device), **call_arguments(case))
    published = part(load(name)[1], f"{case['name']}/")
    expected = independent_rows(name, case["name"]) or published
    for key in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame"):
        assert info[key].cpu().tolist() == expected[key].to(info[key].dtype).tolist(), key
    if "log_action_probs" in published:
        given: Tensors = {key: value.to(device) for key, value in published.items()}
        log_probs, losses = model.score(video(name, case["video"]).to(device), given)
        assert_close(log_probs.cpu(), published["log_action_probs"], 1e-4, "log_action_probs")
        assert_close(losses.cpu(), published["task_loss_prediction"], 1e-4, "task_loss_prediction")


@pytest.mark.parametrize("seed", range(6))
def test_as_on_the_cpu_with_and_without_graphs(seed: int, device: torch.device) -> None:
    """Random models of all kinds, with and without a stop rule, in one go and streamed."""
    rng = random.Random(seed)
    config = config_dict(rng)
    model, reference = make(config, seed)
    pixels = clip(config, rng.choice([1, 3, 5]), 4)
    need = stopping_requirement(reference, pixels, rng, (len(pixels), 4)) if seed % 2 else None
    wanted = model.generate(pixels, 0.8, need, return_state=True)
    away = copy.deepcopy(model).to(device)
    there = None if need is None else need.to(device)
    for capture in ("off", None, None, None):  # the default records at the second call and replays at the third
        found = away.generate(pixels.to(device), 0.8, there, return_state=True, capture=capture)  # type: ignore[arg-type]
        same_info(wanted.to("cpu"), found.to("cpu"))
    steps = wanted.num_gazing_each_frame.shape[0]
    frames = pixels.shape[1] // steps
    state, parts = None, []
    for number, piece in enumerate(pixels.to(device).split(2 * frames, dim=1)):
        rows = None if there is None else there[:, 2 * number : 2 * number + 2]
        parts.append(away.generate(piece, 0.8, rows, state=state, return_state=True))
        state = parts[-1].state
    assert state is not None and wanted.state is not None
    same_state(wanted.state, state.to("cpu"), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [None, 0.3])
def test_graphs_change_nothing_at_full_size(dtype: torch.dtype, loss: float | None, device: torch.device) -> None:
    model, pixels = bundled(device, dtype), scenes(5).to(device)
    wanted = model.generate(pixels, 0.2, loss, capture="off")
    for _ in range(4):
        same_info(model.generate(pixels, 0.2, loss), wanted)
    fewer = model.generate(pixels[:2], 0.2, loss)
    same_info(fewer, model.generate(pixels[:2], 0.2, loss, capture="off"))


@pytest.mark.parametrize("loss", [None, 0.3])
def test_half_precision_scores_as_float_does(loss: float | None, device: torch.device) -> None:
    """What bfloat16 chooses is as likely to float32 as what float32 chooses, in one go and streamed."""
    model, half, pixels = bundled(device), bundled(device, torch.bfloat16), scenes(4).to(device)
    wanted, found = model.generate(pixels, 0.1, loss), half.generate(pixels, 0.1, loss)
    scores = [model.score(pixels, info)[0][~info.if_padded_gazing].mean().item() for info in (wanted, found)]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
    kept = [set(info.gazing_pos[0][~info.if_padded_gazing[0]].tolist()) for info in (wanted, found)]
    assert len(kept[0] & kept[1]) >= 0.9 * len(kept[0])
    first = half.generate(pixels[:, :2], 0.1, loss, return_state=True)
    second = half.generate(pixels[:, 2:], 0.1, loss, state=first.state)
    parts = [info.gazing_pos[0][~info.if_padded_gazing[0]] for info in (first, second)]
    streamed = torch.cat([parts[0], parts[1] + 2 * model.grid.size]).tolist()
    assert len(kept[1] & set(streamed)) >= 0.98 * len(kept[1])


def test_trained_weights_see_what_they_see_on_the_cpu(device: torch.device) -> None:
    pixels = scenes(3)
    here, there = bundled(torch.device("cpu")), bundled(device)
    wanted = here.generate(pixels, 0.1, 0.3)
    mine, theirs = here.score(pixels, wanted), there.score(pixels.to(device), wanted.to(device))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-4)
    found = there.generate(pixels.to(device), 0.1, 0.3).to("cpu")
    kept = [set(info.gazing_pos[~info.if_padded_gazing].tolist()) for info in (wanted, found)]
    assert len(kept[0] & kept[1]) >= 0.98 * len(kept[0]), "a choice between equals may fall otherwise, few do"


@pytest.mark.parametrize(("loss", "gain"), [(None, None), (0.2, None), (None, 0.001), (0.4, 0.001)])
def test_guided_as_on_the_cpu(loss: float | None, gain: float | None, device: torch.device) -> None:
    """With and without graphs, in one go and streamed; so does greedy search."""
    here, there = (ending_at(gain, bundled(torch.device(place))) for place in ("cpu", str(device)))
    assert here.config.reward_guidance
    pixels = scenes(3)
    task = MosaicTask(here.grid, here.processor)
    wanted = here.generate(pixels, 0.2, loss, return_state=True)
    off = there.generate(pixels.to(device), 0.2, loss, return_state=True, capture="off")
    for _ in range(3):  # recorded at the second call, replayed at the third
        same_info(there.generate(pixels.to(device), 0.2, loss), off)
    kept = [set(info.gazing_pos[~info.if_padded_gazing].tolist()) for info in (wanted, off)]
    assert len(kept[0] & kept[1]) >= 0.97 * len(kept[0]), "a choice between equals may fall otherwise, few do"
    torch.testing.assert_close(task(pixels, off.to("cpu")).loss, task(pixels, wanted).loss, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(off.state.canvas.cpu(), wanted.state.canvas, rtol=1e-3, atol=0.05)
    first = there.generate(pixels[:, :2].to(device), 0.2, loss, return_state=True)
    second = there.generate(pixels[:, 2:].to(device), 0.2, loss, state=first.state)
    counts = [int((~info.if_padded_gazing).sum()) for info in (first, second, off)]
    assert abs(counts[0] + counts[1] - counts[2]) <= 0.01 * counts[2]
    frames = here.processor.normalize(torch.zeros(3, 1, 1)), here.processor.normalize(torch.ones(3, 1, 1))
    shown = ((pixels - frames[0]) / (frames[1] - frames[0])).clamp(0, 1)
    greedy = am.GreedySelector(gain)
    found = [greedy.select(shown.to(place), here.grid, 0.2, loss).to("cpu") for place in ("cpu", device)]
    kept = [set(info.gazing_pos[~info.if_padded_gazing].tolist()) for info in found]
    assert len(kept[0] & kept[1]) >= 0.97 * len(kept[0])


def test_a_step_asks_the_device_nothing(device: torch.device) -> None:
    """Without a stop rule, and not guided, a call is one stream of work: nothing waits for the device until the result
    is looked at."""
    if device.type != "cuda":
        pytest.skip("only CUDA can tell")
    model, pixels = bundled(device), scenes(3).to(device)
    for _ in range(3):
        model.generate(pixels, 0.2, reward_guidance=0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.generate(pixels, 0.2, reward_guidance=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_clip_is_denoised_on_the_device(device: torch.device) -> None:
    clean = scenes(2, frames=6) * 0.25 + 0.5
    noise = 0.06 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    seen = (clean + noise).clamp(0, 1)
    there = seen.to(device)
    found = denoised(there)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")  # nothing waits for the device
        try:
            found = denoised(there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(found.cpu(), denoised(seen), atol=1e-3)
    assert (found.cpu() - clean).square().mean() < 0.5 * (seen - clean).square().mean()


def test_a_thousand_clips_are_denoised_on_the_device(device: torch.device) -> None:
    """Frames of so many lie further apart in memory than some kernels can count."""
    side = 224 if device.type == "cuda" and torch.cuda.mem_get_info()[0] > 40 << 30 else 32
    few = torch.rand(8, 16, 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    many = few.to(device).repeat(120, 1, 1, 1, 1)
    assert torch.allclose(denoised(many)[-8:], denoised(few.to(device)), atol=1e-6)


def test_sampling_and_gradients(device: torch.device) -> None:
    model, pixels = bundled(device), scenes(2).to(device)
    info = model.generate(pixels, 0.05, do_sample=True, temperature=1.5)
    log_probs, _ = model.score(pixels, info, match_generation=True, temperature=1.5)
    log_probs[~info.if_padded_gazing].sum().backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert grads and all(bool(grad.isfinite().all()) for grad in grads) and any(bool(grad.any()) for grad in grads)


# Towers

SIGLIP = [(name, case) for name in names("siglip_") for case in load(name)[0]["cases"]]


@pytest.mark.parametrize(("name", "case"), SIGLIP, ids=[f"{name}-{case['name']}" for name, case in SIGLIP])
def test_golden_tower(name: str, case: dict, device: torch.device) -> None:
    about, tensors = load(name)
    settings = {key: value for key, value in about["config"].items() if key not in ("scales", "max_embed_batch_size")}
    base = SiglipVisionModel(SiglipVisionConfig(**settings)).eval()
    base.load_state_dict(part(weights(name), "vision_model."))
    tower = GazedSiglipVisionModel(
        base.to(device), about["config"]["scales"], case["attn_type"], case.get("indep", False), "sdpa"
    )
    info = part(tensors, "inputs/") | {"gazing_pos": tensors["inputs/gazing_pos"].long()}
    with torch.no_grad():
        found = tower(video(name).to(device), {key: value.to(device) for key, value in info.items()})
    expected = part(tensors, f"{case['name']}/")["last_hidden_state"]
    real = ~info["if_padded_gazing"].bool()
    assert_close(found.last_hidden_state.cpu()[real], expected[real], 1e-4, "last_hidden_state")


@pytest.mark.parametrize("backend", ["sdpa", "half sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("attn_type", ["block_causal", "causal", "bidirectional"])
def test_backends(backend: str, attn_type: str, device: torch.device) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    base = SiglipVisionModel(config).eval()
    grid = am.PatchGrid.of("32+64", 16)
    pixels = torch.randn(3, 5, 3, 64, 64)
    gazed = am.GazedVideo.from_info(pixels, as_info(grid, random_kept(grid, 3, 5, 20)), grid)
    with torch.no_grad():
        wanted = GazedSiglipVisionModel(base, "32+64", attn_type, backend="eager").encode(gazed)  # type: ignore[arg-type]
        half = backend in ("half sdpa", "flash_attention_2")
        backend = backend.removeprefix("half ")
        there = base.to(device, torch.float16 if half else torch.float32)
        found = GazedSiglipVisionModel(there, "32+64", attn_type, backend=backend).encode(gazed)  # type: ignore[arg-type]
    torch.testing.assert_close(found.float().cpu(), wanted, rtol=2e-2 if half else 1e-4, atol=2e-2 if half else 1e-4)


def test_a_tower_learns_where_its_values_alone_do(device: torch.device) -> None:
    """As LoRA on one projection asks: the fast kernel has no gradients and must not be taken."""
    config = SiglipVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16
    )
    base = SiglipVisionModel(config).to(device, torch.bfloat16).requires_grad_(False)
    tower = GazedSiglipVisionModel(base, "32+64")
    values = tower.core.encoder.layers[0].self_attn.v_proj.weight.requires_grad_()
    gazed = am.GazedVideo.from_info(
        torch.randn(2, 3, 3, 64, 64), as_info(tower.grid, random_kept(tower.grid, 2, 3, 12)), tower.grid
    )
    tower.encode(gazed).sum().backward()
    assert values.grad is not None and bool(values.grad.any())


# The pipeline and whole models


@pytest.mark.parametrize("gaze", ["bundled", "pixel-diff"])
def test_a_video_gazed_on_the_device(gaze: str, clip: Path, device: torch.device) -> None:
    settings = VideoSettings(frames=20, chunk_frames=8, max_tiles=4, ratio=0.1, loss=0, thumbnails=2)
    here = gaze_video(clip, gaze, settings)
    there = gaze_video(clip, gaze, settings, device=device)
    assert there.patches.device.type == device.type
    assert there.frame_counts.tolist() == here.frame_counts.tolist(), "the budget decides"
    pairs = zip(
        here.positions.split(here.frame_counts.tolist()), there.positions.split(here.frame_counts.tolist()), strict=True
    )
    same = sum(len(set(one.tolist()) & set(other.tolist())) for one, other in pairs)
    # Frames are resized on the device in float and on the CPU in bytes, a grey level apart here and there.
    assert same >= 0.9 * len(here)


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_a_wrapped_model(family: str, clip: Path, device: torch.device) -> None:
    settings = {"frames": 8, "cache": False, "ratio": 0.25}
    base, processor = tiny_model(family, image_size=64)
    here = am.wrap(base, "pixel-diff", processor=processor, **settings)
    gazed = here.gaze_video(clip)
    wanted = here(**here.prepare("<video>What moves?", [gazed])).logits
    here.unwrap()
    there = am.wrap(base.to(device), "pixel-diff", processor=processor, **settings)
    found = there(**there.prepare("<video>What moves?", [gazed.to(device)])).logits
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-3, atol=1e-3)
    assert isinstance(there.ask(clip, "What moves?", max_new_tokens=3), str)
    with there.disabled():
        assert isinstance(there.ask(clip, "What moves?", max_new_tokens=3), str)


def test_the_bundled_reader_in_half_precision(clip: Path, device: torch.device) -> None:
    model = am.load(device=device, dtype=torch.bfloat16, cache=False)
    assert isinstance(model.ask(clip, "What does the sign say?", max_new_tokens=4), str)
    assert model.dtype == torch.bfloat16 and model.device.type == device.type
